"""The lift C -> C n that turns a spline convolution into an ordinary one, by three routes with one result.

`dense` evaluates every basis function and is what a compiler fuses; `scatter` evaluates the p + 1 functions that are
not zero, keeps the input alone for the backward pass and is the quickest on a CPU without a compiler; `operator` is one
operator of torch's, on a GPU one kernel (`framework.nn.splines.operator`). All put the n values of a channel side by
side in memory, so that the lifted map is in channels-last order, in which wide convolutions are quickest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from framework.nn.precision import at_least_float32, autocast_dtype, without_autocast
from framework.nn.splines.bspline import SplineGrid, dense_basis
from framework.nn.splines.operator import lift
from framework.nn.splines.scatter import Base, scatter_gradient, scatter_values

Implementation = Literal["auto", "dense", "scatter", "recompute", "operator"]
Route = Literal["dense", "scatter", "operator"]


def expand(x: Tensor, grid: SplineGrid, base: Base | None, route: Route, like: torch.dtype | None = None) -> Tensor:
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
    if dtype != torch.float64:
        dtype = autocast_dtype(device) or dtype
    with without_autocast(device):
        if route == "dense":
            return _expand_dense(x, grid, base).to(dtype)
        return _Scatter.apply(x, grid, base, dtype) if route == "scatter" else lift(x, grid, base, dtype)


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
        return scatter_gradient(x, cast(Any, ctx).grid, cast(Any, ctx).base, gradient), None, None, None


def lifted_again(x: Tensor, grid: SplineGrid, base: Base | None, dtype: torch.dtype) -> Tensor:
    """The values that the device's own route gave for x, without a graph."""
    return scatter_values(x, grid, base, dtype) if x.device.type == "cpu" else lift(x, grid, base, dtype)


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
