"""The lift C -> C n that turns a spline convolution into an ordinary one, by two routes with one result.

`dense` evaluates every basis function and is what a compiler fuses; `scatter` evaluates the p + 1 functions that are
not zero, keeps the input alone for the backward pass and is the quickest without a compiler. Both put the n values of a
channel side by side in memory, so that the lifted map is in channels-last order, in which wide convolutions are
quickest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from framework.nn.precision import at_least_float32
from framework.nn.splines.bspline import SplineGrid, dense_basis, local_slopes, local_values, locate

Base = Literal["silu", "linear"]
Implementation = Literal["auto", "dense", "scatter", "recompute"]


def expand(
    x: Tensor, grid: SplineGrid, base: Base | None, route: Literal["dense", "scatter"], like: torch.dtype | None = None
) -> Tensor:
    """Basis values, and the base function's if there is one, of every element.

    Args:
        x: (...) real; the cell is found and the basis evaluated in at least float32, also under autocast.
        grid: the spline space.
        base: adds one more value, SiLU(x) or x.
        route: see the module's docstring.
        like: dtype of the weights that the values meet; None: float32.

    Returns:
        (..., n) or (..., n + 1) in autocast's dtype where it is on, else in what torch promotes x's and `like` to.
    """
    device = x.device.type
    dtype = torch.promote_types(x.dtype, torch.float32 if like is None else like)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _expand_dense(x, grid, base).to(dtype) if route == "dense" else _Scatter.apply(x, grid, base, dtype)


def _expand_dense(x: Tensor, grid: SplineGrid, base: Base | None) -> Tensor:
    values = dense_basis(x, grid)
    if base is None:
        return values
    x = at_least_float32(x)
    extra = F.silu(x) if base == "silu" else x
    return torch.cat([values, extra.unsqueeze(-1)], -1)


class _Scatter(torch.autograd.Function):
    """The p + 1 live values written to their places; the backward pass rebuilds everything from x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: SplineGrid, base: Base | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid, ctx.base = grid, base
        return scatter_values(x, grid, base, dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = cast(Any, ctx).saved_tensors
        return _scatter_gradient(x, cast(Any, ctx).grid, cast(Any, ctx).base, gradient), None, None, None


def scatter_values(x: Tensor, grid: SplineGrid, base: Base | None, dtype: torch.dtype) -> Tensor:
    """The forward pass of the `scatter` route: (...) -> (..., n) or (..., n + 1) of `dtype`, without a graph."""
    exact = at_least_float32(x).contiguous()
    inside, index, u, dropped = _cells(exact, grid)
    values = exact.new_empty((*x.shape, grid.order + 1))
    local_values(u, grid.order, values)
    if grid.tail == "linear":
        slopes = torch.empty_like(values)
        local_slopes(u, grid.order, slopes)
        values.addcmul_(slopes, (exact - inside).unsqueeze(-1), value=1 / grid.step)
    if dropped is not None:
        values.masked_fill_(dropped, 0)
    out = torch.zeros((*x.shape, grid.basis + (base is not None)), dtype=dtype, device=x.device)
    out.scatter_(-1, index, values.to(dtype))
    if base is not None:
        out[..., -1] = F.silu(exact) if base == "silu" else exact
    return out


def _scatter_gradient(x: Tensor, grid: SplineGrid, base: Base | None, gradient: Tensor) -> Tensor:
    """The gradient of the input; autograd follows it in turn where a graph of it is asked for (create_graph)."""
    exact = at_least_float32(x).contiguous()
    inside, index, u, dropped = _cells(exact, grid)
    slopes = exact.new_empty((*x.shape, grid.order + 1))
    local_slopes(u, grid.order, slopes)
    if dropped is not None:
        slopes.masked_fill_(dropped, 0)
    slopes.mul_(gradient.gather(-1, index))
    result = slopes.sum(-1).mul_(1 / grid.step)
    if grid.tail == "clamp":
        result.masked_fill_(inside != exact, 0)
    if base == "linear":
        result += gradient[..., -1]
    elif base == "silu":
        result += _silu_gradient(gradient[..., -1].to(exact.dtype), exact)
    return result.to(x.dtype)


def _silu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(gradient, x)
    gate = torch.sigmoid(x)  # torch's fused form has no derivative
    return gradient * gate * (1 + x * (1 - gate))


def _cells(x: Tensor, grid: SplineGrid) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Clamped values, indices (..., p + 1) of the live functions, places in the cells, and what falls off the grid."""
    inside = x if grid.tail == "zero" else x.clamp(grid.low, grid.high)
    cell, u = locate(inside, grid)
    index = cell.unsqueeze(-1) + torch.arange(grid.order + 1, device=x.device)
    if grid.tail != "zero":
        return inside, index, u, None
    dropped = (index < 0) | (index >= grid.basis)
    # p + 1 neighbours stay distinct modulo n >= p + 1, so that a dropped zero never meets a live value
    return inside, index.remainder_(grid.basis), u, dropped


@contextmanager
def rebuild_in_backward(held: list[tuple[Tensor, Callable[[], Tensor]]]) -> Iterator[None]:
    """Inside, autograd keeps none of the given tensors: it calls their functions again in the backward pass.

    Args:
        held: (tensor, function that makes an equal one).
    """

    # addresses, not tensors: the hooks outlive the forward pass and must not keep what they stand for
    known = [(tensor.data_ptr(), tensor.numel(), rebuild) for tensor, rebuild in held]

    def pack(tensor: Tensor) -> Any:
        for address, numel, rebuild in known:
            if tensor.data_ptr() == address and tensor.numel() == numel:
                return rebuild, tensor.shape, tensor.stride()
        return tensor

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        rebuild, shape, stride = packed
        return rebuild().as_strided(shape, stride)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
