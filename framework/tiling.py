"""A network over pictures that do not fit as a whole: tiles with so much overlap that no seam is left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.padding import in_strides

#: side of a tile, the overlap not counted; `auto` takes pictures of up to twice as many pixels whole
AUTO = 1024

TileSize = int | Literal["auto"] | None


@dataclass(frozen=True)
class Tile:
    """Rows and columns (y0, y1, x0, x1) of the padded picture: what is kept, and what is looked at for it."""

    kept: tuple[int, int, int, int]
    seen: tuple[int, int, int, int]


def tiles(size: tuple[int, int], tile: int, reach: int, stride: int) -> Iterator[Tile]:
    """Cuts a picture whose sides are multiples of `stride` into tiles that begin on multiples of it.

    Args:
        size: (H, W).
        tile: side of what is kept, rounded up to a multiple of `stride`.
        reach: how far a logit looks, in pixels, to any side.
        stride: of the network.
    """
    tile, margin = _multiple(tile, stride), _multiple(reach, stride)
    for y in range(0, size[0], tile):
        for x in range(0, size[1], tile):
            below, right = min(y + tile, size[0]), min(x + tile, size[1])
            seen = max(0, y - margin), min(size[0], below + margin), max(0, x - margin), min(size[1], right + margin)
            yield Tile((y, below, x, right), seen)


def tiled(
    network: Callable[[Tensor], Tensor],
    read: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    stride: int,
    reach: int,
    tile: TileSize = "auto",
    skip: Callable[[int, int], bool] | None = None,
) -> Iterator[tuple[tuple[int, int, int, int], Tensor]]:
    """The logits of a picture, tile by tile, equal to those of the whole up to rounding.

    The network must not mix what lies further apart than `reach` (no normalisation over the picture). Every tile begins
    where the poolings of the whole picture begin one, and only what the overlap keeps right is given back.

    Args:
        network: (1, N, h, w), sides multiples of `stride` -> (1, C, h, w).
        read: (y0, y1, x0, x1) -> (1, N, y1 - y0, x1 - x0), inside the picture.
        size: (H, W) of the picture, any.
        stride: of the network.
        reach: of the network.
        tile: side of a tile; `auto`; None: the whole picture at once.
        skip: (first row, first column) -> True for tiles that are not wanted.

    Yields:
        (y0, y1, x0, x1), and their logits (C, y1 - y0, x1 - x0); together they cover the picture once.

    Raises:
        ConfigError: a tile of no pixel, or a picture smaller than `stride`.
    """
    height, width = size
    if min(size) < stride:
        raise ConfigError(f"image: the poolings need images of at least {stride} x {stride}, got {height} x {width}")
    padded = _multiple(height, stride), _multiple(width, stride)
    for one in tiles(padded, tile_side(tile, size), reach, stride):
        y0, y1, x0, x1 = one.seen
        if skip is not None and skip(one.kept[0], one.kept[2]):
            continue
        image = read(y0, min(y1, height), x0, min(x1, width))
        if y1 > height or x1 > width:
            image = F.pad(image, (0, max(0, x1 - width), 0, max(0, y1 - height)), mode="reflect")
        logits = network(image)[0]
        top, below, left, right = one.kept
        below, right = min(below, height), min(right, width)
        yield (top, below, left, right), logits[:, top - y0 : below - y0, left - x0 : right - x0]


def tile_grid(size: tuple[int, int], tile: TileSize, stride: int) -> tuple[int, int, int] | None:
    """Side of a tile as `tiled` takes it, and rows and columns of them; None for a picture that is one tile."""
    side = tile_side(tile, size)
    if side >= max(size):
        return None
    side = _multiple(side, stride)
    return side, -(-size[0] // side), -(-size[1] // side)


def tile_side(tile: TileSize, size: tuple[int, int]) -> int:
    """Side of a tile in pixels.

    Raises:
        ConfigError: not `auto`, null or a number from 1 on.
    """
    if tile == "auto":
        return AUTO if size[0] * size[1] > 2 * AUTO**2 else max(size)
    if tile is None:
        return max(size)
    if isinstance(tile, str) or tile < 1:
        raise ConfigError(f"tile: expected auto, null or a side in pixels, got {tile!r}")
    return tile


def whole(
    network: Callable[[Tensor], Tensor], image: Tensor, stride: int, reach: int, tile: TileSize = "auto"
) -> Tensor:
    """`tiled` for pictures in memory: (B, N, H, W) -> (B, C, H, W)."""
    height, width = image.shape[-2:]
    if tile_side(tile, (height, width)) >= max(height, width):
        return in_strides(network, image, stride)
    out = []
    for one in image.split(1):
        parts = tiled(network, lambda a, b, c, d, one=one: one[..., a:b, c:d], (height, width), stride, reach, tile)  # type: ignore[misc]
        logits = None
        for (y0, y1, x0, x1), values in parts:
            if logits is None:
                logits = values.new_empty(len(values), height, width)
            logits[:, y0:y1, x0:x1] = values
        assert logits is not None
        out.append(logits)
    return torch.stack(out)


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
