"""What a training step of Levels-of-Experts holds in memory, and how many pixels at a time fit."""

from typing import Literal, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.memory import SHARE, free_bytes, gib
from framework.nn import SineLayer
from framework.nn.coordinates.tiles import ROOM
from models.levels_of_experts.network import LevelsOfExpertsNetwork

RowsAtOnce = int | Literal["auto"] | None

#: fewer pixels at a time than this cost more in launches than they save
LEAST_ROWS = 1024
#: rows that share a tile's matrix, at least, in all but the smallest pictures (`tile_plan`)
ROWS_OF_A_TILE = 128


def bytes_of_a_row(network: LevelsOfExpertsNetwork, device: torch.device) -> float:
    """Bytes that one row of one network takes at the backward pass's highest point.

    Every sine layer keeps what goes into its sine and what comes out of it; one more pair are gradients. As tiles, rows
    are filled up and every tile keeps its matrix.
    """
    width, layers = network.last.in_features, len(network.layers)
    held = 4.0 * width * (2 * layers + 2)
    return held if device.type == "cpu" else (1 + ROOM) * held + 4.0 * width**2 * layers / ROWS_OF_A_TILE


def step_bytes(network: LevelsOfExpertsNetwork, rows: int, at_once: int, device: torch.device) -> float:
    """Bytes of a training step: weights, gradients, two moments and the best; inputs, targets, outputs; one pass.

    Args:
        network: a stack of B networks.
        rows: N pixels of every image.
        at_once: pixels per image whose activations are kept at a time.
        device: an accelerator runs tiles.
    """
    first = next(network.parameters())
    images, inputs = len(first), cast(SineLayer, network.layers[0]).linear.in_features
    weights = 5 * 4 * sum(p.numel() for p in network.parameters())
    # per row: coordinates, order (int64), and three values each of target, output, their difference and its gradient
    return weights + images * (rows * 4.0 * (inputs + 2 + 4 * 3) + at_once * bytes_of_a_row(network, device))


def rows_that_fit(network: LevelsOfExpertsNetwork, rows: int, device: torch.device, free: int | None) -> int:
    """The most pixels per image at a time with which a training step fits into `free` bytes.

    Raises:
        ConfigError: not even LEAST_ROWS do.
    """
    least = min(rows, LEAST_ROWS)
    if free is None or step_bytes(network, rows, rows, device) <= SHARE * free:
        return rows
    needed = step_bytes(network, rows, least, device)
    if needed > SHARE * free:
        raise ConfigError(
            f"model.rows_at_once: {len(next(network.parameters()))} images of {rows} pixels need {gib(needed)} even "
            f"with {least} pixels at a time, and {gib(free)} are free; fit fewer images in a run (data.images), "
            "smaller ones (data.scale, data.crop), or a narrower network (model.width)"
        )
    per_row = (step_bytes(network, rows, rows, device) - needed) / (rows - least)
    fitting = least + int((SHARE * free - needed) / per_row)
    passes = -(-rows // fitting)
    return -(-rows // passes)  # passes of one size


class RowsOfAPass:
    """`rows_at_once`, where it is `auto` chosen at the first batch for what is free then, and said.

    Attributes:
        chosen: pixels per image at a time; None before the first batch, and where it was not for `auto` to choose.
    """

    def __init__(self, rows_at_once: RowsAtOnce) -> None:
        self.rows_at_once = rows_at_once
        self.chosen: int | None = None

    def __call__(self, network: nn.Module, inputs: Tensor) -> int | None:
        """Pixels per image at a time for inputs (B, N, in); None: all."""
        if self.rows_at_once != "auto":
            return self.rows_at_once
        if self.chosen is None:
            self.chosen = choose_rows(cast(LevelsOfExpertsNetwork, network), inputs.shape[1], inputs.device)
        return self.chosen


def choose_rows(network: LevelsOfExpertsNetwork, rows: int, device: torch.device) -> int:
    """`rows_that_fit` into what is free now, said in a line with the step's peak."""
    free = free_bytes(device)
    at_once = rows_that_fit(network, rows, device, free)
    needed = gib(step_bytes(network, rows, at_once, device))
    how = "at once" if at_once == rows else f"{at_once} at a time (model.rows_at_once)"
    beside = "" if free is None else f" of {gib(free)} free"
    rank_zero_info(f"LevelsOfExperts: a training step takes about {needed}{beside}: {rows} pixels per image, {how}")
    return at_once
