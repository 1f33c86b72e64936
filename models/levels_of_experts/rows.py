"""What surrounds the networks of Levels-of-Experts: pixels as rows in nested order, checks, the table of images."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import CheckpointError, ConfigError
from framework.nn import Segment, nested_sort, tile_index

MAP: Literal["map"] = "map"

#: what chooses a layer's weights: tiles by their multiplier A, a class map, or nothing
Expert = float | Literal["map"] | None


class Rows(NamedTuple):
    """A batch in nested order: what a step needs, made once per batch."""

    inputs: Tensor  # (B, N, in) float32
    target: Tensor  # (B, N, 3) float32 in [-1, 1]; empty where there is none
    order: Tensor  # (B, N) int64, row i is pixel order[i]
    segments: list[list[list[Segment]]]  # layer -> network -> runs
    networks: list[int]  # of this rank, one per image of the batch


def sorted_rows(
    coords: Tensor,
    classes: Tensor | None,
    experts: Sequence[Expert],
    offsets: Sequence[float],
    one_hot: int | None = None,
) -> Rows:
    """Sorts every image's pixels so that all layers' experts are contiguous.

    Args:
        coords: (B, N, 2) float32, (row, column) in [-1, 1].
        classes: (B, N) int64, for `map` layers and the one-hot input.
        experts: for every layer its multiplier, `map` or None.
        offsets: of the tiles, one per layer.
        one_hot: number of classes to append to the coordinates as a one-hot vector; None: nothing is appended.

    Returns:
        the rows, without targets and networks.
    """
    inputs, orders, runs = [], [], []
    for b, xy in enumerate(coords):
        labels = torch.zeros(len(xy), dtype=torch.int64, device=xy.device) if classes is None else classes[b]
        index = [_expert_index(kind, offset, xy, labels) for kind, offset in zip(experts, offsets, strict=True)]
        sort = nested_sort(index)
        features = xy if one_hot is None else torch.cat([xy, F.one_hot(labels, one_hot).to(xy.dtype)], 1)
        inputs.append(features[sort.order])
        orders.append(sort.order)
        runs.append(sort.segments)
    segments = [[network[level] for network in runs] for level in range(len(experts))]
    return Rows(torch.stack(inputs), torch.empty(0), torch.stack(orders), segments, [])


def _expert_index(kind: Expert, offset: float, coords: Tensor, labels: Tensor) -> Tensor:
    if kind is None:
        return torch.zeros_like(labels)
    return labels if kind == MAP else tile_index(coords, cast(float, kind), offset)


def check_arguments(
    experts: list, offsets: Any, classes: int, patience: Any, factor: float, rows: int | None, scale: float
) -> None:
    if not experts or any(not (k is None or k == MAP or (isinstance(k, int | float) and k > 0)) for k in experts):
        raise ConfigError(f"model.experts: expected for every layer a number above 0, 'map' or null, got {experts}")
    if offsets is not None and len(offsets) != len(experts):
        raise ConfigError(f"model.offsets: expected {len(experts)}, one per layer of model.experts, got {len(offsets)}")
    if not 2 <= classes <= 256:
        raise ConfigError(f"model.classes: expected 2 to 256, got {classes}")
    if (patience is not None and patience < 0) or not 0 < factor < 1:
        raise ConfigError(
            "model.plateau_patience, model.plateau_factor: expected epochs of 0 or more and a factor between 0 and 1, "
            f"got {patience} and {factor}"
        )
    if rows is not None and rows < 1:
        raise ConfigError(f"model.rows_at_once: expected at least 1, got {rows}")
    if not scale > 0:
        raise ConfigError(f"model.scale: expected a factor above 0, got {scale}")


def check_tiles(experts: Sequence[Expert], sizes: Sequence[Sequence[int]]) -> None:
    """Raises ConfigError unless the 2 A tiles along each axis have whole numbers of pixels in every image."""
    for kind in experts:
        if isinstance(kind, int | float):
            for size in sizes:
                if any((n / (2 * kind)) % 1 for n in size):
                    # the largest divisible size that fits into every image
                    fits = [int(min(s[a] for s in map(sorted, sizes)) // (2 * kind) * 2 * kind) for a in (0, 1)]
                    hint = f"crop with data.crop: {fits}, " if min(fits) else ""
                    raise ConfigError(
                        f"model.experts: {kind:g} makes {2 * kind:g} tiles along each axis, which do not divide "
                        f"{size[0]} x {size[1]} pixels; {hint}choose other tiles, or accept uneven ones with "
                        "model.exact_tiles: false"
                    )


def check_same_images(fitted: tuple[list, list], data: tuple[list, list]) -> None:
    """Raises CheckpointError unless (names, sizes) are the same."""
    if list(fitted[0]) != list(data[0]):
        raise CheckpointError(
            f"ckpt_path: the checkpoint holds the networks of {few(fitted[0])}, but the data are {few(data[0])}; "
            "give the images that the networks were fitted to"
        )
    sizes, found = [list(size) for size in fitted[1]], [list(size) for size in data[1]]
    if sizes != found:
        raise CheckpointError(
            f"ckpt_path: the networks were fitted to images of {few(sizes)} pixels, but the data have {few(found)}; "
            "use the same data.scale and data.crop"
        )


def few(values: list) -> str:
    shown = ", ".join(str(v) for v in values[:4])
    return shown if len(values) <= 4 else f"{shown}, ... ({len(values)} in all)"


def is_inclusive(coords: Tensor) -> bool:
    return bool(coords.min() <= -1)  # a pixel's centre lies inside


def upright(picture: Tensor, size: Tensor) -> Tensor:
    """(C, H, W) as the batch lays it out, portraits transposed -> as the image stands."""
    return picture.transpose(1, 2) if size[0] > size[1] else picture


def nearest(values: Tensor, coords: Tensor, grid: str) -> Tensor:
    """The value of the (H, W) pixel nearest to each of (..., 2) coordinates."""
    size = torch.tensor(values.shape, device=coords.device)
    unit = (coords + 1) / 2
    place = (unit * (size - 1)).round() if grid == "inclusive" else (unit * size).floor()
    place = torch.minimum(place.long().clamp(min=0), size - 1)
    return values[place[..., 0], place[..., 1]]


def image_table(
    names: list[str],
    sizes: list[list[int]],
    psnr: Tensor,
    progress: Mapping[str, Tensor],
    parameters: int,
    map_costs: list[dict[str, float]] | None,
) -> pd.DataFrame:
    """One row per image: its PSNR, the best one and when, what became of it, and what its weights and map cost."""
    table = pd.DataFrame(
        {
            "image": names,
            "height": [size[0] for size in sizes],
            "width": [size[1] for size in sizes],
            "psnr": psnr.cpu().numpy(),
            "best_psnr": progress["best_psnr"].numpy(),
            "best_step": progress["best_step"].numpy(),
            "diverged_step": [step if step >= 0 else "" for step in progress["diverged_step"].tolist()],
            "learning_rate_factor": progress["learning_rate_factor"].numpy(),
            "parameters": parameters,
            "parameter_bits_per_pixel": [32 * parameters / (height * width) for height, width in sizes],
        }
    )
    if map_costs is not None:
        table = pd.concat([table, pd.DataFrame(map_costs).add_prefix("map_bits_per_pixel_")], axis=1)
    return table.round(4)
