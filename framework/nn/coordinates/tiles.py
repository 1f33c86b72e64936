"""Rows in tiles of one length: a layer with experts as one batched product, whatever the pictures and runs.

A product per run is the least work, and on an accelerator thousands of launches. Where all runs of a layer have one
length, or a common divisor, the layer is one batched product over tiles of that length; else every run of the finest
layer is filled up to whole tiles. A tile's matrix is picked by a product with an indicator, which is exact, needs no
scattered sums in the backward pass, and is small beside the tile's own product.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from framework.errors import DataError

#: (start, stop, expert) of rows that belong together
Run = tuple[int, int, int]

#: rows of a tile that are tried, and the share of rows that filling up may add
LENGTHS = (512, 256, 128, 64, 32)
ROOM = 0.125


class Tiles(NamedTuple):
    """One layer's rows as tiles.

    Attributes:
        length: rows of a tile.
        indicator: (B, rows / length, experts) float32, one at the tile's expert.
    """

    length: int
    indicator: Tensor


class TilePlan(NamedTuple):
    """All layers' tiles for one order of the rows.

    Attributes:
        layers: of every layer.
        fill: (B, rows) int64, the row that stands in each place; None: the rows as they are.
        keep: (B, N) int64, the place of each row.
    """

    layers: list[Tiles]
    fill: Tensor | None
    keep: Tensor | None

    def filled(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, rows, in)."""
        return x if self.fill is None else torch.gather(x, 1, self.fill[..., None].expand(-1, -1, x.shape[2]))

    def kept(self, y: Tensor) -> Tensor:
        """(B, rows, out) -> (B, N, out); rows that fill up get no gradient."""
        return y if self.keep is None else torch.gather(y, 1, self.keep[..., None].expand(-1, -1, y.shape[2]))


def tile_plan(
    segments: Sequence[Sequence[Sequence[Run]] | None], experts: Sequence[int], rows: int, device: torch.device
) -> TilePlan:
    """Cuts nested-sorted rows into tiles.

    Args:
        segments: for every layer the runs of every network, or None for a layer of one expert.
        experts: their numbers.
        rows: N of every network.
        device: where the indicators and indices go.

    Returns:
        a plan without filling where every layer's runs have a common divisor of at least LENGTHS[-1].

    Raises:
        DataError: no layer with runs.
    """
    networks = next((len(layer) for layer in segments if layer is not None), 0)
    if not networks:
        raise DataError("tile_plan: expected at least one layer with segments")
    runs = [[[(0, rows, 0)]] * networks if layer is None else layer for layer in segments]
    lengths = [math.gcd(*(stop - start for own in layer for start, stop, _ in own)) for layer in runs]
    if min(lengths) >= LENGTHS[-1]:
        layers = [
            _tiles([_experts(own, range(0, rows, length)) for own in layer], count, length, device)
            for layer, count, length in zip(runs, experts, lengths, strict=True)
        ]
        return TilePlan(layers, None, None)
    return _filled_plan(runs, experts, rows, device)


def _filled_plan(
    runs: Sequence[Sequence[Sequence[Run]]], experts: Sequence[int], rows: int, device: torch.device
) -> TilePlan:
    """The first layer, whose matrices are small, takes short tiles; the others long ones, which it is filled up to."""
    fine = [_pieces([layer[b] for layer in runs], rows) for b in range(len(runs[0]))]
    coarse = [_pieces([layer[b] for layer in runs[1:] or runs], rows) for b in range(len(runs[0]))]
    long = _longest(LENGTHS, (1 + ROOM / 2) * rows, lambda n: max(_filled(own, own, n, n) for own in coarse))
    fitting = [length for length in LENGTHS if length <= long]
    short = _longest(
        fitting, (1 + ROOM) * rows, lambda n: max(map(_filled, fine, coarse, [n] * len(fine), [long] * len(fine)))
    )
    total = max(map(_filled, fine, coarse, [short] * len(fine), [long] * len(fine)))
    fill, keep = zip(*(_places(*own, short, long, total) for own in zip(fine, coarse, strict=True)), strict=True)
    layers = []
    for level, (layer, count) in enumerate(zip(runs, experts, strict=True)):
        length = short if level == 0 else long
        chosen = [_experts(own, fill[b][::length].tolist()) for b, own in enumerate(layer)]
        layers.append(_tiles(chosen, count, length, device))
    return TilePlan(layers, torch.stack(fill).to(device), torch.stack(keep).to(device))


def _pieces(layers: Sequence[Sequence[Run]], rows: int) -> list[tuple[int, int]]:
    """(start, stop) between all cuts of one network's layers."""
    cuts = sorted({0, rows} | {start for layer in layers for start, _, _ in layer})
    return list(itertools.pairwise(cuts))


def _longest(lengths: Sequence[int], limit: float, filled: Callable[[int], int]) -> int:
    return next((length for length in lengths if filled(length) <= limit), lengths[-1])


def _up(size: int, length: int) -> int:
    return -(-size // length) * length


def _filled(fine: Sequence[tuple[int, int]], coarse: Sequence[tuple[int, int]], short: int, long: int) -> int:
    """Rows of one network once every piece is whole tiles."""
    sizes = {stop: 0 for _, stop in coarse}
    ends = iter(sorted(sizes))
    end = next(ends)
    for start, stop in fine:
        while stop > end:
            end = next(ends)
        sizes[end] += _up(stop - start, short)
    return sum(_up(size, long) for size in sizes.values())


def _places(
    fine: Sequence[tuple[int, int]], coarse: Sequence[tuple[int, int]], short: int, long: int, total: int
) -> tuple[Tensor, Tensor]:
    """The row in each of `total` places, and the place of each row; places that fill up repeat the row before them."""
    fill, keep = torch.zeros(total, dtype=torch.int64), torch.empty(fine[-1][1], dtype=torch.int64)
    ends, at = {stop for _, stop in coarse}, 0
    for start, stop in fine:
        size = _up(stop - start, short)
        # at a coarse piece's end up to a whole long tile
        size = _up(at + size, long) - at if stop in ends else size
        fill[at : at + size] = torch.arange(start, start + size).clamp(max=stop - 1)
        keep[start:stop] = torch.arange(at, at + stop - start)
        at += size
    return fill, keep


def _experts(runs: Sequence[Run], starts: Sequence[int]) -> list[int]:
    """The expert of the run that holds each of the rows `starts`, which need not be sorted."""
    ends = torch.tensor([stop for _, stop, _ in runs])
    owner = torch.searchsorted(ends, torch.tensor(list(starts)), right=True)
    return torch.tensor([e for _, _, e in runs])[owner].tolist()


def _tiles(chosen: Sequence[Sequence[int]], count: int, length: int, device: torch.device) -> Tiles:
    indicator = torch.nn.functional.one_hot(torch.tensor(chosen), count).float()
    return Tiles(length, indicator.to(device))


def tiled_product(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles) -> Tensor:
    """Every tile through its expert's matrix: as many launches for one picture and run as for thousands.

    Args:
        x: (B, rows, in).
        weight: (B, experts, out, in).
        bias: (B, out), (B, experts, out) or None.
        tiles: of this layer.

    Returns:
        (B, rows, out).
    """
    networks, rows, _ = x.shape
    out_features = weight.shape[2]
    indicator = tiles.indicator.to(weight.dtype)
    matrices = torch.bmm(indicator, weight.flatten(2)).view(-1, *weight.shape[2:])
    blocks = x.reshape(len(matrices), tiles.length, -1)
    if bias is None:
        out = torch.bmm(blocks, matrices.mT)
    else:
        shared = bias.dim() == 2
        # contiguous for one network as for many: as many launches
        rest = bias[:, None].expand(-1, indicator.shape[1], -1).contiguous() if shared else torch.bmm(indicator, bias)
        out = torch.baddbmm(rest.view(-1, 1, out_features), blocks, matrices.mT)
    return out.view(networks, rows, out_features)


def batched_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One expert: (B, N, in) through (B, 1, out, in) in one product, bias (B, out) or (B, 1, out)."""
    if bias is None:
        return torch.bmm(x, weight[:, 0].mT)
    return torch.baddbmm(bias if bias.dim() == 3 else bias[:, None], x, weight[:, 0].mT)
