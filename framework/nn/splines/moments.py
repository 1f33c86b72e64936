"""First and second moments of a layer's lifted values: one small matrix per input channel says all about its edges."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.precision import without_autocast
from framework.nn.splines.bspline import SplineGrid, dense_basis, two_numbers
from framework.nn.splines.coefficients import SplineCoefficients

BINS = 60


class SplineMoments:
    """E[E] and E[E E^T] per input channel over everything a layer saw, E being its n (+ 1) lifted values.

    Attributes:
        weight: total mass per channel, scalar float64.
        first: (in, n) float64 sums of the values; (1, n) when all channels are alike.
        second: (in, n, n) float64 sums of the products.
        histogram: (BINS,) float64, counts of the inputs over twice the grid's range, the ends holding the rest.
        outside: scalar float64, number of inputs outside the grid.
    """

    def __init__(self, channels: int, basis: int) -> None:
        self.weight = _sums()
        self.first = _sums(channels, basis)
        self.second = _sums(channels, basis, basis)
        self.histogram = _sums(BINS)
        self.outside = _sums()
        self.grid: SplineGrid | None = None

    @classmethod
    def empty(cls, layer: SplineCoefficients, channels: int = 1) -> "SplineMoments":
        """Nothing seen yet, sized for the layer's grid and base branch."""
        moments = cls(channels, layer.basis + (layer.base is not None))
        moments.grid = layer.grid
        return moments

    def check(self, layer: SplineCoefficients) -> None:
        """That they are those of the layer's present grid.

        Raises:
            ConfigError: they were collected on another one, or of another layer.
        """
        known = self.grid is None or self.grid == layer.grid
        channels = self.first.shape[0] in (1, layer.in_channels)
        if not known or not channels or self.first.shape[1] != layer.basis + (layer.base is not None):
            raise ConfigError(
                f"moments: they are of {self.first.shape[0]} channels and {self.first.shape[1]} lifted values, the "
                f"layer has {layer.in_channels} and {layer.basis + (layer.base is not None)} on its present grid; "
                "collect them again with `observe` after a grid change"
            )

    @torch.no_grad()
    def add(self, layer: SplineCoefficients, x: Tensor) -> None:
        """Adds a layer's input, channels first except for (..., features) of a linear layer."""
        self.check(layer)
        x = x.detach().float()
        rows = layer.channels_last(x).reshape(-1, layer.in_channels)
        # sums over thousands of pixels need more than bfloat16's 8 bits
        with without_autocast(x.device.type):
            values = layer.lift(rows).float()  # (N, in, n)
            by_channel = values.transpose(0, 1).contiguous()
            self.weight += len(rows)
            self.first += by_channel.sum(1).double().cpu()
            products = (by_channel.transpose(1, 2) @ by_channel).double().cpu()
            self.second += (products + products.mT) / 2  # a matrix product rounds its two halves differently
        low, high = histogram_range(layer)
        inside = rows.clamp(low, high)
        if torch.are_deterministic_algorithms_enabled():
            inside = inside.cpu()  # on a GPU torch has no deterministic histogram
        self.histogram += torch.histc(inside, BINS, low, high).double().cpu()
        self.outside += ((rows < layer.grid.low) | (rows > layer.grid.high)).sum().double().cpu() / layer.in_channels

    def add_weighted(self, values: Tensor, mass: Tensor) -> None:
        """Adds values (Q, n) float64 of weight `mass` (Q,), for all channels alike."""
        self.weight += mass.sum()
        self.first += (mass @ values)[None]
        self.second += ((values * mass[:, None]).T @ values)[None]

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name: what is reduced over ranks and stored."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SplineMoments":
        """The inverse of `tensors`."""
        moments = cls(*tensors["first"].shape)
        vars(moments).update({name: _sums(*tensor.shape).copy_(tensor) for name, tensor in tensors.items()})
        return moments

    def mean(self) -> Tensor:
        """E[E], (in, n) float64.

        Raises:
            ConfigError: nothing has been seen.
        """
        if self.weight <= 0:
            raise ConfigError("moments: the layer has seen no data; run batches inside `observe` first")
        return self.first / self.weight

    def covariance(self) -> Tensor:
        """Cov(E), (in, n, n) float64: centred, because an edge that is constant is only a bias."""
        mean = self.mean()
        return self.second / self.weight - mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def edge_means(self, layer: SplineCoefficients) -> Tensor:
        """Mean output of every edge, (out, in / groups, *kernel) float64."""
        self.check(layer)
        mean = self.mean().expand(layer.in_channels, -1).unflatten(0, (layer.groups, -1))
        w = layer.edge_coefficients().detach().double().cpu()
        split = w.reshape(len(w), layer.groups, -1, w.shape[2], layer.mask[0, 0].numel())
        means = torch.einsum("gcn,ngock->gock", mean, split).reshape(w.shape[1:])
        return means.to(layer.mask.device)

    def outside_fraction(self) -> float:
        """Share of the inputs outside the grid, in [0, 1]."""
        return float(self.outside / self.weight.clamp_min(1))


def _sums(*shape: int) -> Tensor:
    """Zeros on the CPU that batches of every mode may be added to."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.float64, device="cpu")


class CrossMoments:
    """E[B' B'^T] and E[B' B^T] of a new grid and a layer's own, per channel: what `refit_grid` needs, batch by batch.

    Args:
        layer: the layer that is to move.
        grid_size: new G; None keeps it.
        grid_range: new (a, b); None keeps it.
    """

    def __init__(
        self, layer: SplineCoefficients, grid_size: int | None = None, grid_range: tuple[float, float] | None = None
    ) -> None:
        low, high = (layer.grid.low, layer.grid.high) if grid_range is None else two_numbers(grid_range)
        self.layer, self.source = layer, layer.grid
        size = layer.grid_size if grid_size is None else grid_size
        self.target = SplineGrid(size, layer.grid.order, low, high, layer.grid.tail)
        self.weight = 0
        self.gram_sum = _sums(layer.in_channels, self.target.basis, self.target.basis)
        self.cross_sum = _sums(layer.in_channels, self.target.basis, layer.basis)

    def check(self) -> None:
        """That they are those of the layer's present grid.

        Raises:
            ConfigError: its grid was changed after they were made.
        """
        if self.layer.grid != self.source:
            now, then = ((g.size, g.low, g.high) for g in (self.layer.grid, self.source))
            raise ConfigError(
                f"moments: expected those of the layer's present grid {now}, got those of {then} (cells, low, high); "
                "make CrossMoments anew after a grid change"
            )

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Adds a layer's input.

        Raises:
            ConfigError: the layer's grid was changed since.
        """
        self.check()
        # in float64: where the data leave a cell to the even spread, rounding would weigh as much as that
        rows = self.layer.channels_last(x.detach().double()).reshape(-1, self.layer.in_channels).T
        with without_autocast(x.device.type):
            new, old = dense_basis(rows, self.target), dense_basis(rows, self.layer.grid)
            self.weight += rows.shape[1]
            self.gram_sum += (new.transpose(1, 2) @ new).double().cpu()
            self.cross_sum += (new.transpose(1, 2) @ old).double().cpu()

    def refit(self) -> Tensor:
        """Moves the layer; returns the map, (in, n', n) float64.

        Raises:
            ConfigError: the layer's grid was changed since.
        """
        self.check()
        return self.layer.refit_grid(
            self.target.size,
            (self.target.low, self.target.high),
            self.gram_sum / max(1, self.weight),
            self.cross_sum / max(1, self.weight),
        )


def histogram_range(layer: SplineCoefficients) -> tuple[float, float]:
    """The histogram's ends: the grid's range with half its width on either side."""
    half = (layer.grid.high - layer.grid.low) / 2
    return layer.grid.low - half, layer.grid.high + half


@contextmanager
def observe(
    layers: Mapping[str, SplineCoefficients], moments: dict[str, SplineMoments] | None = None
) -> Iterator[dict[str, SplineMoments]]:
    """Collects the moments of all layers from every forward pass made inside.

    Args:
        layers: by name.
        moments: to go on with; None starts from nothing.
    """
    moments = {} if moments is None else moments
    handles = []

    def watch(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            if name not in moments:
                moments[name] = SplineMoments.empty(layer, layer.in_channels)
            moments[name].add(layer, inputs[0])

        return hook

    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(watch(name)))
        yield moments
    finally:
        for handle in handles:
            handle.remove()
