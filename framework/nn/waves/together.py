"""The separable scheme for an accelerator: all chains that can run together, in one product a step.

A launch costs more there than the arithmetic of a short chain. Right, left, down and up start from the same vector and
are one batched product a step; on a square map so are the four banks across them. The states of all steps stand in one
tensor, so that a map is put together, and its gradient taken apart, once and not at every step. All sizes follow from
the plan and nothing is read or copied from the host: the passes can be captured into a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain as chained
from typing import Any, cast

import torch
from torch import Tensor

from framework.nn.waves.steps import Plan, Tape


@dataclass
class Bank:
    """Chains that ran together.

    Attributes:
        directions: of `DIRECTIONS`, the longest chain first.
        states: (1 + steps, chains, n, C); behind a shorter chain's end zeros.
        moments: mean and reciprocal deviation of the states before every step, (living chains, n, 1); none without the
            normalisation.
    """

    directions: list[int]
    states: Tensor
    moments: list[tuple[Tensor, Tensor]]


def ahead(z: Tensor, weight: Tensor, new: Tensor, plan: Plan) -> tuple[Tensor, Tensor] | None:
    """Writes the states after a step, z + zhat W^T (k, n, C), into `new`; returns the moments of z."""
    factor, moments = z, None
    if plan.normalize:
        factor, *moments = torch.native_layer_norm(z, z.shape[-1:], None, None, plan.eps)
    if plan.product == z.dtype:
        torch.baddbmm(z, factor, weight.mT, out=new)
    else:
        torch.add(z, torch.bmm(factor.to(plan.product), weight.mT), out=new)
    return None if moments is None else (moments[0], moments[1])


def back(g: Tensor, before: Tensor, z: Tensor, moments: Any, weight: Tensor, plan: Plan) -> None:
    """The adjoint of `ahead` on the state: adds the gradient g (k, n, C) from after the step to that before it."""
    g_factor = torch.bmm(g.to(plan.product), weight).to(g.dtype)
    if moments is not None:
        g_factor = torch.ops.aten.native_layer_norm_backward(
            g_factor, z, z.shape[-1:], *moments, None, None, [True, False, False]
        )[0]
    before += g
    before += g_factor


@cache
def compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two steps compiled, alone: what surrounds them runs as it is."""
    return torch.compile(ahead), torch.compile(back)


class Together:
    """Both maps of the separable scheme, or one of `row_first` and `column_first`; an alternative to `Route`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.axes = [axis for axis in (0, 1) if plan.takes(axis)]
        steps: tuple[Callable[..., Any], Callable[..., Any]] = compiled() if plan.regional else (ahead, back)
        self.ahead, self.back = steps

    # ------------------------------------------------------------------ chains

    def _sorted(self, directions: Sequence[int]) -> list[int]:
        return sorted((d for d in directions if self.plan.length(d)), key=self.plan.length, reverse=True)

    def _alive(self, bank: list[int], step: int) -> int:
        return sum(self.plan.length(d) >= step for d in bank)

    def _along(self) -> list[list[int]]:
        """All directions, which run together from the start; none where the map is a line across them or a point."""
        bank = self._sorted([d for axis in self.axes for d in (2 * axis, 2 * axis + 1)])
        return [bank] if bank else []

    def _across(self) -> list[list[int]]:
        """The directions across the lines that run together: those of lines of one length."""
        groups: dict[int, list[int]] = {}
        for axis in self.axes:
            groups.setdefault(self.plan.size[1 - axis], []).extend((2 - 2 * axis, 3 - 2 * axis))
        return [bank for group in groups.values() if (bank := self._sorted(group))]

    def _roll(self, first: list[Tensor], directions: list[int], weight: Tensor) -> Bank:
        """Chains from first (one (n, C) each), one for every direction."""
        steps = self.plan.length(directions[0])
        states = first[0].new_empty(steps + 1, len(first), *first[0].shape)
        torch.stack(first, out=states[0])
        matrices, moments = torch.stack([weight[d] for d in directions]), []
        for step in range(1, steps + 1):
            alive = self._alive(directions, step)
            found = self.ahead(states[step - 1, :alive], matrices[:alive], states[step, :alive], self.plan)
            if found is not None:
                moments.append(found)
        return Bank(directions, states, moments)

    def _bank(self, directions: list[int], tensors: Iterator[Tensor]) -> Bank:
        """A bank from its tensors, in the order in which `forward` gave them."""
        states = next(tensors)
        steps = len(states) - 1 if self.plan.normalize else 0
        return Bank(directions, states, [(next(tensors), next(tensors)) for _ in range(steps)])

    def _roll_back(self, bank: Bank, g: Tensor, weight: Tensor, grad_weight: Tensor) -> None:
        """The adjoint of `_roll`: what the states received, g (1 + steps, chains, n, C), becomes their gradient.

        The matrices' gradients are one product a chain over all steps: nothing is added up by atomic operations.
        """
        plan, states = self.plan, bank.states
        matrices = torch.stack([weight[d] for d in bank.directions])
        for step in range(len(states) - 1, 0, -1):
            alive = self._alive(bank.directions, step)
            z, moments = states[step - 1, :alive], bank.moments[step - 1] if bank.moments else None
            self.back(g[step, :alive], g[step - 1, :alive], z, moments, matrices[:alive], plan)
        for chain, direction in enumerate(bank.directions):
            length = plan.length(direction)
            z, cotangent = states[:length, chain], g[1 : length + 1, chain]
            factor = torch.native_layer_norm(z, z.shape[-1:], None, None, plan.eps)[0] if plan.normalize else z
            factor, cotangent = (t.to(plan.product).flatten(0, 1) for t in (factor, cotangent))
            grad_weight[direction] += cotangent.mT @ factor

    # ------------------------------------------------------------------ maps

    def forward(self, q: Tensor, weight: Tensor, out: Tensor | None, fresh: bool, keep: bool) -> Tape:
        """Adds the map of q (B, M, C), summed over M, to out (B, H, W, C), or writes it; returns the banks' tensors."""
        start, share = q.flatten(0, 1), 1 / len(self.axes)
        along = [self._roll([start] * len(bank), bank, weight) for bank in self._along()]
        lines = [self._line(along, axis, start) for axis in (0, 1)]
        across = [self._roll([lines[1 - d // 2].flatten(0, 1) for d in bank], bank, weight) for bank in self._across()]

        def put(target: Tensor, states: Tensor) -> None:
            """States (..., B M, C) into cells (..., B, C)."""
            states = states.unflatten(-2, q.shape[:2])
            states = states.sum(-2) if q.shape[1] > 1 else states.squeeze(-2)
            if fresh:
                torch.mul(states, share, out=target)
            else:
                target.add_(states, alpha=share)

        for axis in self.axes if out is not None else ():  # without `out`: a checkpoint's second run, for its banks
            put(self._start_line(out, axis), lines[axis])  # type: ignore[arg-type]
            for bank in across:
                for chain, direction in enumerate(bank.directions):
                    if direction // 2 != axis:
                        states = bank.states[1 : self.plan.length(direction) + 1, chain]
                        states = states.unflatten(1, (-1, len(start)))
                        put(self._cells(out, direction), _ordered(states, direction))  # type: ignore[arg-type]
            fresh = False
        banks = [*along, *across] if keep else []
        return [t for bank in banks for t in (bank.states, *chained.from_iterable(bank.moments))]

    def backward(self, q: Tensor, weight: Tensor, g: Tensor, tape: Tape, grad_weight: Tensor) -> Tensor:
        """The adjoint of `forward` for the map's gradient g (B, H, W, C): gradient of q, adds to grad_weight."""
        tensors = iter(cast(list[Tensor], tape))
        along, across = ([self._bank(bank, tensors) for bank in banks] for banks in (self._along(), self._across()))
        batch, paths, channels = q.shape
        share = 1 / len(self.axes)

        def received(cells: Tensor, into: Tensor) -> None:
            """Cells (..., B, C) as what the states (..., B M, C) of all paths receive."""
            cells = cells.unsqueeze(-2).expand(*cells.shape[:-1], paths, channels)
            torch.mul(cells, share, out=into.unflatten(-2, (batch, paths)))

        g_lines = {}
        for axis in self.axes:
            g_lines[axis] = q.new_empty(self.plan.size[1 - axis], batch * paths, channels)
            received(self._start_line(g, axis), g_lines[axis])
        for bank in across:
            g_states = torch.empty_like(bank.states)
            g_states[0] = 0
            for chain, direction in enumerate(bank.directions):
                into = g_states[1 : self.plan.length(direction) + 1, chain].unflatten(1, (-1, batch * paths))
                received(_ordered(self._cells(g, direction), direction), into)
            self._roll_back(bank, g_states, weight, grad_weight)
            for chain, direction in enumerate(bank.directions):
                g_lines[1 - direction // 2].add_(g_states[0, chain].view(-1, batch * paths, channels))
        g_q = sum(g_lines[axis][self.plan.start[1 - axis]] for axis in self.axes)
        for bank in along:
            g_states = torch.empty_like(bank.states)
            g_states[0] = 0
            for chain, direction in enumerate(bank.directions):
                part = g_lines[direction // 2][self._reached(direction)]
                g_states[1 : len(part) + 1, chain] = _ordered(part, direction)
            self._roll_back(bank, g_states, weight, grad_weight)
            g_q = g_q + g_states[0].sum(0)
        return g_q.view_as(q)  # type: ignore[union-attr]

    def _line(self, along: list[Bank], axis: int, start: Tensor) -> Tensor:
        """The states along an axis in order, the start among them: (line, B M, C)."""
        parts = [start.unsqueeze(0)]
        for bank in along:
            for chain, direction in enumerate(bank.directions):
                if direction // 2 == axis:
                    part = _ordered(bank.states[1 : self.plan.length(direction) + 1, chain], direction)
                    parts = [*parts, part] if direction % 2 == 0 else [part, *parts]
        return torch.cat(parts)

    def _reached(self, direction: int) -> slice:
        """The places along its axis that a direction's chain reaches."""
        length, start = self.plan.length(direction), self.plan.start[1 - direction // 2]
        return slice(start + 1, start + 1 + length) if direction % 2 == 0 else slice(start - length, start)

    def _cells(self, image: Tensor, direction: int) -> Tensor:
        """The cells of an image (B, H, W, C) that a direction's chains reach: (steps, line, B, C), a view."""
        if direction < 2:
            return image[:, :, self._reached(direction)].permute(2, 1, 0, 3)
        return image[:, self._reached(direction)].permute(1, 2, 0, 3)

    def _start_line(self, image: Tensor, axis: int) -> Tensor:
        """The cells of the line along an axis through the start: (line, B, C), a view."""
        start = self.plan.start[axis]
        return (image[:, start] if axis == 0 else image[:, :, start]).transpose(0, 1)


def _ordered(steps: Tensor, direction: int) -> Tensor:
    """Steps in the order of the cells, or cells in that of the steps: to the left and up they are reversed."""
    return steps.flip(0) if direction % 2 else steps
