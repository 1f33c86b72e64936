"""K-Origins: trainable intensity origins in front of a convolution (Mason and Martinez, arXiv 2409.02281)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.precision import at_least_float32, full_precision


class KOrigins(nn.Module):
    """Shift every input channel by K trainable intensity origins: Y[k * N + c] = X[c] - w[k, c].

    Section 2 of arXiv 2409.02281 (Y_k = X - J w_k). The subtraction is done in at least float32 under autocast too,
    because its inputs are raw 16-bit intensities; a convolution that consumes the maps needs :func:`full_precision`.

    Args:
        in_channels: N, channels of the input.
        weights: initial origins in units of the input intensity, (K,) for all channels alike or (K, N).
        concat_input: put the input itself in front of the shifted maps.
        trainable: False keeps the origins where they are.

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
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ConfigError(f"in_channels is {in_channels}; expected at least 1.")
        try:
            weight = torch.as_tensor(weights, dtype=torch.float32).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"weights must be numbers of shape (K,) or (K, {in_channels}); they could not be read: {error}."
            ) from error
        shape = tuple(weight.shape)
        if weight.dim() == 1:
            weight = weight[:, None].expand(-1, in_channels)
        if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != in_channels:
            raise ConfigError(
                f"weights has shape {shape}; expected (K,) or (K, in_channels) = (K, {in_channels}), K at least 1."
            )
        if not weight.isfinite().all():
            raise ConfigError("weights holds NaN or infinite origins; give finite intensities.")
        self.in_channels = in_channels
        self.concat_input = concat_input
        self.weight = nn.Parameter(weight.clone(), requires_grad=trainable)

    @property
    def out_channels(self) -> int:
        """N (1 + K) with the input in front, N K without."""
        return self.in_channels * (self.weight.shape[0] + self.concat_input)

    def forward(self, x: Tensor) -> Tensor:
        """Shift the input.

        Args:
            x: (B, N, H, W), any real dtype, raw intensities.

        Returns:
            (B, N (1 + K), H, W), or (B, N K, H, W) without the input, in what torch promotes the input's and the
            origins' dtypes to (float32 unless the layer was cast): the input first, then the shifted maps with k slow
            and channel fast.

        Raises:
            ConfigError: if ``x`` is not (B, in_channels, H, W).
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f"got an input of shape {tuple(x.shape)}; expected (B, in_channels={self.in_channels}, H, W)."
            )
        # the input is the map of an origin at zero: one subtraction writes all maps, without a second copy to join them
        origins = F.pad(self.weight, (0, 0, 1, 0)) if self.concat_input else self.weight
        with full_precision(x):
            maps = at_least_float32(x)[:, None] - at_least_float32(origins)[..., None, None]
            return maps.flatten(1, 2).to(torch.promote_types(x.dtype, self.weight.dtype))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, origins={self.weight.shape[0]}, concat_input={self.concat_input}, "
            f"trainable={self.weight.requires_grad}"
        )


class FoldedKOrigins(nn.Module):
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
        self._cache: dict[tuple, list[tuple[slice, slice, Tensor]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, N, H, W), any real dtype, raw intensities.

        Returns:
            (B, out, H', W') in what torch promotes the dtypes of x and the convolution to; under autocast too, and
            with 16-bit weights, everything is summed in at least float32.
        """
        dtype = torch.promote_types(x.dtype, self.conv.weight.dtype)
        inner = torch.promote_types(dtype, torch.float32)
        with full_precision(x):
            conv, bias = self.conv, cast(Tensor, self.conv.bias)
            y = conv._conv_forward(x.to(inner), conv.weight.to(inner), bias.to(inner))
            for rows, columns, correction in self._border(x.shape[-2], x.shape[-1]):
                y[:, :, rows, columns].add_(correction)
        return y.to(dtype)

    def _border(self, height: int, width: int) -> list[tuple[slice, slice, Tensor]]:
        """Corrections of the bias where the kernel reaches out of the image: row slice, column slice, (out, h, w)."""
        key = (height, width, self.tap_bias.device, self.tap_bias.dtype)
        if key not in self._cache:
            if len(self._cache) == 8:  # images of ever new sizes must not fill the memory
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._corrections(height, width)
        return self._cache[key]

    def _corrections(self, height: int, width: int) -> list[tuple[slice, slice, Tensor]]:
        rows, columns = self._taps_inside(height, 0), self._taps_inside(width, 1)
        top, bottom = _interior(rows)
        left, right = _interior(columns)
        taps = self.tap_bias.cpu().double()
        corrections = []
        for row, column in (
            (slice(0, top), slice(None)),
            (slice(bottom, None), slice(None)),
            (slice(top, bottom), slice(0, left)),
            (slice(top, bottom), slice(right, None)),
        ):
            bias = torch.einsum("otu,yt,xu->oyx", taps, rows[row], columns[column]) - taps.sum((1, 2))[:, None, None]
            if bias.numel():
                corrections.append((row, column, bias.to(self.tap_bias)))
        return corrections

    def _taps_inside(self, size: int, axis: int) -> Tensor:
        """(outputs, taps) float64 along one axis: 1 where the kernel element lies inside the image, else 0."""
        taps, stride, dilation = self.conv.kernel_size[axis], self.conv.stride[axis], self.conv.dilation[axis]
        span = dilation * (taps - 1)
        if isinstance(self.conv.padding, str):
            total = span if self.conv.padding == "same" else 0
            before = total // 2
        else:
            before = self.conv.padding[axis]
            total = 2 * before
        outputs = (size + total - span - 1) // stride + 1
        positions = stride * torch.arange(outputs)[:, None] + dilation * torch.arange(taps) - before
        return ((positions >= 0) & (positions < size)).double()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._cache.clear()


def _interior(inside: Tensor) -> tuple[int, int]:
    """First and one past the last output whose taps all lie inside; both the number of outputs when there is none."""
    full = inside.all(1).nonzero().flatten().tolist()
    return (full[0], full[-1] + 1) if full else (len(inside), len(inside))


def fold_korigins(korigins: KOrigins, conv: nn.Conv2d) -> FoldedKOrigins:
    """Fold a K-Origins layer into the convolution behind it: the same maps at the cost of the plain convolution.

    With the kernel W split into the parts W_k that see the shifted maps and W_0 that sees the input,

        conv([X, X - w_1, ...]) = (W_0 + sum_k W_k) * X + b - sum_k w_k (sum of the W_k inside the image),

    the zero padding being applied after the subtraction, so that a kernel element outside adds nothing. In the
    interior the last term is one number per output channel and goes into the bias; near the border it is corrected
    by narrow strips, made once per image size. Everything is summed in float64, then cast to the dtype of ``conv``.

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
        raise ConfigError(f"conv is a {type(conv).__name__}; only torch.nn.Conv2d can be folded.")
    if conv.padding_mode != "zeros":
        raise ConfigError(f"conv has padding_mode={conv.padding_mode!r}; only 'zeros' can be folded.")
    if conv.groups != 1:
        raise ConfigError(f"conv has groups={conv.groups}; only groups=1 can be folded.")
    if conv.in_channels != korigins.out_channels:
        raise ConfigError(
            f"conv has in_channels={conv.in_channels}; the K-Origins layer makes {korigins.out_channels} maps."
        )
    weight = conv.weight.detach()
    kernel = weight.cpu().double().unflatten(1, (-1, korigins.in_channels))  # (out, 1 + K or K, N, kh, kw)
    origins = korigins.weight.detach().cpu().double()
    tap_bias = -torch.einsum("okchw,kc->ohw", kernel[:, -len(origins) :], origins)
    bias = tap_bias.sum((1, 2))
    if conv.bias is not None:
        bias = bias + conv.bias.detach().cpu().double()
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
