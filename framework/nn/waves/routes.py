"""The separable scheme: a complete map by walking along one axis, then across it from every cell of that line."""

from typing import cast

import torch
from torch import Tensor

from framework.nn.waves.steps import Plan, Tape, banks, roll, roll_back


class Route:
    """One complete map: out from the start along `axis`, then across it from every cell of that line.

    All state is (B M, line, C), so that one path of one image is a contiguous run of rows.
    """

    def __init__(self, plan: Plan, axis: int, share: float) -> None:
        self.plan, self.axis, self.share = plan, axis, share
        self.line_start, self.cross_start = plan.start[1 - axis], plan.start[axis]
        self.line_length = plan.size[1 - axis]

    def _cell(self, chain: int, step: int, start: int) -> int:
        return start + step if chain % 2 == 0 else start - step

    def _lines(self, image: Tensor) -> tuple[Tensor, ...]:
        """Every (B, line, C) of an image (B, H, W, C): rows for the horizontal line, columns for the vertical one."""
        return image.unbind(1 + self.axis)

    def forward(self, q: Tensor, weight: Tensor, out: Tensor | None, fresh: bool, keep: bool) -> Tape:
        """Adds share x the map of q (B, M, C), summed over M, to out (B, H, W, C), or writes it; returns the tape."""
        batch, paths, channels = q.shape
        plan, tape = self.plan, cast(Tape, [])
        line = q.new_empty(batch * paths, self.line_length, channels)
        line[:, self.line_start] = q.flatten(0, 1)
        for bank in banks(self.axis, plan):

            def along(chain: int, step: int, z: Tensor, bank: list[int] = bank) -> None:
                line[:, self._cell(bank[chain], step, self.line_start)] = z

            lengths = [plan.length(d) for d in bank]
            roll(q.flatten(0, 1), weight[bank], lengths, plan, along, tape if keep else None)

        targets = () if out is None else self._lines(out)  # without `out`: a checkpoint's second run, for its tape

        def add(at: int, z: Tensor) -> None:
            if not targets:
                return
            z = z.view(batch, paths, self.line_length, channels).sum(1) if paths > 1 else z.view_as(targets[at])
            if fresh:
                torch.mul(z, self.share, out=targets[at])
            else:
                targets[at].add_(z, alpha=self.share)

        add(self.cross_start, line)
        for bank in banks(1 - self.axis, plan):

            def across(chain: int, step: int, z: Tensor, bank: list[int] = bank) -> None:
                add(self._cell(bank[chain], step, self.cross_start), z)

            lengths = [plan.length(d) for d in bank]
            roll(line.flatten(0, 1), weight[bank], lengths, plan, across, tape if keep else None)
        return tape

    def backward(self, q: Tensor, weight: Tensor, g: Tensor, tape: Tape, grad_weight: Tensor) -> Tensor:
        """The adjoint of `forward` for the map's gradient g (B, H, W, C): gradient of q, adds to grad_weight."""
        batch, paths, channels = q.shape
        plan = self.plan
        g_line, received = q.new_zeros(batch * paths, self.line_length, channels), self._lines(g)

        def add(at: int, into: Tensor) -> None:
            into.view(batch, paths, -1, channels).add_(received[at].unsqueeze(1), alpha=self.share)

        add(self.cross_start, g_line)
        for bank in reversed(banks(1 - self.axis, plan)):

            def across(chain: int, step: int, into: Tensor, bank: list[int] = bank) -> None:
                add(self._cell(bank[chain], step, self.cross_start), into)

            lengths = [plan.length(d) for d in bank]
            part = grad_weight.new_zeros(len(bank), channels, channels)
            flat = g_line.flatten(0, 1)
            g_line += roll_back(tape, weight[bank], lengths, flat, across, part).view_as(g_line)
            grad_weight[bank] += part
        g_q = g_line[:, self.line_start].clone()
        for bank in reversed(banks(self.axis, plan)):

            def along(chain: int, step: int, into: Tensor, bank: list[int] = bank) -> None:
                into += g_line[:, self._cell(bank[chain], step, self.line_start)]

            lengths = [plan.length(d) for d in bank]
            part = grad_weight.new_zeros(len(bank), channels, channels)
            g_q += roll_back(tape, weight[bank], lengths, g_q, along, part)
            grad_weight[bank] += part
        return g_q.view_as(q)
