"""Lifts for inference: a table of float values with linear interpolation, or of bytes, in place of polynomials.

A table is uniform in x, so that an entry is found by one multiplication. The floats' has an entry at every knot of the
grid and one more at each end, from which the function goes on as its tail does; between entries a cubic spline differs
from its chord by at most d^2 / 8 times its largest second derivative, d the distance of entries (linear interpolation's
classical bound). The bytes' covers a range, in which it holds the middle of every interval, and clamps beyond.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import followed
from framework.nn.precision import at_least_float32
from framework.nn.splines.bspline import SplineGrid, dense_basis, end_slopes, is_whole
from framework.nn.splines.expansion import Base

#: number types by their bytes: rows of a table are read as one number where there is one of their length
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def read_rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index]: (N, R) contiguous and (M,) int32 -> (M, R), at the speed of single numbers."""
    word = _WORDS.get(table.shape[1] * table.element_size())
    if word is None:
        return torch.index_select(table, 0, index)
    found = torch.index_select(table.view(word).flatten(), 0, index)
    return found.view(table.dtype).view(len(index), table.shape[1])


def place(x: Tensor, rate: float, start: float, last: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where every value lies in a table, in as few passes over memory as there can be.

    Args:
        x: (..., C) float32 or float64.
        rate: entries per unit of x.
        start: the place of x = 0.
        last: interval, in which everything above lies; everything below and NaN lie in interval 0.
        offsets: (C,) or () int32, where a channel's table begins.

    Returns:
        the place in the interval, (..., C), outside [0, 1] beyond the ends; and the entry, flat int32.
    """
    t = torch.add(x.new_full((), start), x, alpha=rate)
    cell = t.detach().floor()
    # fmax and fmin take the number where the other is none
    torch.fmax(cell, cell.new_zeros(()), out=cell)
    torch.fmin(cell, cell.new_full((), last), out=cell)
    index = cell.to(torch.int32)
    if offsets.ndim:
        index += offsets
    return t.sub_(cell), index.flatten()


class Shapes(NamedTuple):
    """Functions of a channel's values, R each: splines on one grid, and a base function where there is one."""

    grid: SplineGrid
    coefficients: Tensor  # (C or 1, n, S) float64; R = S, one more with a base
    base: Base | None

    @property
    def width(self) -> int:
        """R."""
        return self.coefficients.shape[2] + (self.base is not None)

    def splines(self, points: Tensor) -> Tensor:
        """(Q,) float64 -> (Q, C or 1, S) float64."""
        return torch.einsum("qn,cns->qcs", dense_basis(points, self.grid), self.coefficients.to(points.device))

    def values(self, points: Tensor) -> Tensor:
        """(Q,) float64 -> (Q, C or 1, R) float64."""
        splines = self.splines(points)
        if self.base is None:
            return splines
        extra = F.silu(points) if self.base == "silu" else points
        return torch.cat([splines, extra[:, None, None].expand(-1, splines.shape[1], 1)], -1)

    @property
    def reach(self) -> tuple[float, float]:
        """Where the functions are not yet their tails."""
        more = self.grid.order * self.grid.step if self.grid.tail == "zero" else 0.0
        return self.grid.low - more, self.grid.high + more


def second_differences(coefficients: Tensor, grid: SplineGrid, dim: int = 0) -> Tensor:
    """max |c_k - 2 c_(k+1) + c_(k+2)| along a dimension of coefficients: h^2 times the largest second derivative.

    The second derivative of a cubic spline is linear between the knots and one of these over h^2 at each of them; that
    of a quadratic one is constant between the knots. Of degree 1 it is 0: a table with all knots is exact.
    """
    c = coefficients.movedim(dim, 0)
    if grid.order == 1:
        return torch.zeros_like(c[0])
    if grid.tail == "zero":
        beyond = c.new_zeros((grid.order, *c.shape[1:]))
        c = torch.cat([beyond, c, beyond])
    return (c[2:] - 2 * c[1:-1] + c[:-2]).abs().amax(0)


class ExactLift(nn.Module):
    """The functions themselves: all basis functions, then the channels' own combinations of them."""

    coefficients: Tensor

    def __init__(self, shapes: Shapes, dtype: torch.dtype) -> None:
        super().__init__()
        self.grid, self.base, self.count = shapes.grid, shapes.base, shapes.width
        self.register_buffer("coefficients", shapes.coefficients.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C, R)."""
        exact = x.to(self.coefficients.dtype)
        values = (dense_basis(exact, self.grid).unsqueeze(-2) @ self.coefficients).squeeze(-2)
        return with_base(values, exact, self.base)


def with_base(values: Tensor, x: Tensor, base: Base | None) -> Tensor:
    """Adds the base function's value behind those of the splines."""
    if base is None:
        return values
    extra = F.silu(x) if base == "silu" else x
    return torch.cat([values, extra.unsqueeze(-1).to(values.dtype)], -1)


class TableLift(nn.Module):
    """Functions read off a table with linear interpolation; outside the grid exact, up to rounding, for every tail.

    Args:
        shapes: what the table is of.
        entries: L, at least, on the grid's range; rounded up so that every knot has an entry.
        dtype: float32 or float64.

    Attributes:
        table: buffer (C or 1 * (L + 2), S), the values.
        slope: buffer like it, the change to the next entry, beyond the ends the tail's.
        per_cell: entries on a grid cell.
    """

    table: Tensor
    slope: Tensor
    offsets: Tensor

    def __init__(self, shapes: Shapes, entries: int, dtype: torch.dtype) -> None:
        super().__init__()
        grid = shapes.grid
        if not is_whole(entries, 2):
            raise ConfigError(f"entries: expected a whole number of table entries, at least 2, got {entries!r}")
        self.grid, self.base, self.count = grid, shapes.base, shapes.width
        self.per_cell = math.ceil((entries - 1) / grid.size)
        self._low, high = shapes.reach
        intervals = self.per_cell * round((high - self._low) / grid.step)
        self._rate, self._last = self.per_cell / grid.step, intervals + 1
        # one interval beyond each end: the tail, whatever it is, is a line there
        points = self._low + torch.arange(-1, intervals + 3, dtype=torch.float64) / self._rate
        values = shapes.splines(points).transpose(0, 1)  # (C or 1, Q, S)
        if grid.tail != "linear":
            values[:, 0], values[:, -2:] = values[:, 1], values[:, -3:-2]
        table, slope = values[:, :-1], values.diff(dim=1)
        channels, self._length, width = table.shape
        self.register_buffer("table", table.reshape(-1, width).to(dtype).contiguous())
        self.register_buffer("slope", slope.reshape(-1, width).to(dtype).contiguous())
        offsets = self._length * torch.arange(channels, dtype=torch.int32)
        self.register_buffer("offsets", offsets if channels > 1 else offsets[0])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C, R); NaN gives NaN."""
        exact = x.to(torch.promote_types(self.table.dtype, torch.float32))  # a table in 16 bits is found exactly too
        if followed() or x.device.type != "cpu":
            t = exact * self._rate + (1 - self._low * self._rate)
            cell = torch.nan_to_num(t.floor()).clamp(0, self._last)
            index, u = cell.long() + self.offsets, self._clamped(t - cell)
            values = self.table[index] + u.unsqueeze(-1) * self.slope[index]
        else:
            t, index = place(exact, self._rate, 1 - self._low * self._rate, self._last, self.offsets)
            values = self._interpolated(index, self._clamped(t))
        return with_base(values, exact, self.base)

    def _clamped(self, u: Tensor) -> Tensor:
        if self.grid.tail == "linear":
            return u
        inside = u.clamp(0, 1)
        # a value on an entry has the slope behind it, where clamp has none
        return torch.where((u >= 0) & (u <= 1), u, inside) if u.requires_grad else inside

    def _interpolated(self, index: Tensor, u: Tensor) -> Tensor:
        values, slopes = (read_rows(t, index).to(u.dtype) for t in (self.table, self.slope))
        if values.shape[1] == 2 and values.dtype == torch.float32:
            # a pair as one complex number: one pass over numbers side by side
            sloped = slopes.view(torch.complex64).flatten().mul_(u.flatten())
            values = sloped.add_(values.view(torch.complex64).flatten()).view(torch.float32)
        else:
            values = torch.addcmul(values, slopes, u.reshape(-1, 1))
        return values.view(*u.shape, self.table.shape[1])


class ByteLift(nn.Module):
    """Functions read off a table of bytes, the nearest entry's; a range beyond which they keep their last value.

    A value is scale * (byte - zero_point). Rows are filled up to a power of two of bytes, read as one number; what
    fills them is the byte of 0.

    Args:
        shapes: what the table is of.
        entries: L, intervals of the range.
        covered: (low, high) in units of the input.

    Attributes:
        table: buffer (C or 1 * L, R filled up) uint8.
        scale: of the bytes.
        zero_point: the byte of 0.
    """

    table: Tensor
    offsets: Tensor

    def __init__(self, shapes: Shapes, entries: int, covered: tuple[float, float]) -> None:
        super().__init__()
        if not is_whole(entries, 2):
            raise ConfigError(f"entries: expected a whole number of table entries, at least 2, got {entries!r}")
        low, high = covered
        if not low < high:
            raise ConfigError(f"covered: expected two numbers low < high, got {covered}")
        self.covered, self._rate, self._last = covered, entries / (high - low), entries - 1
        ends = torch.linspace(low, high, entries + 1, dtype=torch.float64)
        values = shapes.values((ends[1:] + ends[:-1]) / 2).transpose(0, 1)  # (C or 1, L, R)
        self.count = values.shape[2]
        least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        self.scale = max((most - least) / 255, 1e-12)
        self.zero_point = round(-least / self.scale)
        quantised = (values / self.scale + self.zero_point).round().clamp(0, 255)
        fill = 1 << (self.count - 1).bit_length()
        self.width = fill if fill <= 16 else self.count
        quantised = F.pad(quantised, (0, self.width - self.count), value=self.zero_point)
        self.register_buffer("table", quantised.flatten(0, 1).to(torch.uint8).contiguous())
        offsets = entries * torch.arange(len(values), dtype=torch.int32)
        self.register_buffer("offsets", offsets if len(values) > 1 else offsets[0])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C, R filled up) uint8; NaN reads some entry, see `Int8Conv`."""
        exact, start = at_least_float32(x), -self.covered[0] * self._rate
        if followed() or x.device.type != "cpu":
            t = exact * self._rate + start
            return self.table[torch.nan_to_num(t).clamp(0, self._last).long() + self.offsets]
        _, index = place(exact.detach(), self._rate, start, self._last, self.offsets)
        return read_rows(self.table, index).view(*x.shape, self.width)

    def errors(self, shapes: Shapes) -> Tensor:
        """Bounds of |byte's value - function| in the covered range, (C or 1, R) float64."""
        low, high = self.covered
        entries = self._last + 1
        ends = torch.linspace(low, high, entries + 1, dtype=torch.float64)
        exact = shapes.values(ends).transpose(0, 1)
        said = self.scale * (
            self.table.double().cpu().view(len(exact), entries, -1)[..., : self.count] - self.zero_point
        )
        at_ends = torch.maximum((exact[:, 1:] - said).abs(), (exact[:, :-1] - said).abs()).amax(1)
        return at_ends + sag(shapes, (high - low) / entries)


def sag(shapes: Shapes, distance: float) -> Tensor:
    """Bounds of how far the functions leave their chords of a length, wherever these lie, (C or 1, R) float64.

    d^2 / 8 times the largest second derivative; a kink, where the slope jumps by s, adds s d / 4 at most.
    """
    grid, c = shapes.grid, shapes.coefficients
    found = second_differences(c, grid, 1) * (distance / grid.step) ** 2 / 8
    slopes = c.new_tensor(end_slopes(grid))
    if grid.order == 1:
        beyond = c.new_zeros((len(c), 1, c.shape[2])) if grid.tail == "zero" else c[:, :0]
        jumps = torch.cat([beyond, c, beyond], 1).diff(n=2, dim=1).abs() / grid.step
        found = found + (jumps.amax(1) if jumps.shape[1] else 0) * distance / 4
    if grid.tail == "clamp":
        found = found + torch.einsum("en,cns->ecs", slopes, c).abs().amax(0) * distance / 4
    if shapes.base is None:
        return found
    bend = 0.5 if shapes.base == "silu" else 0.0  # of SiLU at 0, its largest
    return torch.cat([found, found.new_full((len(found), 1), bend * distance**2 / 8)], 1)
