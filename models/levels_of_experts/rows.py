"""Pixels as rows in nested order, and what is asked of arguments and sizes."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError
from framework.nn import Segment, nested_sort, tile_index
from models.levels_of_experts.derivatives import Derivatives, Supervision, derivative_losses, derivatives_of

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
    derivatives: Derivatives | None = None  # what is fitted in place of the colours


Value = TypeVar("Value")


class LastOf(Generic[Value]):
    """The last result, kept for the very object that it was made from; a copy or a pickle starts empty."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Value] | None = None

    def __reduce__(self) -> tuple[type["LastOf"], tuple[()]]:
        return LastOf, ()

    def of(self, key: object, make: Callable[[], Value]) -> Value:
        """What `make` gave for this `key`; made anew for another one."""
        if self._kept is None or self._kept[0] is not key:
            # What is made in an evaluation serves training too, which inference tensors do not.
            with torch.inference_mode(False):
                self._kept = (key, make())
        return self._kept[1]

    def forget(self) -> None:
        """Makes it anew next time."""
        self._kept = None


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
        labels = None if classes is None else classes[b]
        sort = nested_sort(expert_indices(xy, labels, experts, offsets))
        features = (
            xy if one_hot is None or labels is None else torch.cat([xy, F.one_hot(labels, one_hot).to(xy.dtype)], 1)
        )
        inputs.append(features[sort.order])
        orders.append(sort.order)
        runs.append(sort.segments)
    segments = [[network[level] for network in runs] for level in range(len(experts))]
    return Rows(torch.stack(inputs), torch.empty(0), torch.stack(orders), segments, [])


def expert_indices(
    coords: Tensor, labels: Tensor | None, experts: Sequence[Expert], offsets: Sequence[float]
) -> list[Tensor]:
    """Who computes the pixels of one image, (N,) int64 for every layer; arguments as in `sorted_rows`."""
    if labels is None:
        labels = torch.zeros(len(coords), dtype=torch.int64, device=coords.device)
    return [_expert_index(kind, offset, coords, labels) for kind, offset in zip(experts, offsets, strict=True)]


def with_derivatives(
    rows: Rows,
    kind: Supervision,
    images: Tensor,
    coords: Tensor,
    classes: Tensor | None,
    experts: Sequence[Expert],
    offsets: Sequence[float],
) -> Rows:
    """The rows with what is fitted in place of the colours; as they are where that is the colours.

    Args:
        rows: of the batch.
        kind: what is fitted.
        images: (B, 3, H, W) float32 in [0, 1].
        coords: (B, H, W, 2) float32.
        classes: (B, H W) int64, for `map` layers.
        experts: as in `sorted_rows`.
        offsets: as in `sorted_rows`.
    """
    if kind == "value":
        return rows
    labels = [None] * len(coords) if classes is None else list(classes)
    indices = [expert_indices(xy, k, experts, offsets) for xy, k in zip(coords.flatten(1, 2), labels, strict=True)]
    return rows._replace(derivatives=derivatives_of(kind, images, coords, indices, rows.order))


def poisson_losses(network: Callable[..., Tensor], rows: Rows, wanted: Derivatives) -> tuple[Tensor, Tensor]:
    """`derivative_losses` of a method that is called with inputs, segments and networks."""
    return derivative_losses(lambda x: network(x, rows.segments, rows.networks), rows.inputs, rows.target, wanted)


def _expert_index(kind: Expert, offset: float, coords: Tensor, labels: Tensor) -> Tensor:
    if kind is None:
        return torch.zeros_like(labels)
    return labels if kind == MAP else tile_index(coords, cast(float, kind), offset)


def check_arguments(
    experts: list,
    offsets: Any,
    classes: int,
    patience: Any,
    factor: float,
    rows: int | Literal["auto"] | None,
    scale: float,
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
    if rows is not None and rows != "auto" and rows < 1:
        raise ConfigError(f"model.rows_at_once: expected at least 1, auto or null, got {rows}")
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


def check_coordinates(experts: Sequence[Expert], coords: Tensor) -> None:
    """Raises ConfigError for coordinates on which tiles have unequal sizes."""
    if any(isinstance(k, int | float) for k in experts) and is_inclusive(coords):
        raise ConfigError(
            "data.grid: inclusive coordinates make tiles of unequal size; use pixel_center, or accept it with "
            "model.exact_tiles: false"
        )


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
