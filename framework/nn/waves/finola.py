"""FINOLA: a feature map grown from one vector by first-order norm + linear steps (arXiv 2305.16319, 2310.12976).

One step to the right is z(x+1, y) = z(x, y) + A zhat(x, y), one down z(x, y+1) = z(x, y) + B zhat(x, y), where zhat is
z normalised over its channels. The matrices are shared by all positions and all images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from framework.errors import ConfigError

Scheme = Literal["separable", "row_first", "column_first", "wavefront"]

#: order of the matrices in `Finola.directional`
DIRECTIONS = ("right", "left", "down", "up")

Tape = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class _Plan:
    """What a rollout needs to know beside its tensors; `start` is (row, column)."""

    size: tuple[int, int]
    start: tuple[int, int]
    scheme: Scheme
    normalize: bool
    eps: float
    product: torch.dtype  # of the factors of every matrix product

    def length(self, direction: int) -> int:
        """Steps from the start to the border in one of DIRECTIONS."""
        (height, width), (row, col) = self.size, self.start
        return (width - 1 - col, col, height - 1 - row, row)[direction]


# ---------------------------------------------------------------------- one step and its adjoint, in place


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


def _advance(z: Tensor, weight: Tensor, plan: _Plan, tape: Tape | None) -> None:
    """z (D, n, C) += zhat W^T with one matrix of weight (D, C, C) per leading index; records what the adjoint needs."""
    factor, rstd = normalized(z, plan.eps) if plan.normalize else (z.clone(), None)
    if plan.product == z.dtype:
        z.baddbmm_(factor, weight.mT)
    else:
        factor = factor.to(plan.product)
        z += torch.bmm(factor, weight.mT)
    if tape is not None:
        tape.append((factor, rstd))


def _retreat(g: Tensor, factor: Tensor, rstd: Tensor | None, weight: Tensor, grad_weight: Tensor) -> None:
    """The adjoint of `_advance`: g (D, n, C) from after the step to before it; adds to grad_weight (D, C, C).

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
        g.addcmul_(_norm_adjoint(g_factor, factor.to(g.dtype)), rstd)


def _norm_adjoint(g: Tensor, zhat: Tensor) -> Tensor:
    """g - mean(g) - zhat mean(g zhat) over the last axis: layer norm's own adjoint at mean 0 and deviation 1."""
    mean, rstd = g.new_zeros((*g.shape[:-1], 1)), g.new_ones((*g.shape[:-1], 1))
    return torch.ops.aten.native_layer_norm_backward(
        g, zhat, g.shape[-1:], mean, rstd, None, None, [True, False, False]
    )[0]


# ---------------------------------------------------------------------- straight chains


def _roll(
    z0: Tensor,
    weight: Tensor,
    lengths: Sequence[int],
    plan: _Plan,
    emit: Callable[[int, int, Tensor], None],
    keep: bool,
) -> Tape:
    """Chains of `lengths` (falling) steps from one start, one per matrix: emit(chain, step, (n, C))."""
    tape: Tape = []
    z, chains = z0.repeat(len(lengths), 1, 1), len(lengths)
    states = z.unbind(0)
    for step in range(1, lengths[0] + 1):
        if lengths[chains - 1] < step:  # the shorter chain has reached the border
            chains = sum(length >= step for length in lengths)
            z, weight = z[:chains], weight[:chains]
        _advance(z, weight, plan, tape if keep else None)
        for chain in range(chains):
            emit(chain, step, states[chain])
    return tape


def _roll_back(
    tape: Tape,
    weight: Tensor,
    lengths: Sequence[int],
    like: Tensor,
    absorb: Callable[[int, int, Tensor], None],
    grad_weight: Tensor,
) -> Tensor:
    """The adjoint of `_roll`: absorb(chain, step, g) adds what the emitted cell received; returns the start's share."""
    g = like.new_zeros((len(lengths), *like.shape))
    for step in range(lengths[0], 0, -1):
        alive = sum(length >= step for length in lengths)
        for chain in range(alive):
            absorb(chain, step, g[chain])
        factor, rstd = tape.pop()
        _retreat(g[:alive], factor, rstd, weight[:alive], grad_weight[:alive])
    return g.sum(0)


def _banks(axis: int, plan: _Plan, device: torch.device) -> list[list[int]]:
    """The directions of an axis (0 horizontal, 1 vertical) that run together, longest first.

    An accelerator wants both in one launch; a CPU core keeps one chain's state in its cache.
    """
    pair = sorted((d for d in (2 * axis, 2 * axis + 1) if plan.length(d)), key=plan.length, reverse=True)
    return [[d] for d in pair] if device.type == "cpu" else [pair] if pair else []


# ---------------------------------------------------------------------- separable: along an axis, then across it


class _Route:
    """One complete map: out from the start along `axis`, then across it from every cell of that line.

    All state is (B M, line, C), so that one path of one image is a contiguous run of rows.
    """

    def __init__(self, plan: _Plan, axis: int, share: float) -> None:
        self.plan, self.axis, self.share = plan, axis, share
        self.line_start, self.cross_start = plan.start[1 - axis], plan.start[axis]
        self.line_length = plan.size[1 - axis]

    def _cell(self, chain: int, step: int, start: int) -> int:
        return start + step if chain % 2 == 0 else start - step

    def _lines(self, image: Tensor) -> tuple[Tensor, ...]:
        """Every (B, line, C) of an image (B, H, W, C): rows for the horizontal line, columns for the vertical one."""
        return image.unbind(1 + self.axis)

    def forward(self, q: Tensor, weight: Tensor, out: Tensor | None, fresh: bool, keep: bool) -> list[Tape]:
        """Adds share x the map of q (B, M, C), summed over M, to out (B, H, W, C), or writes it; returns the tapes."""
        batch, paths, channels = q.shape
        plan, tapes = self.plan, []
        line = q.new_empty(batch * paths, self.line_length, channels)
        line[:, self.line_start] = q.flatten(0, 1)
        for bank in _banks(self.axis, plan, q.device):

            def along(chain: int, step: int, z: Tensor, bank: list[int] = bank) -> None:
                line[:, self._cell(bank[chain], step, self.line_start)] = z

            lengths = [plan.length(d) for d in bank]
            tapes.append(_roll(q.flatten(0, 1), weight[bank], lengths, plan, along, keep))

        targets = () if out is None else self._lines(out)  # without `out`: a checkpoint's second run, for its tapes

        def add(at: int, z: Tensor) -> None:
            if not targets:
                return
            z = z.view(batch, paths, self.line_length, channels).sum(1) if paths > 1 else z.view_as(targets[at])
            if fresh:
                torch.mul(z, self.share, out=targets[at])
            else:
                targets[at].add_(z, alpha=self.share)

        add(self.cross_start, line)
        for bank in _banks(1 - self.axis, plan, q.device):

            def across(chain: int, step: int, z: Tensor, bank: list[int] = bank) -> None:
                add(self._cell(bank[chain], step, self.cross_start), z)

            lengths = [plan.length(d) for d in bank]
            tapes.append(_roll(line.flatten(0, 1), weight[bank], lengths, plan, across, keep))
        return tapes

    def backward(self, q: Tensor, weight: Tensor, g: Tensor, tapes: list[Tape], grad_weight: Tensor) -> Tensor:
        """The adjoint of `forward` for the map's gradient g (B, H, W, C): gradient of q, adds to grad_weight."""
        batch, paths, channels = q.shape
        plan = self.plan
        g_line, received = q.new_zeros(batch * paths, self.line_length, channels), self._lines(g)

        def add(at: int, into: Tensor) -> None:
            into.view(batch, paths, -1, channels).add_(received[at].unsqueeze(1), alpha=self.share)

        add(self.cross_start, g_line)
        for bank in reversed(_banks(1 - self.axis, plan, q.device)):

            def across(chain: int, step: int, into: Tensor, bank: list[int] = bank) -> None:
                add(self._cell(bank[chain], step, self.cross_start), into)

            lengths = [plan.length(d) for d in bank]
            part = grad_weight.new_zeros(len(bank), channels, channels)
            flat = g_line.flatten(0, 1)
            g_line += _roll_back(tapes.pop(), weight[bank], lengths, flat, across, part).view_as(g_line)
            grad_weight[bank] += part
        g_q = g_line[:, self.line_start].clone()
        for bank in reversed(_banks(self.axis, plan, q.device)):

            def along(chain: int, step: int, into: Tensor, bank: list[int] = bank) -> None:
                into += g_line[:, self._cell(bank[chain], step, self.line_start)]

            lengths = [plan.length(d) for d in bank]
            part = grad_weight.new_zeros(len(bank), channels, channels)
            g_q += _roll_back(tapes.pop(), weight[bank], lengths, g_q, along, part)
            grad_weight[bank] += part
        return g_q.view_as(q)


# ---------------------------------------------------------------------- wavefront: anti-diagonal after anti-diagonal


class _Wavefront:
    """z(x+1, y+1) = (phi_A z(x, y+1) + phi_B z(x+1, y)) / 2, all quadrants together, one anti-diagonal at a time.

    A quadrant's cell is (r, c) steps away from the start; diagonal d holds the cells r + c = d as a run of r. Quadrants
    are padded to the largest one, so a diagonal is one tensor (quadrants, cells, B, C).
    """

    def __init__(self, plan: _Plan) -> None:
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

    def cells(self, diagonal: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions in a diagonal's (quadrants x cells) list that lie in the map, and their flat map indices.

        A cell on an axis belongs to two quadrants with the same value; it is taken from the first.
        """
        (height, width), (row, col) = self.plan.size, self.plan.start
        sources, targets, seen = [], [], set()
        run = self.run(diagonal)
        for quadrant, (h, v) in enumerate(self.pairs):
            for i, r in enumerate(run):
                y, x = row + (r if v == 2 else -r), col + (diagonal - r if h == 0 else r - diagonal)
                if 0 <= y < height and 0 <= x < width and (y, x) not in seen:
                    seen.add((y, x))
                    sources.append(quadrant * len(run) + i)
                    targets.append(y * width + x)
        return torch.tensor(sources, device=device), torch.tensor(targets, device=device)

    def _mix(self, z: Tensor, product: Tensor, diagonal: int) -> Tensor:
        """The next diagonal from z (Q, m, B, C) and its products (Q, m, B, 2, C)."""
        before, run = self.run(diagonal - 1), self.run(diagonal)
        new = z.new_zeros(z.shape[0], len(run), *z.shape[2:])
        for part, shift in ((0, 0), (1, 1)):  # part 0 goes from r to r, part 1 from r to r + 1
            source, target = _overlap(before, run, shift)
            new[:, target] += z[:, source] + product[:, source, :, part]
        self._halve(new, diagonal)
        return new

    def _halve(self, cells: Tensor, diagonal: int) -> None:
        """Cells with two parents, those off both axes, hold the mean."""
        run = self.run(diagonal)
        first, last = int(run[0] == 0), len(run) - int(run[-1] == diagonal)
        cells[:, first:last] *= 0.5

    def forward(self, q: Tensor, weight: Tensor, out: Tensor | None, fresh: bool, keep: bool) -> list[Tape]:
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
                tape.append((factor, rstd))
            z = self._mix(z, product.view(*z.shape[:3], 2, channels), diagonal)
            self._put(z, diagonal, out, fresh, paths)
        return [tape]

    def _put(self, z: Tensor, diagonal: int, out: Tensor | None, fresh: bool, paths: int) -> None:
        if out is None:  # a checkpoint's second run, for its tape
            return
        source, target = self.cells(diagonal, z.device)
        cells = z.flatten(0, 1)[source].unflatten(1, (-1, paths)).sum(2)
        if fresh:
            out.flatten(1, 2)[:, target] = cells.transpose(0, 1)
        else:
            out.flatten(1, 2)[:, target] += cells.transpose(0, 1)

    def backward(self, q: Tensor, weight: Tensor, g: Tensor, tapes: list[Tape], grad_weight: Tensor) -> Tensor:
        """The adjoint of `forward`."""
        batch, paths, channels = q.shape
        stacked, tape = self.stacked(weight), tapes.pop()
        grad_stacked = grad_weight.new_zeros(stacked.shape)
        flat = g.reshape(batch, -1, channels)
        quadrants = len(self.pairs)
        g_z = q.new_zeros(quadrants, len(self.run(self.diagonals.stop - 1)), batch * paths, channels)
        for diagonal in reversed(self.diagonals):
            self._take(g_z, diagonal, flat, paths)
            self._halve(g_z, diagonal)
            factor, rstd = tape.pop()
            before, run = self.run(diagonal - 1), self.run(diagonal)
            g_product = q.new_zeros(quadrants, len(before), batch * paths, 2, channels)
            for part, shift in ((0, 0), (1, 1)):
                source, target = _overlap(before, run, shift)
                g_product[:, source, :, part] = g_z[:, target]
            g_z = g_product.sum(3)
            cotangent = g_product.flatten(1, 2).flatten(2).to(factor.dtype)
            grad_stacked += torch.bmm(cotangent.mT, factor.flatten(1, 2))
            g_factor = torch.bmm(cotangent, stacked).to(g_z.dtype).view_as(g_z)
            g_z += g_factor if rstd is None else rstd * _norm_adjoint(g_factor, factor.to(g_z.dtype))
        self._take(g_z, 0, flat, paths)
        for quadrant, (h, v) in enumerate(self.pairs):
            grad_weight[h] += grad_stacked[quadrant, :channels]
            grad_weight[v] += grad_stacked[quadrant, channels:]
        return g_z.sum((0, 1)).view_as(q)

    def _take(self, g_z: Tensor, diagonal: int, flat: Tensor, paths: int) -> None:
        source, target = self.cells(diagonal, g_z.device)
        g_z.view(-1, *g_z.shape[2:])[source] += flat[:, target].transpose(0, 1).repeat_interleave(paths, 1)


def _overlap(before: range, run: range, shift: int) -> tuple[slice, slice]:
    """Where rows r of `before` meet rows r + shift of `run`."""
    low, high = max(before.start + shift, run.start), min(before.stop + shift, run.stop)
    return slice(low - shift - before.start, high - shift - before.start), slice(low - run.start, high - run.start)


# ---------------------------------------------------------------------- the map as one differentiable function


def _parts(plan: _Plan) -> list[Any]:
    if plan.scheme == "wavefront":
        return [_Wavefront(plan)]
    axes = {"separable": (0, 1), "row_first": (0,), "column_first": (1,)}[plan.scheme]
    return [_Route(plan, axis, 1 / len(axes)) for axis in axes]


class _FinolaMap(torch.autograd.Function):
    """(B, M, C) start vectors and (4, C, C) matrices -> (B, H, W, C), with the backward written out.

    Forward keeps only zhat and 1/sigma of every cell; with `checkpoint` it keeps nothing, and backward rolls one path
    after the other out again, so that memory does not depend on M.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, plan: _Plan, checkpoint: bool, grad: bool) -> Tensor:  # type: ignore[override]
        ctx.plan, ctx.checkpoint = plan, checkpoint
        ctx.save_for_backward(q, weight)
        keep = grad and not checkpoint and any(ctx.needs_input_grad[:2])
        out = q.new_empty(len(q), *plan.size, q.shape[-1])
        factors = weight.to(plan.product)
        ctx.tapes = []
        with torch.autocast(q.device.type, enabled=False):
            for part in _parts(plan):
                for path in _paths(q, checkpoint):
                    ctx.tapes.append(part.forward(path, factors, out, not ctx.tapes, keep))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        q, weight = ctx.saved_tensors
        plan: _Plan = ctx.plan
        factors = weight.to(plan.product)
        grad_q, grad_weight = torch.zeros_like(q), torch.zeros_like(weight)
        kept = iter(ctx.tapes)
        with torch.autocast(q.device.type, enabled=False):
            for part in _parts(plan):
                for path, grad_path in zip(_paths(q, ctx.checkpoint), _paths(grad_q, ctx.checkpoint), strict=True):
                    # copied lists: the tensors stay for a second backward with retain_graph
                    tapes = [list(tape) for tape in next(kept)]
                    if ctx.checkpoint:
                        tapes = part.forward(path, factors, None, False, True)
                    grad_path += part.backward(path, factors, g, tapes, grad_weight)
        return grad_q, grad_weight, None, None, None


def _paths(q: Tensor, one_by_one: bool) -> Sequence[Tensor]:
    return q.split(1, 1) if one_by_one else (q,)


class Finola(nn.Module):
    """Grows feature maps from vectors: FINOLA (arXiv 2305.16319, 2310.12976; specification, sections 2, 3 and 6).

    `separable` walks along one axis first and across it afterwards, once row first and once column first, and averages
    the two complete maps: z(x+u, y+v) = (phi_B^v phi_A^u + phi_A^u phi_B^v) z / 2. `row_first` and `column_first` are
    one of the two alone, at half the cost. `wavefront` averages the two predictions of every cell and goes on from the
    average; it is another function, and matrices trained with one scheme do not serve the other.

    The state and its statistics stay in float32 under autocast, only the factors of the products take its type.

    Args:
        channels: C, at least 2 (one channel normalises to zero).
        scheme: `separable`, `row_first`, `column_first` or `wavefront`.
        matrices: 4 (right, left, down, up); 2 (right and down, with A- = -A+ and B- = -B+); 1 (as 2, with B = A).
        normalize: False leaves the normalisation out (a control).
        eps: added to the variance.
        init_std: s, the matrices start from N(0, s^2 / C).
        checkpoint: recompute instead of storing: memory does not depend on the number of paths, for one more forward.

    Attributes:
        weight: parameter (matrices, C, C) float32.

    Raises:
        ConfigError: fewer than 2 channels, or values outside those above.
    """

    def __init__(
        self,
        channels: int,
        scheme: Scheme = "separable",
        matrices: int = 4,
        *,
        normalize: bool = True,
        eps: float = 1e-5,
        init_std: float = 0.3,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ConfigError(f"channels: expected at least 2 (one channel normalises to zero), got {channels}")
        if scheme not in get_args(Scheme):
            raise ConfigError(f"scheme: expected one of {', '.join(get_args(Scheme))}, got {scheme!r}")
        if matrices not in (1, 2, 4):
            raise ConfigError(f"matrices: expected 4, 2 (A- = -A+) or 1 (B = A as well), got {matrices}")
        if eps <= 0 or init_std < 0:
            raise ConfigError(f"eps and init_std: expected above 0 and 0 or more, got {eps} and {init_std}")
        self.channels, self.scheme, self.matrices = channels, scheme, matrices
        self.normalize, self.eps, self.init_std, self.checkpoint = normalize, eps, init_std, checkpoint
        self.weight = nn.Parameter(torch.empty(matrices, channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the matrices from N(0, init_std^2 / C)."""
        nn.init.normal_(self.weight, std=self.init_std / self.channels**0.5)

    def directional(self) -> Tensor:
        """(4, C, C): the matrices of the steps to the right, to the left, down and up."""
        if self.matrices == 4:
            return self.weight
        a, b = self.weight[0], self.weight[-1]
        return torch.stack([a, -a, b, -b])

    def forward(self, q: Tensor, size: Sequence[int], start: Sequence[int] | None = None) -> Tensor:
        """Rolls the vectors out.

        Args:
            q: (B, C), or (B, M, C) for M paths that are rolled out one by one and summed; any real dtype.
            size: (H, W) of the map.
            start: (row, column) where the vectors stand; None: (H // 2, W // 2).

        Returns:
            (B, C, H, W) float32 (float64 for float64), in channels-last memory.

        Raises:
            ConfigError: `q` of another shape, an empty map, or a start outside it.
        """
        if q.dim() not in (2, 3) or q.shape[-1] != self.channels or 0 in q.shape:
            raise ConfigError(
                f"q: expected (B, {self.channels}) or (B, M, {self.channels}), none of them 0, got {tuple(q.shape)}; "
                "latents of a model with other channels do not fit this one"
            )
        height, width = size
        if height < 1 or width < 1:
            raise ConfigError(f"size: expected (H, W) of at least (1, 1), got {tuple(size)}")
        row, col = (height // 2, width // 2) if start is None else start
        if not (0 <= row < height and 0 <= col < width):
            raise ConfigError(f"start: expected (row, column) inside the {height} x {width} map, got {(row, col)}")
        device = q.device.type
        state = torch.promote_types(q.dtype, torch.float32)
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else state
        plan = _Plan((height, width), (row, col), self.scheme, self.normalize, self.eps, product)
        with torch.autocast(device, enabled=False):
            paths = q.to(state)
            paths = (paths if q.dim() == 3 else paths.unsqueeze(1)).contiguous()
            # inside a Function gradients are always off, so it is told whether there will be a backward
            matrices, grad = self.directional().to(state), torch.is_grad_enabled()
            grown = cast(Tensor, _FinolaMap.apply(paths, matrices, plan, self.checkpoint, grad))
        return grown.permute(0, 3, 1, 2)

    def walk(self, z: Tensor, direction: Literal["right", "left", "down", "up"], steps: int) -> Tensor:
        """phi^steps in one direction, every vector by itself.

        Args:
            z: (..., C), any real dtype.
            direction: whose matrix is used.
            steps: 0 or more.

        Returns:
            (..., C) float32 (float64 for float64).
        """
        matrix = self.directional()[DIRECTIONS.index(direction)]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        for _ in range(steps):
            z = z + nn.functional.linear(normalized(z, self.eps)[0] if self.normalize else z, matrix)
        return z

    def extra_repr(self) -> str:
        """The arguments that are not defaults of the printed form."""
        return f"{self.channels}, scheme={self.scheme}, matrices={self.matrices}, normalize={self.normalize}"
