"""Convolutions of bytes by weights of 8 bits, with oneDNN's kernels where the processor has them.

oneDNN's convolution of uint8 by int8 (what PT2E's x86 backend lowers to) multiplies four times as many numbers an
instruction as float32 on processors with VNNI. Elsewhere, for transposed convolutions, and where something follows
every operation (export, compilers), the same whole numbers are multiplied in floating point, with the same result up to
the rounding of sums.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.nn.modes import followed


def int8_kernels() -> bool:
    """Whether this machine has oneDNN with instructions for bytes; without them its sums may overflow 16 bits."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


class Int8Conv(nn.Module):
    """Conv2d, ConvTranspose2d or Linear with a scale per output: bytes (B, C, H, W) or (..., C) -> float32.

    Args:
        layer: what is quantised; its weights are rounded to multiples of the largest of an output over 127.
        scale: of the input, whose values are scale * (byte - zero_point).
        zero_point: the byte of 0, with which borders are padded.

    Attributes:
        weight: buffer int8, as the layer's.
        steps: buffer (O,) float32, what the weights of an output are multiples of.
        bias: buffer (O,) float32, or None.
    """

    weight: Tensor
    steps: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, scale: float, zero_point: int) -> None:
        super().__init__()
        self.kind = type(layer)
        self.scale, self.zero_point = scale, zero_point
        weight = layer.weight.detach().double()
        grouped = by_output(weight, layer)
        steps = (grouped.abs().amax(1) / 127).clamp_min(1e-30)
        whole = (grouped / steps[:, None]).round()
        self.register_buffer("weight", from_output(whole, layer).to(torch.int8))
        self.register_buffer("steps", steps.float())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())
        self.settings: dict[str, Any] = {}
        if not isinstance(layer, nn.Linear):
            self.settings = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            self.settings["dilation"] = layer.dilation
        if isinstance(layer, nn.ConvTranspose2d):
            self.settings["output_padding"] = layer.output_padding
        self._packed: tuple[Any, ...] | None = None

    def rounded_weight(self) -> Tensor:
        """The weights that the bytes stand for, float64, as the layer's."""
        return self.weight.double() * self._by_output_of(self.steps.double())

    def _by_output_of(self, values: Tensor) -> Tensor:
        if self.kind is nn.ConvTranspose2d:
            groups = self.settings["groups"]
            inner = self.weight.shape[0] // groups
            return values.view(groups, 1, -1).expand(-1, inner, -1).reshape(*self.weight.shape[:2], 1, 1)
        return values.view(-1, *[1] * (self.weight.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (..., C) uint8 -> (B, O, H', W') or (..., O) float32."""
        if (
            followed()
            or x.device.type != "cpu"
            or x.numel() == 0
            or self.kind is nn.ConvTranspose2d
            or not int8_kernels()
        ):
            return self._in_floats(x)
        if self.kind is nn.Linear:
            rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # pixels of one picture
            return self._in_bytes(rows).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
        return self._in_bytes(x)

    def _in_bytes(self, x: Tensor) -> Tensor:
        settings: dict[str, Any] = {
            "stride": (1, 1),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
        } | self.settings
        sizes = [list(settings[name]) for name in ("stride", "padding", "dilation")]
        weight = self.weight if self.weight.dim() == 4 else self.weight[..., None, None]
        bias = None if self.bias is None else self.bias.float()
        zeros = torch.zeros(len(self.steps), dtype=torch.int64)
        # packed for oneDNN once, and again when the weights are others
        key = (self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version)
        if self._packed is None or self._packed[0] != key:
            with torch.inference_mode(False):
                made = torch.ops.onednn.qconv_prepack(
                    weight, self.steps.float(), self.scale, self.zero_point, *sizes, settings["groups"], None
                )
            self._packed = (key, made)
        return torch.ops.onednn.qconv_pointwise(
            x, self.scale, self.zero_point, self._packed[1], self.steps.float(), zeros, bias, *sizes,
            settings["groups"], 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def _in_floats(self, x: Tensor) -> Tensor:
        whole = x.float() - self.zero_point
        weight = self.weight.float()
        if self.kind is nn.Linear:
            sums = F.linear(whole, weight) * (self.steps * self.scale)
            return sums if self.bias is None else sums + self.bias
        function = F.conv_transpose2d if self.kind is nn.ConvTranspose2d else F.conv2d
        sums = function(whole, weight, None, **self.settings) * (self.steps * self.scale).view(-1, 1, 1)
        return sums if self.bias is None else sums + self.bias.view(-1, 1, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}  # type: ignore[misc]  # what oneDNN packed has no copy

    def extra_repr(self) -> str:
        """Like the layer's, with the scale of the bytes."""
        return f"{self.kind.__name__}, {tuple(self.weight.shape)}, scale={self.scale:.3g}, zero_point={self.zero_point}"


def by_output(weight: Tensor, layer: nn.Module) -> Tensor:
    """A layer's weight as (O, everything that an output sums)."""
    if isinstance(layer, nn.ConvTranspose2d):
        split = weight.unflatten(0, (layer.groups, -1))  # (g, C / g, O / g, kh, kw)
        return split.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def from_output(grouped: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> Tensor:
    """The inverse of `by_output`."""
    if isinstance(layer, nn.ConvTranspose2d):
        inner = layer.in_channels // layer.groups
        split = grouped.view(layer.groups, -1, inner, *layer.kernel_size)
        return split.transpose(1, 2).reshape(layer.weight.shape)
    return grouped.view(layer.weight.shape)
