"""The lift as one operator of torch's dispatcher: what an accelerator runs, and what counters and compilers see.

`explicit_vision::spline_lift` keeps nothing but its input for the backward pass, which is an operator as well. Where
torch has Triton, both are one kernel (`triton_lift`); elsewhere they take the `scatter` route's steps.
"""

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from framework.nn.splines.bspline import SplineGrid, Tail
from framework.nn.splines.scatter import Base, scatter_gradient, scatter_values

#: multiplications and additions of finding a cell and evaluating the p + 1 functions there, and their slopes
VALUE_OPERATIONS = {1: 4, 2: 10, 3: 18}
SLOPE_OPERATIONS = {1: 3, 2: 5, 3: 14}


@functools.cache
def kernels() -> Any:
    """The Triton kernels, or None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("framework.nn.splines.triton_lift")


def _grid(size: int, order: int, low: float, high: float, tail: str) -> SplineGrid:
    kind: Tail = tail  # type: ignore[assignment]
    return SplineGrid(size, order, low, high, kind)


@torch.library.custom_op("explicit_vision::spline_lift", mutates_args=())
def spline_lift(
    x: Tensor, size: int, order: int, low: float, high: float, tail: str, base: str, dtype: torch.dtype
) -> Tensor:
    """(...) -> (..., n), or (..., n + 1) with a base; see `expand`. `base` is empty for none."""
    grid, chosen = _grid(size, order, low, high, tail), _base(base)
    if x.is_cuda and x.is_floating_point() and kernels() is not None:
        return kernels().values(x.contiguous(), grid, chosen, dtype)
    return scatter_values(x, grid, chosen, dtype)


@spline_lift.register_fake
def _(x: Tensor, size: int, order: int, low: float, high: float, tail: str, base: str, dtype: torch.dtype) -> Tensor:
    return torch.empty((*x.shape, size + order + bool(base)), dtype=dtype, device=x.device)


@torch.library.custom_op("explicit_vision::spline_lift_backward", mutates_args=())
def spline_lift_backward(
    gradient: Tensor, x: Tensor, size: int, order: int, low: float, high: float, tail: str, base: str
) -> Tensor:
    """The gradient of x from that of the values."""
    grid, chosen = _grid(size, order, low, high, tail), _base(base)
    if x.is_cuda and kernels() is not None:
        return kernels().gradient(x.contiguous(), grid, chosen, gradient.contiguous())
    return scatter_gradient(x, grid, chosen, gradient)


@spline_lift_backward.register_fake
def _(gradient: Tensor, x: Tensor, size: int, order: int, low: float, high: float, tail: str, base: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _base(base: str) -> Base | None:
    return base or None  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *settings, _ = inputs
    ctx.save_for_backward(x)
    ctx.settings = settings


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # a graph of the gradient is asked for: steps that autograd can follow in turn
        *grid, base = ctx.settings
        result = scatter_gradient(x, _grid(*grid), _base(base), gradient)
    else:
        result = spline_lift_backward(gradient, x, *ctx.settings)
    return (result, *[None] * 7)


spline_lift.register_autograd(_gradient, setup_context=_setup)


@register_flop_formula(torch.ops.explicit_vision.spline_lift)
def _(x: Any, size: int, order: int, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _count(x) * VALUE_OPERATIONS[order]


@register_flop_formula(torch.ops.explicit_vision.spline_lift_backward)
def _(gradient: Any, x: Any, size: int, order: int, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _count(x) * (SLOPE_OPERATIONS[order] + 2 * (order + 1))


def _count(shape: Any) -> int:
    return int(torch.Size(shape).numel())


def lift(x: Tensor, grid: SplineGrid, base: Base | None, dtype: torch.dtype) -> Tensor:
    """`spline_lift` of a grid: (...) -> (..., n) or (..., n + 1) of `dtype`."""
    return spline_lift(x, grid.size, grid.order, grid.low, grid.high, grid.tail, base or "", dtype)
