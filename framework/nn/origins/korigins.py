"""K-Origins: trainable intensity origins in front of a convolution (Mason and Martinez, arXiv 2409.02281)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import Layer, followed, has_values, numbers
from framework.nn.precision import at_least_float32, exact_backward, full_precision


class KOrigins(Layer):
    """Shift every input channel by K trainable intensity origins: Y[k * N + c] = X[c] - w[k, c].

    Section 2 of arXiv 2409.02281 (Y_k = X - J w_k). The subtraction is done in at least float32 under autocast too,
    because its inputs are raw 16-bit intensities; a convolution that consumes the maps needs :func:`full_precision`
    and :func:`exact_backward`.

    Args:
        in_channels: N, channels of the input.
        weights: initial origins in units of the input intensity, (K,) for all channels alike or (K, N).
        concat_input: put the input itself in front of the shifted maps.
        trainable: False keeps the origins where they are.
        device: of the origins.
        dtype: of the origins, float32 unless given.

    Attributes:
        weight: parameter (K, N) float32, the origins w in units of the input intensity. 16-bit origins
            (`.bfloat16()`, Lightning's `bf16-true`) are as coarse as 16-bit intensities; use autocast instead.

    Raises:
        ConfigError: if ``in_channels`` is below 1, or ``weights`` has another shape, is empty or not finite.
    """

    def __init__(
        self,
        in_channels: int,
        weights: Tensor | Sequence[float] | Sequence[Sequence[float]],
        *,
        concat_input: bool = True,
        trainable: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ConfigError(f"in_channels: expected at least 1, got {in_channels}")
        shape, kept, self._first = _first_origins(in_channels, weights, dtype or torch.float32)
        self.in_channels = in_channels
        self.concat_input = concat_input
        made = torch.empty(shape, dtype=kept, device=device or _default_device(weights))
        self.weight = nn.Parameter(made, requires_grad=trainable)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The origins that the layer was built with.

        Raises:
            ConfigError: it was built with origins on the meta device, which have no values.
        """
        if self._first is None:
            if not self.weight.is_meta:
                raise ConfigError("weights: the layer was built with origins without values; load a state_dict")
            return
        with torch.no_grad():
            self.weight.copy_(torch.tensor(self._first, dtype=self.weight.dtype, device="cpu"))

    @property
    def out_channels(self) -> int:
        """N (1 + K) with the input in front, N K without."""
        return self.in_channels * (self.weight.shape[0] + self.concat_input)

    def forward(self, x: Tensor) -> Tensor:
        """Shift the input.

        Args:
            x: (B, N, H, W) or (N, H, W), any real dtype, raw intensities.

        Returns:
            (B, N (1 + K), H, W), or (B, N K, H, W) without the input, and no B for one image, in what torch promotes
            the input's and the origins' dtypes to (float32 unless the layer was cast): the input first, then the
            shifted maps with k slow and channel fast.

        Raises:
            ConfigError: if ``x`` is neither (B, in_channels, H, W) nor (in_channels, H, W).
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ConfigError(
                f"image: expected (B, in_channels={self.in_channels}, H, W) or ({self.in_channels}, H, W), got "
                f"{tuple(x.shape)}"
            )
        # the input is the map of an origin at zero: one subtraction writes all maps, without a second copy to join them
        origins = F.pad(self.weight, (0, 0, 1, 0)) if self.concat_input else self.weight
        with full_precision(x):
            maps = at_least_float32(x).unsqueeze(-4) - at_least_float32(origins)[..., None, None]
            return maps.flatten(-4, -3).to(torch.promote_types(x.dtype, self.weight.dtype))

    def extra_repr(self) -> str:
        """The arguments, with the number of origins."""
        return (
            f"{self.in_channels}, origins={self.weight.shape[0]}, concat_input={self.concat_input}, "
            f"trainable={self.weight.requires_grad}"
        )


def _first_origins(
    in_channels: int, weights: Any, dtype: torch.dtype
) -> tuple[torch.Size, torch.dtype, list[list[float]] | None]:
    """Shape, dtype and numbers of the origins; None where they have no numbers."""
    with numbers():
        try:
            # what has no values cannot be copied to the CPU
            meta = "meta" if isinstance(weights, Tensor) and weights.is_meta else None
            weight = torch.as_tensor(weights, dtype=dtype, device=meta).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"weights: expected numbers of shape (K,) or (K, {in_channels}); they could not be read: {error}"
            ) from error
        shape = tuple(weight.shape)
        if weight.dim() == 1:
            weight = weight[:, None].expand(-1, in_channels)
        if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != in_channels:
            raise ConfigError(
                f"weights: expected (K,) or (K, in_channels) = (K, {in_channels}), K at least 1, got shape {shape}"
            )
        if has_values(weight) and not weight.isfinite().all():
            raise ConfigError("weights: they hold NaN or infinite origins; give finite intensities")
        return weight.shape, weight.dtype, weight.tolist() if has_values(weight) else None


#: rows and columns of a map, and what is added there, (out, h, w)
Strips = list[tuple[slice, slice, Tensor]]


def _default_device(weights: Any) -> torch.device:
    return weights.device if isinstance(weights, Tensor) else torch.get_default_device()


class FoldedKOrigins(Layer):
    """A K-Origins layer and the convolution behind it as one plain convolution; made by :func:`fold_korigins`.

    Attributes:
        conv: the plain convolution, its bias that of the interior.
        tap_bias: buffer (out, kh, kw), what one kernel element inside the image adds to the bias.
    """

    tap_bias: Tensor

    def __init__(self, conv: nn.Conv2d, tap_bias: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("tap_bias", tap_bias)
        self._kept: dict[tuple[int, int], tuple[Tensor, Strips]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, N, H, W) or (N, H, W), any real dtype, raw intensities.

        Returns:
            (B, out, H', W') or (out, H', W') in what torch promotes the dtypes of x and the convolution to; under
            autocast too, and with 16-bit weights, everything is summed in at least float32.
        """
        dtype = torch.promote_types(x.dtype, self.conv.weight.dtype)
        inner = torch.promote_types(dtype, torch.float32)
        with full_precision(x):
            conv, bias = self.conv, cast(Tensor, self.conv.bias)
            if followed():
                return self._with_ones(x.to(inner), inner).to(dtype)
            y = exact_backward(conv._conv_forward(x.to(inner), conv.weight.to(inner), bias.to(inner)), x)
            for rows, columns, correction in self._border(x.shape[-2], x.shape[-1]):
                y[..., rows, columns].add_(correction)
        return y.to(dtype)

    @property
    def weight(self) -> Tensor:
        """The plain convolution's, (out, N, kh, kw)."""
        return self.conv.weight

    @property
    def bias(self) -> Tensor:
        """The plain convolution's, that of the interior, (out,)."""
        return cast(Tensor, self.conv.bias)

    def _with_ones(self, x: Tensor, inner: torch.dtype) -> Tensor:
        """The same for any size: one more channel of ones, whose kernel is the bias of the elements inside the image.

        Its zero padding takes away what an element outside would add, so no size has to be looked at.
        """
        conv, bias, taps = self.conv, cast(Tensor, self.conv.bias), self.tap_bias
        weight = torch.cat([conv.weight.to(inner), taps.to(inner).unsqueeze(1)], 1)
        rest = bias.to(inner) - taps.to(inner).sum((1, 2))
        return conv._conv_forward(torch.cat([x, torch.ones_like(x[..., :1, :, :])], -3), weight, rest)

    def _border(self, height: int, width: int) -> Strips:
        """The same where it is not 0: row slice, column slice, (out, h, w); kept with the `tap_bias` it is of."""
        taps = self.tap_bias
        # an accelerator would wait for the comparison; tensors of a mode and of a graph are not kept
        keeps = type(taps) is Tensor and taps.device.type == "cpu" and not taps.requires_grad
        if keeps and (height, width) in self._kept:
            made_from, strips = self._kept[height, width]
            if made_from.dtype == taps.dtype and torch.equal(made_from, taps):
                return strips
        strips = self._strips(height, width)
        if keeps and all(type(strip) is Tensor for _, _, strip in strips):
            if len(self._kept) == 8:  # images of ever new sizes must not fill the memory
                self._kept.pop(next(iter(self._kept)))
            self._kept[height, width] = taps.clone(), strips
        return strips

    def _strips(self, height: int, width: int) -> Strips:
        (rows, top, bottom), (columns, left, right) = self._taps_inside(height, 0), self._taps_inside(width, 1)
        if top == 0 and bottom == len(rows) and left == 0 and right == len(columns):
            return []
        taps = self.tap_bias.double()
        total = taps.sum((1, 2))[:, None, None]
        by_row = taps @ columns.T  # (out, kh, W')
        level = by_row.sum(1, keepdim=True) - total  # where all rows of the kernel lie inside
        strips = [
            (slice(0, top), slice(None), rows[:top] @ by_row - total),
            (slice(bottom, None), slice(None), rows[bottom:] @ by_row - total),
            (slice(top, bottom), slice(0, left), level[..., :left]),
            (slice(top, bottom), slice(right, None), level[..., right:]),
        ]
        return [(row, column, bias.to(self.tap_bias)) for row, column, bias in strips if bias.numel()]

    def _reach(self, axis: int) -> tuple[int, int, int]:
        """Along one axis: padding before and after the image, and pixels from a kernel's first element to its last."""
        span = self.conv.dilation[axis] * (self.conv.kernel_size[axis] - 1)
        if isinstance(self.conv.padding, str):
            total = span if self.conv.padding == "same" else 0
            return total // 2, total - total // 2, span
        return self.conv.padding[axis], self.conv.padding[axis], span

    def _taps_inside(self, size: int, axis: int) -> tuple[Tensor, int, int]:
        """Along one axis: (outputs, taps) float64, 1 where the kernel element lies inside the image, else 0; the first
        and one past the last output whose taps all do, both the number of outputs when there is none."""
        before, after, span = self._reach(axis)
        stride, device = self.conv.stride[axis], self.tap_bias.device
        outputs = (size + before + after - span - 1) // stride + 1
        taps = self.conv.dilation[axis] * torch.arange(self.conv.kernel_size[axis], device=device)
        positions = stride * torch.arange(outputs, device=device)[:, None] + taps - before
        first, past = -(-before // stride), min(outputs, (size - 1 + before - span) // stride + 1)
        inside = ((positions >= 0) & (positions < size)).double()
        return (inside, first, past) if first < past else (inside, outputs, outputs)


def fold_korigins(korigins: KOrigins, conv: nn.Conv2d) -> FoldedKOrigins:
    """Fold a K-Origins layer into the convolution behind it: the same maps at the cost of the plain convolution.

    With the kernel W split into the parts W_k that see the shifted maps and W_0 that sees the input,

        conv([X, X - w_1, ...]) = (W_0 + sum_k W_k) * X + b - sum_k w_k (sum of the W_k inside the image),

    the zero padding being applied after the subtraction, so that a kernel element outside adds nothing. In the
    interior the last term is one number per output channel and goes into the bias; near the border it is corrected
    by narrow strips, made anew for another size or `tap_bias`. Everything is summed in float64, then cast to the
    dtype of ``conv``.

    Args:
        korigins: layer of N channels and K origins.
        conv: convolution of its N (1 + K) maps (N K without the input), zero padding, one group; any kernel size,
            stride, dilation and padding.

    Returns:
        Module (B, N, H, W) -> (B, out, H', W') on the device and in the dtype of ``conv``; it shares no memory with
        the arguments and does not follow their later training.

    Raises:
        ConfigError: if ``conv`` is not an ``nn.Conv2d``, has groups or another padding mode, or does not fit.
    """
    if not isinstance(conv, nn.Conv2d):
        raise ConfigError(f"conv: expected a torch.nn.Conv2d to fold, got a {type(conv).__name__}")
    if conv.padding_mode != "zeros":
        raise ConfigError(f"conv: expected padding_mode 'zeros' to fold, got {conv.padding_mode!r}")
    if conv.groups != 1:
        raise ConfigError(f"conv: expected groups 1 to fold, got {conv.groups}")
    if conv.in_channels != korigins.out_channels:
        raise ConfigError(
            f"conv: expected in_channels {korigins.out_channels}, the maps of the K-Origins layer, got "
            f"{conv.in_channels}"
        )
    weight = conv.weight.detach()
    kernel = _exact(weight).unflatten(1, (-1, korigins.in_channels))  # (out, 1 + K or K, N, kh, kw)
    origins = _exact(korigins.weight)
    tap_bias = -torch.einsum("okchw,kc->ohw", kernel[:, -len(origins) :], origins)
    bias = tap_bias.sum((1, 2))
    if conv.bias is not None:
        bias = bias + _exact(conv.bias)
    folded = nn.Conv2d(
        korigins.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        device="meta",
    )
    folded.weight = nn.Parameter(kernel.sum(1).to(weight))
    folded.bias = nn.Parameter(bias.to(weight))
    return FoldedKOrigins(folded, tap_bias.to(weight)).train(conv.training)


def _exact(parameter: Tensor) -> Tensor:
    """In float64 on the CPU; what has no values stays on the meta device."""
    parameter = parameter.detach()
    return (parameter if parameter.is_meta else parameter.cpu()).double()


def convolve_folded(x: Tensor, korigins: KOrigins, conv: nn.Conv2d) -> Tensor:
    """`conv(korigins(x))` as one plain convolution of x, differentiable in x, in the kernel and in the bias.

    For training behind origins that stay where they are: the maps are neither written nor read. The kernel's two sums
    are made in float64, as in `fold_korigins`; the gradients are those of the unfolded form up to rounding.

    Args:
        x: (B, N, H, W) or (N, H, W), any real dtype, raw intensities.
        korigins: layer of N channels.
        conv: zero padding given as numbers, one group.

    Returns:
        (B, out, H', W') or (out, H', W') in what torch promotes the dtypes of x and the convolution to.
    """
    dtype = torch.promote_types(x.dtype, conv.weight.dtype)
    inner = torch.promote_types(dtype, torch.float32)
    with full_precision(x):
        kernel = conv.weight.double().unflatten(1, (-1, korigins.in_channels))  # (out, 1 + K or K, N, kh, kw)
        origins = korigins.weight.double()
        taps = -torch.einsum("okchw,kc->ohw", kernel[:, -len(origins) :], origins)
        bias = taps.sum((1, 2)) if conv.bias is None else taps.sum((1, 2)) + conv.bias.double()
        plain: Any = (conv.stride, conv.padding, conv.dilation)
        y = F.conv2d(x.to(inner), kernel.sum(1).to(inner), bias.to(inner), *plain)
        # a kernel element outside the image adds nothing: the same convolution of what lies outside takes it off again
        inside = torch.ones((1, *x.shape[-2:]), dtype=inner, device=x.device)
        reached = F.conv2d(inside, taps.unsqueeze(1).to(inner), None, *plain)
        y = exact_backward(y + (reached - taps.sum((1, 2)).to(inner)[:, None, None]), x)
    return y.to(dtype)
