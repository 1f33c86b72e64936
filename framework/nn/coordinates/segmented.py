"""Products of rows with their experts' matrices: run by run with the backward written out, and in plain operations."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.nn.modes import batched, followed
from framework.nn.precision import autocast_dtype

#: (start, stop, expert) of rows that belong together
Run = tuple[int, int, int]


def segmented(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Sequence[Run]]) -> Tensor:
    """Sorted rows (B, N, in) through their runs' matrices (B, experts, out, in), a product a run: (B, N, out)."""
    x, weight, bias = as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias)
    return _product(x, weight, bias, segments)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Sequence[Run]]) -> Tensor:
    if followed() or batched(x, weight):
        return _plain(x, weight, bias, segments)
    return cast(Tensor, _SegmentedLinear.apply(x, weight, bias, segments))


def as_autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype where autocast is on."""
    return x.to(autocast_dtype(x.device.type) or x.dtype)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Sequence[Run]]) -> Tensor:
    return torch.stack([_sliced(x, weight, bias, b, runs) for b, runs in enumerate(segments)])


def _sliced(x: Tensor, weight: Tensor, bias: Tensor | None, b: int, runs: Sequence[Run]) -> Tensor:
    """One network's runs in plain operations: (N, out)."""
    runs = runs or [(0, 0, 0)]  # of no rows
    return torch.cat([F.linear(x[b, s:t], weight[b, e], _own(bias, b, e)) for s, t, e in runs])


def _own(bias: Tensor | None, b: int, e: int) -> Tensor | None:
    return bias if bias is None else bias[b, e] if bias.dim() == 3 else bias[b]


def chosen(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """Every expert on all rows, and the rows' own kept: right for any index, which a compiler cannot look at.

    Costs as many products as there are experts. An expert out of range, which no error can report here, gives NaN.
    """
    x, weight, bias = as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias)
    out = x.new_full((), torch.nan).expand(*x.shape[:2], weight.shape[2])
    for e in range(weight.shape[1]):
        own = x @ weight[:, e].transpose(1, 2)
        if bias is not None:
            own = own + (bias[:, e] if bias.dim() == 3 else bias)[:, None]
        out = torch.where((index == e)[..., None], own, out)
    return out


class _SegmentedLinear(torch.autograd.Function):
    """Products of row slices, written into outputs allocated once.

    Autograd's own slicing would zero-pad every slice's gradient to the full size. The gradients are sums of the same
    kind, so that they are differentiable in turn where a graph of them is asked for (create_graph).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, segments: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.segments, ctx.bias_shape = segments, None if bias is None else bias.shape
        out = x.new_empty(*x.shape[:2], weight.shape[2])
        for b, runs in enumerate(segments):
            for start, stop, e in runs:
                rows, matrix, target = x[b, start:stop], weight[b, e].t(), out[b, start:stop]
                if bias is None:
                    torch.mm(rows, matrix, out=target)
                else:
                    torch.addmm(bias[b, e] if bias.dim() == 3 else bias[b], rows, matrix, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if batched(grad):
            return (*_of_many(x, weight, ctx.bias_shape, grad, ctx.segments, ctx.needs_input_grad), None)
        if torch.is_grad_enabled():
            return (*_twice(x, weight, ctx.bias_shape, grad, ctx.segments, ctx.needs_input_grad), None)
        grad = grad.contiguous()
        grad_x = torch.empty_like(x) if needs_x else None
        # bfloat16 sums over many runs would lose bits
        dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        per_expert = needs_bias and len(ctx.bias_shape) == 3
        grad_bias = grad.new_zeros(ctx.bias_shape, dtype=dtype) if per_expert else None
        for b, runs in enumerate(ctx.segments):
            for start, stop, e in runs:
                rows = grad[b, start:stop]
                if grad_x is not None:
                    torch.mm(rows, weight[b, e], out=grad_x[b, start:stop])
                if grad_weight is not None:
                    _add_outer(grad_weight[b, e], rows, x[b, start:stop])
                if grad_bias is not None:
                    grad_bias[b, e] += rows.sum(0, dtype=dtype)
        if needs_bias and not per_expert:
            grad_bias = grad.sum(1, dtype=dtype)
        return grad_x, _as(grad_weight, weight), _as(grad_bias, weight), None


def _add_outer(into: Tensor, rows: Tensor, x: Tensor) -> None:
    if into.dtype == rows.dtype:
        into.addmm_(rows.t(), x)
    else:
        into += rows.t() @ x


def _twice(
    x: Tensor, weight: Tensor, bias_shape: Any, grad: Tensor, segments: Any, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias as functions that are differentiable in turn."""
    experts = weight.shape[1]
    grad_x = _product(grad, weight.mT, None, segments) if needs[0] else None
    grad_weight = _SegmentedOuter.apply(grad, x, segments, experts) if needs[1] else None
    grad_bias = None
    if needs[2] and len(bias_shape) == 3:
        grad_bias = _SegmentedOuter.apply(grad, grad.new_ones(*grad.shape[:2], 1), segments, experts).squeeze(-1)
    elif needs[2]:
        grad_bias = grad.sum(1)
    return grad_x, grad_weight, grad_bias


def _of_many(
    x: Tensor, weight: Tensor, bias_shape: Any, grad: Tensor, segments: Any, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same for many gradients at once: those of the plain form."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # the bias itself was not kept, and no gradient depends on it
        bias = None if bias_shape is None else weight.new_zeros(bias_shape, requires_grad=True)
        out = _plain(x, weight, bias, segments)
        wanted = [t for t, need in zip((x, weight, bias), needs, strict=False) if need]
        found = iter(torch.autograd.grad(out, cast(Any, wanted), grad, create_graph=again))
    return next(found) if needs[0] else None, next(found) if needs[1] else None, next(found) if needs[2] else None


class _SegmentedOuter(torch.autograd.Function):
    """Every expert's sum of grad_i x_i^T over its rows: (B, N, out), (B, N, in) -> (B, experts, out, in)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, segments: Any, experts: int) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.segments = segments
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = x.new_zeros((len(x), experts, grad.shape[2], x.shape[2]), dtype=dtype)
        for b, runs in enumerate(segments):
            for start, stop, e in runs:
                _add_outer(out[b, e], grad[b, start:stop], x[b, start:stop])
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad, x = ctx.saved_tensors
        needs_grad, needs_x, *_ = ctx.needs_input_grad
        of_grad = _product(x, cotangent, None, ctx.segments) if needs_grad else None
        of_x = _product(grad, cotangent.mT, None, ctx.segments) if needs_x else None
        return of_grad, of_x, None, None


def _as(grad: Tensor | None, like: Tensor) -> Tensor | None:
    return None if grad is None else grad.to(like.dtype)
