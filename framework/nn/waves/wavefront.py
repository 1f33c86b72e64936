"""The wavefront scheme: anti-diagonal after anti-diagonal, every cell the mean of its two predictions."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from framework.nn.waves.steps import Plan, Tape, norm_adjoint, normalized


class Wavefront:
    """z(x+1, y+1) = (phi_A z(x, y+1) + phi_B z(x+1, y)) / 2, all quadrants together, one anti-diagonal at a time.

    A quadrant's cell is (r, c) steps away from the start; diagonal d holds the cells r + c = d as a run of r. Quadrants
    are padded to the largest one, so a diagonal is one tensor (quadrants, cells, B, C).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        horizontal = [d for d in (0, 1) if plan.length(d)] or [0]
        vertical = [d for d in (2, 3) if plan.length(d)] or [2]
        self.pairs = [(h, v) for v in vertical for h in horizontal]
        self.rows = 1 + max(plan.length(v) for v in vertical)
        self.cols = 1 + max(plan.length(h) for h in horizontal)

    def run(self, diagonal: int) -> range:
        """The rows r of a diagonal's cells."""
        return range(max(0, diagonal - self.cols + 1), min(self.rows - 1, diagonal) + 1)

    @property
    def diagonals(self) -> range:
        """Every diagonal after the start."""
        return range(1, self.rows + self.cols - 1)

    def stacked(self, weight: Tensor) -> Tensor:
        """(quadrants, 2 C, C): the horizontal matrix over the vertical one."""
        return torch.stack([torch.cat([weight[h], weight[v]]) for h, v in self.pairs])

    def cells(self, diagonal: int) -> Iterator[tuple[int, slice, slice, bool]]:
        """For every quadrant its cells of a diagonal that lie in the map, as slices: no index has to reach a device.

        A cell on an axis belongs to two quadrants with the same value; it is taken from the first.

        Yields:
            the quadrant, the cells in the diagonal's run, the flat map indices, and whether these run backwards.
        """
        width, (row, col), run = self.plan.size[1], self.plan.start, self.run(diagonal)
        for quadrant, (h, v) in enumerate(self.pairs):
            repeated_rows, repeated_columns = v != self.pairs[0][1], h != self.pairs[0][0]
            low = max(run.start, diagonal - self.plan.length(h), int(repeated_rows))
            high = min(run.stop - 1, self.plan.length(v), diagonal - int(repeated_columns))
            if low > high:
                continue
            down, right = (1 if v == 2 else -1), (1 if h == 0 else -1)
            first, last = ((row + down * r) * width + col + right * (diagonal - r) for r in (low, high))
            step = abs(down * width - right) if high > low else 1
            flat = slice(min(first, last), max(first, last) + 1, step)
            yield quadrant, slice(low - run.start, high + 1 - run.start), flat, last < first

    def mix(self, z: Tensor, product: Tensor, diagonal: int) -> Tensor:
        """The next diagonal from z (Q, m, B, C) and its products (Q, m, B, 2, C)."""
        before, run = self.run(diagonal - 1), self.run(diagonal)
        new = z.new_zeros(z.shape[0], len(run), *z.shape[2:])
        for part, shift in ((0, 0), (1, 1)):  # part 0 goes from r to r, part 1 from r to r + 1
            source, target = overlap(before, run, shift)
            new[:, target] += z[:, source] + product[:, source, :, part]
        self._halve(new, diagonal)
        return new

    def _halve(self, cells: Tensor, diagonal: int) -> None:
        """Cells with two parents, those off both axes, hold the mean."""
        run = self.run(diagonal)
        first, last = int(run[0] == 0), len(run) - int(run[-1] == diagonal)
        cells[:, first:last] *= 0.5

    def forward(self, q: Tensor, weight: Tensor, out: Tensor | None, fresh: bool, keep: bool) -> Tape:
        """Adds the map of q (B, M, C), summed over M, to out (B, H, W, C), or writes it; returns the tape."""
        _, paths, channels = q.shape
        stacked = self.stacked(weight)
        z = q.flatten(0, 1).expand(len(self.pairs), 1, -1, -1).contiguous()
        tape: Tape = []
        self._put(z, 0, out, fresh, paths)
        for diagonal in self.diagonals:
            factor, rstd = normalized(z, self.plan.eps) if self.plan.normalize else (z, None)
            factor = factor.to(self.plan.product)
            product = torch.bmm(factor.flatten(1, 2), stacked.mT).to(z.dtype)
            if keep:
                tape += (factor, rstd)
            z = self.mix(z, product.view(*z.shape[:3], 2, channels), diagonal)
            self._put(z, diagonal, out, fresh, paths)
        return tape

    def _put(self, z: Tensor, diagonal: int, out: Tensor | None, fresh: bool, paths: int) -> None:
        if out is None:  # a checkpoint's second run, for its tape
            return
        for quadrant, source, target, backwards in self.cells(diagonal):
            cells = z[quadrant, source].unflatten(1, (-1, paths)).sum(2).transpose(0, 1)
            cells = cells.flip(1) if backwards else cells
            if fresh:
                out.flatten(1, 2)[:, target] = cells
            else:
                out.flatten(1, 2)[:, target] += cells

    def backward(self, q: Tensor, weight: Tensor, g: Tensor, tape: Tape, grad_weight: Tensor) -> Tensor:
        """The adjoint of `forward`."""
        batch, paths, channels = q.shape
        stacked = self.stacked(weight)
        grad_stacked = grad_weight.new_zeros(stacked.shape)
        flat = g.reshape(batch, -1, channels)
        quadrants = len(self.pairs)
        g_z = q.new_zeros(quadrants, len(self.run(self.diagonals.stop - 1)), batch * paths, channels)
        for diagonal in reversed(self.diagonals):
            self._take(g_z, diagonal, flat, paths)
            self._halve(g_z, diagonal)
            rstd, factor = tape.pop(), cast(Tensor, tape.pop())
            before, run = self.run(diagonal - 1), self.run(diagonal)
            g_product = q.new_zeros(quadrants, len(before), batch * paths, 2, channels)
            for part, shift in ((0, 0), (1, 1)):
                source, target = overlap(before, run, shift)
                g_product[:, source, :, part] = g_z[:, target]
            g_z = g_product.sum(3)
            cotangent = g_product.flatten(1, 2).flatten(2).to(factor.dtype)
            grad_stacked += torch.bmm(cotangent.mT, factor.flatten(1, 2))
            g_factor = torch.bmm(cotangent, stacked).to(g_z.dtype).view_as(g_z)
            g_z += g_factor if rstd is None else rstd * norm_adjoint(g_factor, factor.to(g_z.dtype))
        self._take(g_z, 0, flat, paths)
        for quadrant, (h, v) in enumerate(self.pairs):
            grad_weight[h] += grad_stacked[quadrant, :channels]
            grad_weight[v] += grad_stacked[quadrant, channels:]
        return g_z.sum((0, 1)).view_as(q)

    def _take(self, g_z: Tensor, diagonal: int, flat: Tensor, paths: int) -> None:
        for quadrant, source, target, backwards in self.cells(diagonal):
            received = flat[:, target].flip(1) if backwards else flat[:, target]
            g_z[quadrant, source] += received.transpose(0, 1).repeat_interleave(paths, 1)


def overlap(before: range, run: range, shift: int) -> tuple[slice, slice]:
    """Where rows r of `before` meet rows r + shift of `run`."""
    low, high = max(before.start + shift, run.start), min(before.stop + shift, run.stop)
    return slice(low - shift - before.start, high - shift - before.start), slice(low - run.start, high - run.start)
