"""Levels-of-Experts layers: linear maps whose weight matrix is chosen by position (Hao et al., NeurIPS 2022).

Rows of the input are coordinates. Where the rows of one expert lie together, the layer is one plain matrix product per
run of rows. `nested_sort` finds one order of the rows in which that holds for every layer of a network at once, so that
a training step needs no gather, no scatter and no permutation.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from framework.errors import ConfigError, DataError
from framework.nn.coordinates.segmented import as_autocast, chosen, segmented
from framework.nn.coordinates.tiles import Tiles, batched_product, tiled_product
from framework.nn.modes import Layer, followed, has_values

Bias = Literal["shared", "per_expert", "none"]


class Segment(NamedTuple):
    """Rows start..stop-1 belong to one expert."""

    start: int
    stop: int
    expert: int


class NestedSort(NamedTuple):
    """An order of the rows in which every layer's experts are contiguous runs.

    Attributes:
        order: (N,) int64; row i of the sorted input is row order[i] of the original.
        segments: for every layer its runs, which cover 0..N.
    """

    order: Tensor
    segments: list[list[Segment]]

    def inverse(self) -> Tensor:
        """(N,) int64; row i of the original is row inverse[i] of the sorted one."""
        return torch.argsort(self.order)


def tile_index(coords: Tensor, multiplier: float, offset: float = 0.0) -> Tensor:
    """Which of four experts a position belongs to: q = floor(A x + b) per axis, e = 2 (q_row mod 2) + (q_column mod 2).

    On [-1, 1] a tile's edge is 1 / A, so there are 2 A tiles along each axis (docs/levels_of_experts.md).

    Args:
        coords: (..., 2) floating point, (row, column) in [-1, 1].
        multiplier: A, above 0.
        offset: b.

    Returns:
        (...) int64 in 0..3; -1, which is nobody's, for a position that is not finite where no error can tell (on an
        accelerator and under a compiler).

    Raises:
        ConfigError: a multiplier that is not above 0. DataError: coordinates of another shape, or not finite.
    """
    if not multiplier > 0:
        raise ConfigError(f"multiplier: expected a number above 0, got {multiplier}")
    if coords.dim() == 0 or coords.shape[-1] != 2:
        raise DataError(f"tile_index: expected coordinates (..., 2), got {tuple(coords.shape)}")
    # float64 keeps float32 pixel centres on their side of a tile's edge; % is the non-negative modulo, also below 0
    tiles = torch.floor(coords.double() * multiplier + offset)
    finite = tiles.isfinite().all(-1)
    # a look at the values would wait for an accelerator
    if coords.device.type == "cpu" and has_values(coords) and not followed() and not bool(finite.all()):
        raise DataError("tile_index: expected finite coordinates, got NaN or infinity")
    parity = torch.where(finite[..., None], tiles, 0.0).long() % 2
    return torch.where(finite, 2 * parity[..., 0] + parity[..., 1], -1)


def nested_sort(indices: Sequence[Tensor]) -> NestedSort:
    """Sorts rows by (last layer's expert, ..., first layer's expert).

    With n experts per layer the last of L layers gets at most n runs, the one before n^2, ..., the first n^L.

    Args:
        indices: for every layer, first to last, (N,) int64 experts of the rows.

    Returns:
        the order and every layer's runs; neighbouring runs of one expert are joined.

    Raises:
        DataError: no layer, or indices of different lengths.
    """
    if not indices or any(index.dim() != 1 or len(index) != len(indices[0]) for index in indices):
        raise DataError(
            f"nested_sort: expected indices (N,) of one length, got {[tuple(index.shape) for index in indices]}"
        )
    order = torch.arange(len(indices[0]), device=indices[0].device)
    for index in indices:  # stable: the last sort is the outermost
        order = order[torch.sort(index[order], stable=True).indices]
    return NestedSort(order, [_runs(index[order]) for index in indices])


def _runs(sorted_index: Tensor) -> list[Segment]:
    if len(sorted_index) == 0:
        return []
    experts, counts = torch.unique_consecutive(sorted_index, return_counts=True)
    stops = torch.cumsum(counts, 0).tolist()
    starts = [0, *stops[:-1]]
    return [Segment(*run) for run in zip(starts, stops, experts.tolist(), strict=True)]


def clip_segments(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    """The runs of rows start..stop-1, counted from `start`."""
    cut = ((max(s.start, start) - start, min(s.stop, stop) - start, s.expert) for s in segments)
    return [Segment(*run) for run in cut if run[0] < run[1]]


class ExpertLinear(Layer):
    """A linear map with one weight matrix per expert: z_i = W[e_i] x_i + b.

    Args:
        in_features: length of an input row.
        out_features: length of an output row.
        num_experts: n, number of weight matrices; 1 is a plain linear map.
        bias: `shared` by all experts (the published snippet), `per_expert`, or `none`.
        num_networks: B independent networks, each with its own weights, trained side by side; None: one, unbatched.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: parameter (B, n, out, in), without B for one unbatched network.
        bias: parameter (B, out), with `per_expert` (B, n, out); None with `none`.

    Raises:
        ConfigError: a size below 1, or an unknown bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        bias: Bias = "shared",
        num_networks: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "num_experts": num_experts}
        for name, value in {**sizes, "num_networks": 1 if num_networks is None else num_networks}.items():
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        if bias not in ("shared", "per_expert", "none"):
            raise ConfigError(f"bias: expected shared, per_expert or none, got {bias!r}")
        self.in_features, self.out_features, self.num_experts = in_features, out_features, num_experts
        self.bias_kind, self.num_networks = bias, num_networks
        networks = () if num_networks is None else (num_networks,)
        kwargs = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(*networks, num_experts, out_features, in_features, **kwargs))
        rows = {"shared": (), "per_expert": (num_experts,), "none": None}[bias]
        self.bias = None if rows is None else nn.Parameter(torch.empty(*networks, *rows, out_features, **kwargs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """nn.Linear's initialisation, U(+-1 / sqrt(in_features)) for weights and biases, every expert its own draw."""
        bound = self.in_features**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        segments: Sequence[Segment] | Sequence[Sequence[Segment]] | Tiles | None = None,
        gain: float = 1.0,
    ) -> Tensor:
        """Applies every row's expert.

        Args:
            x: (N, in), with `num_networks` (B, N, in), floating point.
            index: (N,) or (B, N) int64 experts of the rows, in any order. Sorts the rows and puts them back.
            segments: in place of `index` for rows that are sorted already: the runs of this layer from `nested_sort`,
                with `num_networks` a list of them per network. Rows that no run covers are not allowed. Or the layer's
                Tiles of a `tile_plan`, which an accelerator is quick with.
            gain: factor on weights and bias, so that a sine layer scales its few weights instead of its many rows.

        Returns:
            (N, out) or (B, N, out), in what torch promotes the dtypes of x and weight to; under autocast in autocast's.

        Raises:
            DataError: x, index or segments of another shape, or an expert out of range.
            ConfigError: neither or both of index and segments, with more than one expert.
        """
        batched = self.num_networks is not None
        if x.dim() != 2 + batched or x.shape[-1] != self.in_features:
            expected = f"({'networks, ' if batched else ''}N, in_features={self.in_features})"
            raise DataError(f"ExpertLinear: expected an input {expected}, got {tuple(x.shape)}")
        if index is not None and segments is not None:
            raise ConfigError("ExpertLinear: give index or segments, not both")
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        x, weight = x.to(dtype), self.weight.to(dtype)
        bias: Tensor | None = None if self.bias is None else self.bias.to(dtype)
        if gain != 1.0:
            weight, bias = gain * weight, None if bias is None else gain * bias
        if not batched:
            x, weight, bias = x[None], weight[None], None if bias is None else bias[None]
            index = None if index is None else index[None]
            whole = segments is None or isinstance(segments, Tiles)
            segments = segments if whole else [cast(Sequence[Segment], segments)]  # type: ignore[assignment]
        if index is not None:
            out = self._unsorted(x, weight, bias, index)
        elif isinstance(segments, Tiles):
            out = self._tiled(x, weight, bias, segments)
        elif segments is None and self.num_experts == 1 and x.device.type != "cpu":
            out = batched_product(as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias))
        else:
            runs = self._checked_runs(x, cast(Any, segments))
            out = segmented(x, weight, bias, runs)
        return out if batched else out[0]

    def _checked_runs(self, x: Tensor, segments: Sequence[Sequence[Segment]] | None) -> Sequence[Sequence[Segment]]:
        if segments is None:
            if self.num_experts > 1:
                raise ConfigError(f"ExpertLinear: with {self.num_experts} experts give index or segments")
            return [[Segment(0, x.shape[1], 0)]] * len(x)
        if len(segments) != len(x):
            raise DataError(f"ExpertLinear: expected segments of {len(x)} networks, got {len(segments)}")
        for runs in segments:
            at = 0
            for start, stop, expert in runs:
                if start != at or stop <= start or not 0 <= expert < self.num_experts:
                    raise DataError(
                        f"ExpertLinear: rows {start}..{stop} of expert {expert} do not follow row {at} or are not of "
                        f"experts 0..{self.num_experts - 1}"
                    )
                at = stop
            if at != x.shape[1]:
                raise DataError(f"ExpertLinear: segments cover {at} rows of {x.shape[1]}")
        return segments

    def _tiled(self, x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles) -> Tensor:
        expected = (len(x), x.shape[1] // tiles.length, self.num_experts)
        if x.shape[1] % tiles.length or tiles.indicator.shape != expected:
            raise DataError(
                f"ExpertLinear: {tuple(tiles.indicator.shape)} tiles of {tiles.length} rows are not those of an input "
                f"{tuple(x.shape)} for {self.num_experts} experts"
            )
        return tiled_product(as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias), tiles)

    def _unsorted(self, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
        if index.shape != x.shape[:2]:
            raise DataError(f"ExpertLinear: expected an index {tuple(x.shape[:2])}, got {tuple(index.shape)}")
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise DataError(f"index: expected whole numbers of experts 0..{self.num_experts - 1}, got {index.dtype}")
        if followed() or not has_values(index):
            return chosen(x, weight, bias, index)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.num_experts:
            found = f"{int(index.min())}..{int(index.max())}"
            raise DataError(f"index: expected experts 0..{self.num_experts - 1}, got {found}")
        sorts = [nested_sort([row]) for row in index]
        order = torch.stack([s.order for s in sorts])[..., None]
        rows = torch.gather(x, 1, order.expand(-1, -1, x.shape[2]))
        out = segmented(rows, weight, bias, [s.segments[0] for s in sorts])
        back = torch.argsort(order, 1).expand(-1, -1, out.shape[2])
        return torch.gather(out, 1, back)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_features}, {self.out_features}, num_experts={self.num_experts}, bias={self.bias_kind}, "
            f"num_networks={self.num_networks}"
        )
