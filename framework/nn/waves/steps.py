"""One step of a rollout and its adjoint, and chains of steps: all in place, with the backward written out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

Scheme = Literal["separable", "row_first", "column_first", "wavefront"]

#: order of the matrices in `Finola.directional`
DIRECTIONS = ("right", "left", "down", "up")

#: what the adjoint needs, in the order in which forward came to it: backward pops it from the end
Tape = list[Tensor | None]


@dataclass(frozen=True)
class Plan:
    """What a rollout needs to know beside its tensors; `start` is (row, column)."""

    size: tuple[int, int]
    start: tuple[int, int]
    scheme: Scheme
    normalize: bool
    eps: float
    product: torch.dtype  # of the factors of every matrix product
    regional: bool = False  # the repeated step is compiled

    def takes(self, axis: int) -> bool:
        """Whether the map that walks along an axis (0 horizontal, 1 vertical) first is part of the scheme."""
        return self.scheme == "separable" or self.scheme == ("row_first", "column_first")[axis]

    def length(self, direction: int) -> int:
        """Steps from the start to the border in one of DIRECTIONS."""
        (height, width), (row, col) = self.size, self.start
        return (width - 1 - col, col, height - 1 - row, row)[direction]


def normalized(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """zhat = (z - mean) / sqrt(var + eps) over the last axis (population variance), and 1 / sqrt(var + eps).

    Args:
        z: (..., C) float32 or float64.
        eps: added to the variance.

    Returns:
        zhat like `z`, and (..., 1) of its reciprocal deviation.
    """
    zhat, _, rstd = torch.native_layer_norm(z, z.shape[-1:], None, None, eps)
    return zhat, rstd


def advance(z: Tensor, weight: Tensor, plan: Plan, tape: Tape | None) -> None:
    """z (D, n, C) += zhat W^T with one matrix of weight (D, C, C) per leading index; records what the adjoint needs."""
    factor, rstd = normalized(z, plan.eps) if plan.normalize else (z.clone(), None)
    if plan.product == z.dtype:
        z.baddbmm_(factor, weight.mT)
    else:
        factor = factor.to(plan.product)
        z += torch.bmm(factor, weight.mT)
    if tape is not None:
        tape += (factor, rstd)


def retreat(g: Tensor, factor: Tensor, rstd: Tensor | None, weight: Tensor, grad_weight: Tensor) -> None:
    """The adjoint of `advance`: g (D, n, C) from after the step to before it; adds to grad_weight (D, C, C).

    With n = W^T g: dz = g + (n - mean(n) - zhat mean(n zhat)) / sigma.
    """
    cotangent = g.to(factor.dtype)
    if factor.dtype == g.dtype:
        grad_weight.baddbmm_(cotangent.mT, factor)
    else:
        grad_weight += torch.bmm(cotangent.mT, factor)
    g_factor = torch.bmm(cotangent, weight).to(g.dtype)
    if rstd is None:
        g += g_factor
    else:
        g.addcmul_(norm_adjoint(g_factor, factor.to(g.dtype)), rstd)


def norm_adjoint(g: Tensor, zhat: Tensor) -> Tensor:
    """g - mean(g) - zhat mean(g zhat) over the last axis: layer norm's own adjoint at mean 0 and deviation 1."""
    mean, rstd = g.new_zeros((*g.shape[:-1], 1)), g.new_ones((*g.shape[:-1], 1))
    return torch.ops.aten.native_layer_norm_backward(
        g, zhat, g.shape[-1:], mean, rstd, None, None, [True, False, False]
    )[0]


# ---------------------------------------------------------------------- straight chains


def roll(
    z0: Tensor,
    weight: Tensor,
    lengths: Sequence[int],
    plan: Plan,
    emit: Callable[[int, int, Tensor], None],
    tape: Tape | None,
) -> None:
    """Chains of `lengths` (falling) steps from one start, one per matrix: emit(chain, step, (n, C)); adds to `tape`."""
    z, chains = z0.repeat(len(lengths), 1, 1), len(lengths)
    states = z.unbind(0)
    for step in range(1, lengths[0] + 1):
        if lengths[chains - 1] < step:  # the shorter chain has reached the border
            chains = sum(length >= step for length in lengths)
            z, weight = z[:chains], weight[:chains]
        advance(z, weight, plan, tape)
        for chain in range(chains):
            emit(chain, step, states[chain])


def roll_back(
    tape: Tape,
    weight: Tensor,
    lengths: Sequence[int],
    like: Tensor,
    absorb: Callable[[int, int, Tensor], None],
    grad_weight: Tensor,
) -> Tensor:
    """The adjoint of `roll`, whose end of the tape it takes off.

    absorb(chain, step, g) adds what the emitted cell received; returns the start's share.
    """
    g = like.new_zeros((len(lengths), *like.shape))
    for step in range(lengths[0], 0, -1):
        alive = sum(length >= step for length in lengths)
        for chain in range(alive):
            absorb(chain, step, g[chain])
        rstd, factor = tape.pop(), tape.pop()
        retreat(g[:alive], cast(Tensor, factor), rstd, weight[:alive], grad_weight[:alive])
    return g.sum(0)


def banks(axis: int, plan: Plan) -> list[list[int]]:
    """The directions of an axis (0 horizontal, 1 vertical), longest first, each by itself.

    A CPU core keeps one chain's state in its cache; an accelerator, for which that is a waste, has `Together`.
    """
    return [[d] for d in sorted((2 * axis, 2 * axis + 1), key=plan.length, reverse=True) if plan.length(d)]
