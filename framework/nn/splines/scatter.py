"""The p + 1 basis functions that are not zero, written to their places; the gradient gathered from there."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.nn.precision import at_least_float32
from framework.nn.splines.bspline import SplineGrid, local_slopes, local_values, locate, within

Base = Literal["silu", "linear"]


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


def scatter_gradient(x: Tensor, grid: SplineGrid, base: Base | None, gradient: Tensor) -> Tensor:
    """The gradient of the input; autograd follows it in turn where a graph of it is asked for (create_graph)."""
    exact = at_least_float32(x).contiguous()
    inside, index, u, dropped = _cells(exact, grid)
    slopes = exact.new_empty((*x.shape, grid.order + 1))
    local_slopes(u, grid.order, slopes)
    if dropped is not None:
        slopes.masked_fill_(dropped, 0)
    # into what was gathered, which may be many gradients at once
    slopes = gradient.gather(-1, index).to(slopes.dtype).mul_(slopes)
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
    if grid.tail == "zero":
        inside = x
    elif torch.is_grad_enabled():  # a second derivative is asked for, which at the ends is that of the inside
        inside = within(x, grid)
    else:
        inside = x.clamp(grid.low, grid.high)
    cell, u = locate(inside, grid)
    index = cell.unsqueeze(-1) + torch.arange(grid.order + 1, device=x.device)
    if grid.tail != "zero":
        return inside, index, u, None
    dropped = (index < 0) | (index >= grid.basis)
    # p + 1 neighbours stay distinct modulo n >= p + 1, so that a dropped zero never meets a live value
    return inside, index.remainder_(grid.basis), u, dropped
