"""FINOLA: a feature map grown from one vector by first-order norm + linear steps (arXiv 2305.16319, 2310.12976).

One step to the right is z(x+1, y) = z(x, y) + A zhat(x, y), one down z(x, y+1) = z(x, y) + B zhat(x, y), where zhat is
z normalised over its channels. The matrices are shared by all positions and all images.
"""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import Layer, batched, followed
from framework.nn.precision import autocast_dtype, without_autocast
from framework.nn.waves.options import Compile, Rollout
from framework.nn.waves.plain import plain_map
from framework.nn.waves.routes import Route
from framework.nn.waves.steps import DIRECTIONS, Plan, Scheme, Tape, normalized
from framework.nn.waves.together import Together
from framework.nn.waves.wavefront import Wavefront


def _parts(plan: Plan, device: torch.device) -> list[Any]:
    if plan.scheme == "wavefront":
        return [Wavefront(plan)]
    if plan.regional or device.type != "cpu":
        return [Together(plan)]
    axes = [axis for axis in (0, 1) if plan.takes(axis)]
    return [Route(plan, axis, 1 / len(axes)) for axis in axes]


class _FinolaMap(torch.autograd.Function):
    """(B, M, C) start vectors and (4, C, C) matrices -> (B, H, W, C), with the backward written out.

    Forward keeps only zhat and 1/sigma of every cell; with `checkpoint` it keeps nothing, and backward rolls one path
    after the other out again, so that memory does not depend on M. All that is kept goes through autograd's hands: it
    is freed by the backward pass, and hooks on saved tensors (activation checkpointing, offloading) see it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, plan: Plan, checkpoint: bool, grad: bool) -> Tensor:  # type: ignore[override]
        ctx.plan, ctx.checkpoint = plan, checkpoint
        keep = grad and not checkpoint and any(ctx.needs_input_grad[:2])
        out = q.new_empty(len(q), *plan.size, q.shape[-1])
        factors = weight.to(plan.product)
        tapes: list[Tape] = []
        with without_autocast(q.device.type):
            for part in _parts(plan, q.device):
                # chains that run together hold their states: without a backward pass, those of one path at a time
                for path in _paths(q, checkpoint or (isinstance(part, Together) and not keep)):
                    tapes.append(part.forward(path, factors, out, not tapes, keep))
        ctx.lengths = [len(tape) for tape in tapes]
        ctx.save_for_backward(q, weight, *chain.from_iterable(tapes))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        q, weight, *kept = ctx.saved_tensors
        plan: Plan = ctx.plan
        if torch.is_grad_enabled() or batched(g):  # a graph of the gradients is asked for (create_graph), or many
            return (*_twice(q, weight, plan, g, ctx.needs_input_grad), None, None, None)
        factors = weight.to(plan.product)
        grad_q, grad_weight = torch.zeros_like(q), torch.zeros_like(weight)
        tensors = iter(kept)
        tapes = iter([list(islice(tensors, length)) for length in ctx.lengths])
        with without_autocast(q.device.type):
            for part in _parts(plan, q.device):
                for path, grad_path in zip(_paths(q, ctx.checkpoint), _paths(grad_q, ctx.checkpoint), strict=True):
                    tape = part.forward(path, factors, None, False, True) if ctx.checkpoint else next(tapes)
                    grad_path += part.backward(path, factors, g, tape, grad_weight)
        return grad_q, grad_weight, None, None, None


def _twice(
    q: Tensor, weight: Tensor, plan: Plan, g: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of q and weight in plain operations: those of the plain form, differentiable if asked for."""
    wanted, again = [t for t, need in zip((q, weight), needs, strict=False) if need], torch.is_grad_enabled()
    with without_autocast(q.device.type), torch.enable_grad():
        grads = iter(torch.autograd.grad(plain_map(q, weight, plan), wanted, g, create_graph=again))
    return next(grads) if needs[0] else None, next(grads) if needs[1] else None


def _paths(q: Tensor, one_by_one: bool) -> Sequence[Tensor]:
    return q.split(1, 1) if one_by_one else (q,)


def _two(expected: str, pair: Any) -> tuple[int, int]:
    try:
        first, second = pair
    except (TypeError, ValueError):
        raise ConfigError(f"{expected}, got {pair!r}") from None
    if not (_whole(first) and _whole(second)):
        raise ConfigError(f"{expected}, got {pair!r}")
    return first, second


def _whole(value: Any) -> bool:
    """Not a fraction, a word or nothing; an exporter's and a tracer's sizes are types of their own."""
    return value is not None and not isinstance(value, (float, str))


class Finola(Layer):
    """Grows feature maps from vectors: FINOLA (arXiv 2305.16319, 2310.12976; docs/finola.md, "The rollout").

    `separable` walks along one axis first and across it afterwards, once row first and once column first, and averages
    the two complete maps: z(x+u, y+v) = (phi_B^v phi_A^u + phi_A^u phi_B^v) z / 2. `row_first` and `column_first` are
    one of the two alone, at half the cost. `wavefront` averages the two predictions of every cell and goes on from the
    average; it is another function, and matrices trained with one scheme do not serve the other.

    The state and its statistics stay in float32 under autocast and with 16-bit matrices, only the factors of the
    products take their type.

    Args:
        channels: C, at least 2 (one channel normalises to zero).
        scheme: `separable`, `row_first`, `column_first` or `wavefront`.
        matrices: 4 (right, left, down, up); 2 (right and down, with A- = -A+ and B- = -B+); 1 (as 2, with B = A).
        normalize: False leaves the normalisation out (a control).
        eps: added to the variance.
        init_std: s, the matrices start from N(0, s^2 / C).
        checkpoint: recompute instead of storing: memory does not depend on the number of paths, for one more forward.
        compile: `regional` compiles the step that is repeated, alone (torch.compile): a normalisation, a product and
            what can be fused with it, and not the hundreds of them that a map consists of. Separable schemes only.
        device: of the matrices.
        dtype: of the matrices.

    Attributes:
        weight: parameter (matrices, C, C) float32.

    Raises:
        ConfigError: fewer than 2 channels, or values outside those above.
    """

    def __init__(
        self,
        channels: int,
        scheme: Scheme = Rollout.scheme,
        matrices: int = Rollout.matrices,
        *,
        normalize: bool = Rollout.normalize,
        eps: float = Rollout.eps,
        init_std: float = Rollout.init_std,
        checkpoint: bool = Rollout.checkpoint,
        compile: Compile | None = Rollout.compile,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ConfigError(f"channels: expected at least 2 (one channel normalises to zero), got {channels}")
        if scheme not in get_args(Scheme):
            raise ConfigError(f"scheme: expected one of {', '.join(get_args(Scheme))}, got {scheme!r}")
        if matrices not in (1, 2, 4):
            raise ConfigError(f"matrices: expected 4, 2 (A- = -A+) or 1 (B = A as well), got {matrices}")
        if compile not in (None, *get_args(Compile)) or (compile and scheme == "wavefront"):
            raise ConfigError(
                f"compile: expected null, or regional with scheme separable, row_first or column_first, got {compile!r}"
                f" with {scheme}"
            )
        if eps <= 0 or init_std < 0:
            raise ConfigError(f"eps and init_std: expected above 0 and 0 or more, got {eps} and {init_std}")
        self.channels, self.scheme, self.matrices = channels, scheme, matrices
        self.normalize, self.eps, self.init_std, self.checkpoint = normalize, eps, init_std, checkpoint
        self.regional = compile is not None
        self.weight = nn.Parameter(torch.empty(matrices, channels, channels, device=device, dtype=dtype))
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
            (B, C, H, W) in what torch promotes the dtypes of q and the matrices to, in channels-last memory.

        Raises:
            ConfigError: `q` of another shape, an empty map, or a start outside it.
        """
        if q.dim() not in (2, 3) or q.shape[-1] != self.channels or 0 in q.shape[1:]:
            raise ConfigError(
                f"q: expected (B, {self.channels}) or (B, M, {self.channels}), M at least 1, got {tuple(q.shape)}; "
                "latents of a model with other channels do not fit this one"
            )
        height, width = _two("size: expected (H, W) of at least (1, 1)", size)
        if height < 1 or width < 1:
            raise ConfigError(f"size: expected (H, W) of at least (1, 1), got {tuple(size)}")
        middle = (height // 2, width // 2)
        inside = f"start: expected (row, column) inside the {height} x {width} map"
        row, col = middle if start is None else _two(inside, start)
        if not (0 <= row < height and 0 <= col < width):
            raise ConfigError(f"{inside}, got {(row, col)}")
        device = q.device.type
        dtype = torch.promote_types(q.dtype, self.weight.dtype)
        state = torch.promote_types(dtype, torch.float32)
        product = autocast_dtype(device) or dtype
        regional = self.__dict__.get("regional", False)  # a layer pickled before there was a choice has none
        plan = Plan((height, width), (row, col), self.scheme, self.normalize, self.eps, product, regional)
        with without_autocast(device):
            paths = q.to(state)
            paths = (paths if q.dim() == 3 else paths.unsqueeze(1)).contiguous()
            # inside a Function gradients are always off, so it is told whether there will be a backward
            matrices, grad = self.directional().to(state), torch.is_grad_enabled()
            if followed() or len(paths) == 0:
                grown = plain_map(paths, matrices, plan)
            else:
                grown = cast(Tensor, _FinolaMap.apply(paths, matrices, plan, self.checkpoint, grad))
        return grown.permute(0, 3, 1, 2).to(dtype)

    def walk(self, z: Tensor, direction: Literal["right", "left", "down", "up"], steps: int) -> Tensor:
        """phi^steps in one direction, every vector by itself.

        Args:
            z: (..., C), any real dtype.
            direction: whose matrix is used.
            steps: 0 or more.

        Returns:
            (..., C) in what torch promotes the dtypes of z and the matrices to, 16-bit ones at the end.

        Raises:
            ConfigError: an unknown direction, or a number of steps that is not whole or below 0.
        """
        if direction not in DIRECTIONS:
            raise ConfigError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
        if not _whole(steps) or steps < 0:
            raise ConfigError(f"steps: expected a whole number of at least 0, got {steps!r}")
        matrix = self.directional()[DIRECTIONS.index(direction)]
        dtype = torch.promote_types(z.dtype, matrix.dtype)
        if z.numel() == 0:
            return z.to(dtype)
        z, matrix = (t.to(torch.promote_types(dtype, torch.float32)) for t in (z, matrix))
        for _ in range(steps):
            z = z + nn.functional.linear(normalized(z, self.eps)[0] if self.normalize else z, matrix)
        return z.to(dtype)

    def extra_repr(self) -> str:
        """The arguments that are not defaults of the printed form."""
        return f"{self.channels}, scheme={self.scheme}, matrices={self.matrices}, normalize={self.normalize}"
