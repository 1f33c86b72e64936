"""SIREN: networks of coordinates with sine activations (Sitzmann et al., NeurIPS 2020)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.coordinates.experts import Bias, ExpertLinear, Segment
from framework.nn.coordinates.tiles import Tiles
from framework.nn.modes import Layer
from framework.nn.precision import without_autocast

Grid = Literal["pixel_center", "inclusive"]


def coordinate_grid(height: int, width: int, grid: Grid = "pixel_center") -> Tensor:
    """The positions of an image's pixels on [-1, 1].

    Args:
        height: H, rows.
        width: W, columns.
        grid: `pixel_center` puts pixel i of N at -1 + (2 i + 1) / N; `inclusive` puts the first and last at -1 and 1.

    Returns:
        (H, W, 2) float32, (row, column).

    Raises:
        ConfigError: a size below 1 (2 for `inclusive`), or an unknown grid.
    """
    if grid not in ("pixel_center", "inclusive"):
        raise ConfigError(f"grid: expected pixel_center or inclusive, got {grid!r}")
    smallest = 1 if grid == "pixel_center" else 2
    if min(height, width) < smallest:
        raise ConfigError(f"grid: {grid} needs at least {smallest} pixels along an axis, got {height} x {width}")
    axes = []
    for n in (height, width):
        i = torch.arange(n, dtype=torch.float64)
        axes.append(-1 + (2 * i + 1) / n if grid == "pixel_center" else -1 + 2 * i / (n - 1))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float()


def siren_bound(fan_in: int, w0: float, first: bool = False) -> float:
    """Half-width of the uniform distribution of a layer's initial weights (SIREN, section 3.2).

    1 / fan_in for the first layer, sqrt(6 / fan_in) / w0 for the others.
    """
    return 1 / fan_in if first else (6 / fan_in) ** 0.5 / w0


@torch.no_grad()
def siren_init_(layer: ExpertLinear, w0: float, first: bool, generators: Sequence[torch.Generator | None]) -> None:
    """Draws weights from U(+-siren_bound) and biases from U(+-1 / sqrt(fan_in)), every expert and network its own.

    Args:
        layer: initialised in place.
        w0: frequency factor of the sine.
        first: the layer is the network's first.
        generators: one per network, on any device; None is the global one.

    Raises:
        ConfigError: another number of generators than of networks.
    """
    networks = layer.num_networks or 1
    if len(generators) != networks:
        raise ConfigError(f"generators: expected one for each of {networks} networks, got {len(generators)}")
    bounds = {"weight": siren_bound(layer.in_features, w0, first), "bias": layer.in_features**-0.5}
    for name, parameter in layer.named_parameters():
        rows = parameter if layer.num_networks is not None else parameter[None]
        for row, generator in zip(rows, generators, strict=True):
            there = None if generator is None else generator.device
            draw = torch.rand(row.shape, generator=generator, dtype=torch.float32, device=there)
            row.copy_((2 * draw - 1) * bounds[name])


class SineLayer(Layer):
    """sin(w0 (W[e] x + b)), one layer of a SIREN, with experts if there are several.

    The factor w0 is applied to weights and bias, which is the same number and touches far fewer values. The first
    layer is computed in at least float32, under autocast and with 16-bit weights too: bfloat16 cannot tell the
    coordinates of neighbouring pixels apart.

    Args:
        in_features: length of an input row.
        out_features: length of an output row.
        num_experts: weight matrices to choose from.
        w0: frequency factor.
        first: the network's first layer, which has its own initialisation.
        bias: as in ExpertLinear.
        num_networks: as in ExpertLinear.
        generators: of the initial values, one per network; None: the global one.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int = 1,
        w0: float = 30.0,
        first: bool = False,
        bias: Bias = "shared",
        num_networks: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not w0 > 0:
            raise ConfigError(f"w0: expected a number above 0, got {w0}")
        self.w0, self.first = w0, first
        self.linear = ExpertLinear(in_features, out_features, num_experts, bias, num_networks, device, dtype)
        self.reset_parameters(generators)

    def reset_parameters(self, generators: Sequence[torch.Generator] | None = None) -> None:
        """Draws weights and biases as `siren_init_` does; generators one per network, None: the global one."""
        siren_init_(self.linear, self.w0, self.first, generators or [None] * (self.linear.num_networks or 1))

    @property
    def weight(self) -> nn.Parameter:
        """The weights of `linear`, without the factor w0."""
        return self.linear.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of `linear`, without the factor w0."""
        return self.linear.bias

    def extra_repr(self) -> str:
        """The factor and the place."""
        return f"w0={self.w0:g}, first={self.first}"

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        segments: Sequence[Segment] | Sequence[Sequence[Segment]] | Tiles | None = None,
    ) -> Tensor:
        """(N, in) or (B, N, in) -> (N, out) or (B, N, out) in [-1, 1]; index and segments as in ExpertLinear."""
        if not self.first:
            return torch.sin(self.linear(x, index, segments, self.w0))
        dtype = torch.promote_types(x.dtype, self.linear.weight.dtype)
        with without_autocast(x.device.type):
            exact = x.to(torch.promote_types(dtype, torch.float32))
            return torch.sin(self.linear(exact, index, segments, self.w0)).to(dtype)
