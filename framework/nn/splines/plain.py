"""A spline convolution for inference: the lift in one broadcast over channels first, a normalisation folded into it."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.nn.precision import at_least_float32
from framework.nn.splines.bspline import centred, end_slopes
from framework.nn.splines.kan import KANConv2d, KANConvTranspose2d


class PlainSplineConv(nn.Module):
    """What a normalisation and a spline convolution behind it give, with tables in place of grids and parameters.

    The normalisation's scale and shift and the grid's go into one product per channel, t = (x - low) / h, in which
    cells are one apart. Values are found in at least float32, whatever the dtype of the weights.

    Args:
        conv: a KANConv2d with padding by zeros, or a KANConvTranspose2d.
        norm: the batch normalisation in front of it, in evaluation mode; None: none.
    """

    scale: Tensor
    shift: Tensor
    gain: Tensor
    offset: Tensor
    centres: Tensor
    slopes: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: KANConv2d | KANConvTranspose2d, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__()
        grid = conv.grid
        gain, offset = _affine(norm, conv.in_channels)
        cells = grid.size / (grid.high - grid.low)
        weight = conv.lifted_weight(conv.edge_coefficients().detach())
        tables = {
            "scale": (gain * cells).float()[:, None, None, None],
            "shift": ((offset - grid.low) * cells).float()[:, None, None, None],
            "gain": gain.float()[:, None, None, None],
            "offset": offset.float()[:, None, None, None],
            "centres": (torch.arange(grid.basis) - (grid.order - (grid.order + 1) / 2))[:, None, None],
            "slopes": torch.tensor(end_slopes(grid))[..., None, None] * grid.step,
        }
        for name, table in tables.items():
            self.register_buffer(name, table)
        self.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.order, self.cells, self.tail, self.base = grid.order, float(grid.size), grid.tail, conv.base
        self.transposed = isinstance(conv, KANConvTranspose2d)
        self.arguments = _arguments(conv)

    def _apply(self, fn: Any, recurse: bool = True) -> "PlainSplineConv":
        # the tables stay in float32: 16 bits cannot say in which cell a value lies
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, table in kept.items():
            moved = cast(Tensor, self._buffers[name])
            self._buffers[name] = cast(Tensor, table).to(moved.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W') in the weights' dtype."""
        wide = at_least_float32(x)[:, :, None]
        t = wide * self.scale + self.shift
        inside = t if self.tail == "zero" else t.clamp(0.0, self.cells)
        lifted = centred((inside - self.centres).abs(), self.order)
        if self.tail == "linear":
            lifted = lifted + torch.relu(t - self.cells) * self.slopes[1] - torch.relu(-t) * self.slopes[0]
        if self.base is not None:
            seen = wide * self.gain + self.offset
            lifted = torch.cat([lifted, F.silu(seen) if self.base == "silu" else seen], 2)
        lifted = lifted.flatten(1, 2).to(self.weight.dtype)
        run = F.conv_transpose2d if self.transposed else F.conv2d
        return run(lifted, self.weight, self.bias, *self.arguments)


def can_be_plain(conv: nn.Module) -> bool:
    """Whether `PlainSplineConv` takes this layer: a spline convolution whose border, if any, is of zeros and even."""
    if isinstance(conv, KANConvTranspose2d):
        return True
    if not isinstance(conv, KANConv2d):
        return False
    left, right, top, bottom = conv._borders
    return conv.padding_mode in ("zeros", "mask") and (left, top) == (right, bottom)


def _affine(norm: nn.BatchNorm2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """A normalisation as (factor, summand) per channel, float64."""
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    mean, var = (cast(Tensor, t).detach().double() for t in (norm.running_mean, norm.running_var))
    gain = (var + norm.eps).rsqrt()
    if norm.affine:
        gain = gain * norm.weight.detach().double()
        return gain, norm.bias.detach().double() - mean * gain
    return gain, -mean * gain


def _arguments(conv: KANConv2d | KANConvTranspose2d) -> tuple[Any, ...]:
    """What follows weight and bias in the call of the ordinary convolution."""
    if isinstance(conv, KANConvTranspose2d):
        return (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    left, _, top, _ = conv._borders
    return (conv.stride, (top, left), conv.dilation, conv.groups)
