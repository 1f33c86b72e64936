"""The lift as two Triton kernels: a tile of elements by all their basis functions, written and read in one go.

Each row of n values is written whole, zeros included, and read whole in the backward pass, which sums along it: no
scattering, no atomic addition, and nothing kept but x. Values and slopes are those of `bspline.local_values` and
`local_slopes`. Imported where torch has Triton and the tensors are on a GPU; Triton's interpreter runs it on a CPU.
"""

# ruff: noqa: RET505 (Triton takes the branch that a constant chooses, and no code behind it)
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from framework.nn.splines.bspline import SplineGrid

_TAILS = {"linear": 0, "clamp": 1, "zero": 2}
_BASES = {None: 0, "silu": 1, "linear": 2}
#: values in a tile
TILE = 2048


@triton.jit
def _cell(x, LOW: tl.constexpr, HIGH: tl.constexpr, SIZE: tl.constexpr, ORDER: tl.constexpr, TAIL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The clamped value, its cell, and its place in it; NaN stays NaN in some cell."""
    inside = x
    if TAIL != 2:
        inside = tl.where(x < LOW, LOW, tl.where(x > HIGH, HIGH, x))
    t = (inside - LOW) * (SIZE / (HIGH - LOW))
    m = tl.floor(t)
    margin: tl.constexpr = (ORDER + 1) if TAIL == 2 else 0
    m = tl.where(m < -margin, -margin, tl.where(m > SIZE - 1 + margin, SIZE - 1 + margin, m))
    return inside, tl.where(m == m, m, 0.0).to(tl.int32), t - m


@triton.jit
def _values(u, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    v = 1 - u
    if ORDER == 1:
        return v, u, u, u
    elif ORDER == 2:
        first, last = v * v * 0.5, u * u * 0.5
        return first, 1 - first - last, last, last
    else:
        first, last = v * v * v / 6, u * u * u / 6
        return first, last * 3 - u * u + 2 / 3, first * 3 - v * v + 2 / 3, last


@triton.jit
def _slopes(u, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    v = 1 - u
    if ORDER == 1:
        return tl.where(u > 0, -1.0, -1.0), tl.where(u > 0, 1.0, 1.0), u, u  # constants, for NaN too
    elif ORDER == 2:
        return -v, v - u, u, u
    else:
        return -0.5 * v * v, u * (1.5 * u - 2), v * (2 - 1.5 * v), 0.5 * u * u


@triton.jit
def _spread(place, first, second, third, fourth, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The p + 1 values (BLOCK,) at their places 0 .. p of (BLOCK, COLUMNS), 0 elsewhere."""
    out = tl.where(place == 0, first[:, None], 0.0)
    out = tl.where(place == 1, second[:, None], out)
    if ORDER > 1:
        out = tl.where(place == 2, third[:, None], out)
    if ORDER > 2:
        out = tl.where(place == 3, fourth[:, None], out)
    return out


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, count,
    LOW: tl.constexpr, HIGH: tl.constexpr, SIZE: tl.constexpr, ORDER: tl.constexpr, TAIL: tl.constexpr,
    BASE: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + rows, mask=rows < count, other=0.0).to(INNER)
    inside, cell, u = _cell(x, LOW, HIGH, SIZE, ORDER, TAIL)
    first, second, third, fourth = _values(u, ORDER)
    if TAIL == 0:
        beyond = (x - inside) * (SIZE / (HIGH - LOW))
        s0, s1, s2, s3 = _slopes(u, ORDER)
        first, second = first + beyond * s0, second + beyond * s1
        third, fourth = third + beyond * s2, fourth + beyond * s3
    columns = tl.arange(0, PADDED)
    out = _spread(columns[None, :] - cell[:, None], first, second, third, fourth, ORDER)
    if BASE > 0:
        extra = x / (1 + tl.exp(-x)) if BASE == 1 else x
        out = tl.where(columns[None, :] == SIZE + ORDER, extra[:, None], out)
    there = (rows[:, None] < count) & (columns[None, :] < COLUMNS)
    tl.store(out_ptr + rows[:, None] * COLUMNS + columns[None, :], out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x_ptr, g_ptr, out_ptr, count,
    LOW: tl.constexpr, HIGH: tl.constexpr, SIZE: tl.constexpr, ORDER: tl.constexpr, TAIL: tl.constexpr,
    BASE: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + rows, mask=rows < count, other=0.0).to(INNER)
    columns = tl.arange(0, PADDED)
    there = (rows[:, None] < count) & (columns[None, :] < COLUMNS)
    g = tl.load(g_ptr + rows[:, None] * COLUMNS + columns[None, :], mask=there, other=0.0).to(INNER)
    inside, cell, u = _cell(x, LOW, HIGH, SIZE, ORDER, TAIL)
    s0, s1, s2, s3 = _slopes(u, ORDER)
    # the base's column and, with tail `zero`, what lies off the grid are no functions of the spline
    of_spline = columns[None, :] < SIZE + ORDER
    slopes = tl.where(of_spline, _spread(columns[None, :] - cell[:, None], s0, s1, s2, s3, ORDER), 0.0)
    result = tl.sum(tl.where(slopes == 0, 0.0, slopes * g), 1) * (SIZE / (HIGH - LOW))
    if TAIL == 1:
        result = tl.where(inside != x, 0.0, result)
    if BASE > 0:
        of_base = tl.sum(tl.where(columns[None, :] == SIZE + ORDER, g, 0.0), 1)
        if BASE == 1:
            gate = 1 / (1 + tl.exp(-x))
            of_base = of_base * gate * (1 + x * (1 - gate))
        result += of_base
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < count)


def _settings(x: Tensor, grid: SplineGrid, base: str | None) -> tuple[tuple[int], dict[str, Any]]:
    columns = grid.basis + (base is not None)
    padded = triton.next_power_of_2(columns)
    block = max(16, TILE // padded)
    return (triton.cdiv(x.numel(), block),), {
        "LOW": grid.low,
        "HIGH": grid.high,
        "SIZE": grid.size,
        "ORDER": grid.order,
        "TAIL": _TAILS[grid.tail],
        "BASE": _BASES[base],
        "COLUMNS": columns,
        "PADDED": padded,
        "BLOCK": block,
        "INNER": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }


def values(x: Tensor, grid: SplineGrid, base: str | None, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., n) or (..., n + 1) of `dtype`; x of any floating dtype, contiguous."""
    launch, settings = _settings(x, grid, base)
    out = torch.empty((*x.shape, settings["COLUMNS"]), dtype=dtype, device=x.device)
    if x.numel():
        _forward[launch](x, out, x.numel(), **settings)
    return out


def gradient(x: Tensor, grid: SplineGrid, base: str | None, g: Tensor) -> Tensor:
    """The gradient of x, like x, from that of the values; both contiguous."""
    launch, settings = _settings(x, grid, base)
    out = torch.empty_like(x)
    if x.numel():
        _backward[launch](x, g, out, x.numel(), **settings)
    return out
