"""Layers whose every weight is a spline: one ordinary layer on the lifted input; what edges matter, pruning."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import followed
from framework.nn.splines.bspline import quadrature
from framework.nn.splines.coefficients import SplineCoefficients, joined
from framework.nn.splines.expansion import expand, lifted_again, rebuild_in_backward
from framework.nn.splines.moments import SplineMoments


class SplineLayer(SplineCoefficients):
    """What all spline layers share: `lifted_weight` is the weight of the ordinary layer that runs on the lifted input.

    Attributes and arguments as `SplineCoefficients`.
    """

    def arranged(self, lifted: Tensor) -> Tensor:
        """(..., in, n) as the input of the ordinary layer, a view."""
        raise NotImplementedError

    def lifted_weight(self, edges: Tensor) -> Tensor:
        """The ordinary layer's weight, from what `edge_coefficients` gives."""
        raise NotImplementedError

    def run_lifted(self, x: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Lifts the input and runs the ordinary layer.

        Args:
            x: the layer's input.
            operation: called with the lifted input and the weight.
        """
        source = self.channels_last(x)
        lifted = self.lift(source)
        if self.rank is not None:
            mix = joined(self.mix, self.base_weight, self.mask, self.rank)
            return operation(self.arranged(self._mixed_shapes(lifted)), self.lifted_weight(mix).to(lifted.dtype))
        weight = self.lifted_weight(self.edge_coefficients()).to(lifted.dtype)
        if self.implementation != "recompute" or followed():
            return operation(self.arranged(lifted), weight)
        grid, base, dtype = self.grid, self.base, lifted.dtype
        # the tensors of this pass: a functional call has its own, and the module's may be others by then
        parts, held = (self.coefficients.detach(), _detached(self.base_weight), self.mask), source.detach()
        unchanged = _versions(*parts, held)

        def lift_again() -> Tensor:
            if self.grid != grid:
                raise ConfigError("grid: it changed between forward and backward pass; extend it between two steps")
            _check_versions(unchanged)
            return lifted_again(held, grid, base, dtype)

        def weight_again() -> Tensor:
            _check_versions(unchanged)
            with torch.no_grad():
                return self.lifted_weight(joined(*parts, grid.basis)).to(dtype)

        with rebuild_in_backward([(lifted, lift_again), (weight, weight_again)]):
            return operation(self.arranged(lifted), weight)

    def _mixed_shapes(self, lifted: Tensor) -> Tensor:
        """The channels' R shapes (and the base) in place of their n basis functions: (..., in, n) -> (..., in, R)."""
        values = torch.einsum("...cn,nrc->...cr", lifted[..., : self.basis], self.shapes[: self.basis].to(lifted.dtype))
        return values if self.base is None else torch.cat([values, lifted[..., self.basis :]], -1)

    # ------------------------------------------------------------------ edges

    def uniform_moments(self) -> SplineMoments:
        """Moments of the lifted values for an input spread evenly over the grid, the same for every channel."""
        points, mass = quadrature(self.grid)
        moments = SplineMoments.empty(self)
        moments.add_weighted(expand(points, self.grid, self.base, "dense"), mass)
        return moments

    def edge_strength(self, moments: SplineMoments | None = None) -> Tensor:
        """Standard deviation of every edge's output, sqrt(w^T S w) with S the covariance of the lifted values.

        Args:
            moments: of the layer's inputs; None: as if the input were spread evenly over the grid.

        Returns:
            (out, in / groups, *kernel) float64, without a graph.
        """
        if moments is not None:
            moments.check(self)
        covariance = (moments or self.uniform_moments()).covariance()
        with torch.no_grad():
            return self.edge_energy(covariance).clamp_min(0).sqrt()

    def edge_energy(self, covariance: Tensor) -> Tensor:
        """w^T S w of every edge, differentiable in the coefficients.

        Args:
            covariance: S (in, n (+ 1), n (+ 1)), or (1, ., .) for all channels alike.

        Returns:
            (out, in / groups, *kernel) in the covariance's dtype.
        """
        w = self.edge_coefficients().to(covariance)
        return (w * self.times_covariance(covariance, w)).sum(0)

    def times_covariance(self, covariance: Tensor, w: Tensor) -> Tensor:
        """S w of every edge with its own channel's S: (n, out, in / groups, *kernel) -> the same shape."""
        split = w.reshape(len(w), self.groups, -1, self.in_channels // self.groups, self._area)
        by_channel = covariance.expand(self.in_channels, -1, -1).unflatten(0, (self.groups, -1)).to(w)
        return torch.einsum("gcmn,ngock->mgock", by_channel, split).reshape(w.shape)

    def prune_edges(self, keep: Tensor, moments: SplineMoments | None = None) -> None:
        """Removes edges for good: they give nothing, get no gradient, and their coefficients are zero.

        With `moments`, the mean of a removed edge's output moves into a surviving edge of the same output (at the same
        kernel position where there is one): a constant added to all n coefficients of a spline is added to the spline,
        because the basis sums to one. This needs a tail other than `zero`.

        Args:
            keep: (out, in / groups, *kernel) bool, or 0 and 1; edges pruned before stay pruned.
            moments: of the layer's inputs.

        Raises:
            ConfigError: another shape or dtype, or no edge would be left.
        """
        if keep.shape != self.mask.shape or not bool(((keep == 0) | (keep == 1)).all()):
            raise ConfigError(
                f"keep: expected a bool tensor {tuple(self.mask.shape)}, got {keep.dtype} {tuple(keep.shape)}"
            )
        self.own_parameters()
        keep = keep.to(self.mask.device, torch.bool)
        before = self.live
        if not (before & keep).any():
            raise ConfigError("keep: no edge of the layer would be left; remove fewer, or take the layer out")
        with torch.no_grad():
            removed = before & ~keep
            if moments is not None and self.grid.tail != "zero":
                self._fold(moments.edge_means(self) * removed, before & keep)
            self.mask.mul_(keep)
            self.coefficients.mul_(self.mask)
            if self.base_weight is not None:
                self.base_weight.mul_(self.mask)

    def _fold(self, means: Tensor, survivors: Tensor) -> None:
        """Adds the removed edges' means (0 elsewhere) to surviving edges of the same output."""
        # (out, c, positions); a linear layer has one position
        means, survivors = (t.reshape(*t.shape[:2], -1) for t in (means, survivors))
        out = len(means)
        constants = means.new_zeros(means.shape)
        here = survivors.any(1)
        first = survivors.int().argmax(1, keepdim=True)
        constants.scatter_(1, first, (means.sum(1) * here).unsqueeze(1))
        homeless = (means.sum(1) * ~here).sum(1)
        anywhere = survivors.reshape(out, -1).any(1)
        chosen = survivors.reshape(out, -1).int().argmax(1, keepdim=True)
        constants.view(out, -1).scatter_add_(1, chosen, (homeless * anywhere).unsqueeze(1))
        if self.bias is not None:
            self.bias.add_((homeless * ~anywhere).to(self.bias))
        self.coefficients[: self.basis] += constants.view(self.mask.shape).to(self.coefficients)

    def spline_repr(self) -> str:
        """Bias, grid and base branch, for the layers' printed form."""
        base = "" if self.base is None else f", base={self.base}"
        rank = "" if self.rank is None else f", rank={self.rank}"
        return (
            f"bias={self.bias is not None}, grid={self.grid_size} of {self.max_grid_size} on ({self.grid.low:g}, "
            f"{self.grid.high:g}), order={self.grid.order}, tail={self.grid.tail}{base}{rank}"
        )

    def live_parameters(self) -> int:
        """Numbers that count: n per live edge (R with a rank, and the shapes), one more with a base, and the bias."""
        per_edge = (self.basis if self.rank is None else self.rank) + (self.base is not None)
        shared = 0 if self.rank is None else self.basis * self.rank * self.in_channels
        return int(self.live.sum()) * per_edge + shared + (self.bias.numel() if self.bias is not None else 0)


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _versions(*tensors: Tensor | None) -> list[tuple[Tensor, int]]:
    return [(t, t._version) for t in tensors if t is not None and not t.is_inference()]


def _check_versions(unchanged: list[tuple[Tensor, int]]) -> None:
    if any(t._version != version for t, version in unchanged):
        raise RuntimeError(
            "a spline layer's input or parameters were changed in place between forward and backward pass, which "
            "`implementation: recompute` reads again; step the optimizer after the backward pass"
        )


def spline_layers(module: nn.Module) -> dict[str, SplineLayer]:
    """Every spline layer of a module by name, in order."""
    return {name: child for name, child in module.named_modules() if isinstance(child, SplineLayer)}
