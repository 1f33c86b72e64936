"""The rollout in plain differentiable operations: what compilers, exporters and second derivatives follow.

Slower than the written-out form, the same map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.nn.waves.steps import Plan
from framework.nn.waves.wavefront import Wavefront, overlap


def plain_map(q: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """The map of all paths together.

    Args:
        q: (B, M, C) start vectors, float32 or float64.
        weight: (4, C, C), the matrices of `DIRECTIONS`.
        plan: sizes, scheme and normalisation.

    Returns:
        (B, H, W, C), like `q`.
    """
    if plan.scheme == "wavefront":
        return _wavefront(q, weight, plan)
    row_first, column_first = (_route(q, weight, plan, axis) if plan.takes(axis) else None for axis in (0, 1))
    if row_first is None or column_first is None:
        return row_first if column_first is None else column_first  # type: ignore[return-value]
    return (row_first + column_first) / 2


def product(z: Tensor, matrix: Tensor, plan: Plan) -> Tensor:
    """zhat W^T of states (..., C), its factors in the plan's type, the result in the state's."""
    factor = F.layer_norm(z, z.shape[-1:], eps=plan.eps) if plan.normalize else z
    return F.linear(factor.to(plan.product), matrix.to(plan.product)).to(z.dtype)


def _out(z: Tensor, weight: Tensor, plan: Plan, axis: int) -> list[Tensor]:
    """The states along an axis, in order, the start among them."""
    sides: list[list[Tensor]] = []
    for direction in (2 * axis, 2 * axis + 1):
        states, state = [], z
        for _ in range(plan.length(direction)):
            state = state + product(state, weight[direction], plan)
            states.append(state)
        sides.append(states)
    after, before = sides
    return [*reversed(before), z, *after]


def _route(q: Tensor, weight: Tensor, plan: Plan, axis: int) -> Tensor:
    """Out along `axis`, then across it from every cell of that line: (B, H, W, C)."""
    line = torch.stack(_out(q, weight, plan, axis), 2)  # (B, M, line, C)
    cells = torch.stack(_out(line, weight, plan, 1 - axis), 2 if axis == 0 else 3)
    return cells.sum(1)


def _wavefront(q: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """Diagonal after diagonal, as `Wavefront`; every cell is put at its place at the end."""
    front = Wavefront(plan)
    batch, paths, channels = q.shape
    stacked = front.stacked(weight)
    z = q.flatten(0, 1).expand(len(front.pairs), 1, -1, -1)
    found: list[Tensor] = []
    places: list[int] = []
    for diagonal in range(front.diagonals.stop):
        if diagonal:
            products = torch.stack([product(z[i], stacked[i], plan) for i in range(len(front.pairs))])
            z = _mixed(front, z, products.unflatten(-1, (2, channels)), diagonal)
        for quadrant, source, target, backwards in front.cells(diagonal):
            found.append(z[quadrant, source].flip(0) if backwards else z[quadrant, source])
            places += range(target.start, target.stop, target.step)
    cells = torch.cat(found)[torch.tensor(places, device=q.device).argsort()]  # (H W, B M, C)
    return cells.view(*plan.size, batch, paths, channels).sum(3).permute(2, 0, 1, 3)


def _mixed(front: Wavefront, z: Tensor, product: Tensor, diagonal: int) -> Tensor:
    """`Wavefront.mix` without writing in place, which no function transform could follow."""
    before, run = front.run(diagonal - 1), front.run(diagonal)
    total = None
    for part, shift in ((0, 0), (1, 1)):
        source, target = overlap(before, run, shift)
        moved = z[:, source] + product[:, source, :, part]
        moved = F.pad(moved, (0, 0, 0, 0, target.start, len(run) - target.stop))
        total = moved if total is None else total + moved
    shares = [0.5 if 0 < row < diagonal else 1.0 for row in run]  # cells off both axes have two parents
    return total * torch.tensor(shares, dtype=z.dtype, device=z.device)[:, None, None]  # type: ignore[operator]
