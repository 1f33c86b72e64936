"""A depthwise convolution whose kernels are scale-space operators: five numbers per channel in place of k x k."""

import math
import operator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.filters.banks import match_filters
from framework.nn.filters.dictionaries import dictionary, dictionary_parameters
from framework.nn.filters.key_filters import COUNT, difference_tables, key_filter, key_filters_at
from framework.nn.filters.scale_space import remove_mean
from framework.nn.modes import Layer, numbers
from framework.nn.precision import autocast_dtype, promoted, without_autocast

_MIN_SIGMA = 1e-3


_Pair = tuple[int, ...]


def pad_same(x: Tensor, kernel_size: _Pair, stride: _Pair, dilation: _Pair) -> Tensor:
    """Zeros around (..., H, W) so that a convolution gives ceil(H / stride) x ceil(W / stride), TensorFlow's SAME.

    An odd number of rows or columns puts the surplus one at the bottom and on the right, so that with a stride the
    sampling grid depends on the size of the picture.
    """
    pads: list[int] = []
    for side, size, step, spread in zip(x.shape[-2:], kernel_size, stride, dilation, strict=True):
        # no division of a negative number: an exported file's rounds it towards 0
        total = max(((side + step - 1) // step - 1) * step + spread * (size - 1) + 1 - side, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads) if any(pads) else x


class SamePaddingConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding (`pad_same`), also with a stride, which torch's `same` refuses.

    (B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)); arguments as torch.nn.Conv2d's, with its
    padding left at 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of the padded input."""
        return super().forward(pad_same(x, self.kernel_size, self.stride, self.dilation))


class ScaleSpaceDepthwiseConv2d(Layer):
    """Depthwise convolution with kernel a * operator(sigma_x, sigma_y) + b in every channel.

    The operator's array has its mean removed and unit l2 norm, so that a and b are scale and mean of the kernel. It is
    a key filter in the published conventions (`key_filter`; filter 7 with alpha 0.5256 and the scale sigma_x),
    computed in a window of at least 7x7 and cut to its centre. Sigmas are softplus(raw) + 0.001, as in the published
    learned-scale variant, computed in float32 or better under autocast.

    Args:
        channels: C, input and output channels.
        kernel_size: odd side, at least 3 (one tap without its mean is 0); or twice the same, as torch's layers take it.
        operators: (C,) indices 1 to 8 of the key filters; None: in turn.
        sigma: initial sigma_x and sigma_y: a number, (C,) or (C, 2); the published start is 1.5.
        scale: initial a, a number or (C,).
        offset: initial b, a number or (C,).
        stride: of the convolution.
        padding: in pixels; None keeps the size (at stride 1); `same`: TensorFlow's, at any stride (`pad_same`).
        dilation: of the convolution.
        bias: add a bias per channel.
        trainable: False freezes sigmas, a and b (not the bias).
        device: of the parameters.
        dtype: of the parameters, torch's default unless given.

    Attributes:
        operator: (C,) int64 buffer, 1 to 8.
        raw_sigma: (C, 2) parameter, softplus^-1(sigma - 0.001).
        scale, offset: (C,) parameters, a and b.

    Raises:
        ConfigError: an even, oblong or one-tap kernel, operators outside 1..8, a stride, padding or dilation that
            cannot be, or shapes that do not belong together.
    """

    operator: Tensor
    differences: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 7,
        operators: Tensor | list[int] | None = None,
        sigma: float | Tensor = 1.5,
        scale: float | Tensor = 1.0,
        offset: float | Tensor = 0.0,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same"] | None = None,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        trainable: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        size = _side(kernel_size)
        if channels < 1:
            raise ConfigError(f"channels: expected at least 1, got {channels}")
        self._first = _first_values(channels, operators, sigma, scale, offset)
        if isinstance(padding, str) and padding != "same":
            raise ConfigError(f"padding: expected pixels, None or 'same', got {padding!r}")
        self.channels, self.kernel_size = channels, size
        self.stride, self.dilation = _pixels("stride", stride, 1), _pixels("dilation", dilation, 1)
        half = size // 2
        self.padding = (self.dilation[0] * half, self.dilation[1] * half) if padding is None else padding
        if self.padding != "same":
            _pixels("padding", self.padding, 0)
        kwargs = {"device": device, "dtype": dtype}
        self.register_buffer("operator", torch.empty(channels, dtype=torch.int64, device=device))
        window = max(size, 7)
        self.register_buffer("differences", torch.empty(4, COUNT, window, window, **kwargs), persistent=False)
        self.raw_sigma = nn.Parameter(torch.empty(channels, 2, **kwargs), trainable)
        self.scale = nn.Parameter(torch.empty(channels, **kwargs), trainable)
        self.offset = nn.Parameter(torch.empty(channels, **kwargs), trainable)
        self.bias = nn.Parameter(torch.empty(channels, **kwargs)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The operators, scales, a and b that the layer was built with; the bias becomes 0."""
        for tensor, values in zip((self.operator, self.raw_sigma, self.scale, self.offset), self._first, strict=True):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype, device="cpu"))
        if self.bias is not None:
            self.bias.zero_()
        self._fill_differences()

    def _fill_differences(self) -> None:
        """A buffer, because a training step would wait for numbers on their way to an accelerator."""
        tables = torch.tensor(difference_tables(self.differences.shape[-1]), dtype=torch.float64, device="cpu")
        like = self.raw_sigma
        if (self.differences.device, self.differences.dtype) == (like.device, like.dtype):
            self.differences.copy_(tables)
        else:  # parameters of another place or dtype were assigned
            self.differences = tables.to(like.device, like.dtype)

    @torch.no_grad()
    def _load_from_state_dict(self, *args: Any) -> None:
        """Torch's hook: a state does not hold the differences, and a layer made by `to_empty` holds anything."""
        super()._load_from_state_dict(*args)
        self._fill_differences()

    @property
    def weight(self) -> Tensor:
        """The kernels, (C, 1, k, k), as a plain convolution stores them; computed anew, see `kernel`."""
        return self.kernel()

    @property
    def sigma(self) -> Tensor:
        """(C, 2) sigma_x and sigma_y in pixels."""
        return F.softplus(self.raw_sigma) + _MIN_SIGMA

    @torch.no_grad()
    def set_sigma(self, sigma: float) -> None:
        """Sets all scales to one value in pixels, in place.

        Raises:
            ConfigError: a value that is not finite or not above 0.
        """
        if not 0 < sigma < math.inf:
            raise ConfigError(f"sigma: expected a finite scale above 0 pixels, got {sigma}")
        self.raw_sigma.copy_(_inverse_softplus(torch.full_like(self.raw_sigma, sigma)))

    def kernel(self) -> Tensor:
        """(C, 1, k, k), what the convolution cross-correlates with; differentiable in sigma, a and b."""
        with without_autocast(self.raw_sigma.device.type):
            sigma = F.softplus(self.raw_sigma.float() if self.raw_sigma.dtype.itemsize < 4 else self.raw_sigma)
            sigma = sigma + _MIN_SIGMA
            window = max(self.kernel_size, 7)
            cut = (window - self.kernel_size) // 2
            tables = self.differences.to(sigma)
            full = key_filters_at(self.operator, sigma[:, 0], sigma[:, 1], tables, points=16 * window)
            shape = remove_mean(full[:, cut : window - cut, cut : window - cut])
            kernel = self.scale[:, None, None] * shape + self.offset[:, None, None]
        return kernel.unsqueeze(1).to(self.scale.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W') in what torch promotes the dtypes of x and the parameters to.

        Under autocast in autocast's.
        """
        if autocast_dtype(x.device.type) is None or not x.is_floating_point():
            x = promoted(x, self.scale)
        padding = self.padding
        if isinstance(padding, str):
            x, padding = pad_same(x, (self.kernel_size,) * 2, self.stride, self.dilation), 0
        kernel = self.kernel().to(x.dtype)
        return F.conv2d(x, kernel, _as(self.bias, x), self.stride, padding, self.dilation, self.channels)

    def to_conv(self) -> nn.Conv2d:
        """A plain depthwise convolution with the present kernels, for export: the same output, k x k weights.

        With `padding="same"` it is a SamePaddingConv2d.
        """
        same = self.padding == "same"
        conv = (SamePaddingConv2d if same else nn.Conv2d)(
            self.channels,
            self.channels,
            self.kernel_size,
            self.stride,
            0 if isinstance(self.padding, str) else self.padding,
            self.dilation,
            groups=self.channels,
            bias=self.bias is not None,
        ).to(self.raw_sigma)
        with torch.no_grad():
            conv.weight.copy_(self.kernel())
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        return conv

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, trainable: bool = True, same_padding: bool = False
    ) -> "ScaleSpaceDepthwiseConv2d":
        """A layer with a plain depthwise convolution's geometry and the operators nearest to its kernels (`match`).

        Args:
            conv: a torch.nn.Conv2d or a SamePaddingConv2d; with `same_padding` of any other class.
            trainable: as in the constructor.
            same_padding: that class pads by itself as TensorFlow's SAME does, like timm's Conv2dSame.

        Raises:
            ConfigError: a convolution that is not depthwise, with an even or oblong kernel, with padding that is not
                zeros, or of a class whose padding is not known.
        """
        size = conv.kernel_size[0]
        plain = type(conv) is nn.Conv2d
        if not plain and type(conv) is not SamePaddingConv2d and not same_padding:
            raise ConfigError(
                f"conv: expected a plain torch.nn.Conv2d, got {type(conv).__name__}, which may pad by itself; give "
                "same_padding=True if it pads as TensorFlow's SAME does"
            )
        if conv.groups != conv.in_channels or conv.out_channels != conv.in_channels:
            raise ConfigError(
                f"conv: expected a depthwise convolution with one filter per channel, got {conv.in_channels} -> "
                f"{conv.out_channels} channels in {conv.groups} groups"
            )
        if conv.kernel_size[1] != size or size % 2 == 0:
            raise ConfigError(f"conv: expected a square kernel with an odd side, got {conv.kernel_size}")
        if conv.padding_mode != "zeros":
            raise ConfigError(f"conv: expected zero padding, got padding_mode {conv.padding_mode!r}")
        pixels = (0, 0) if conv.padding == "valid" else conv.padding
        layer = cls(
            conv.in_channels,
            size,
            stride=_pair(conv.stride),
            padding=pixels if plain else "same",  # type: ignore[arg-type]
            dilation=_pair(conv.dilation),
            bias=conv.bias is not None,
            trainable=trainable,
        )
        layer.match(conv.weight)
        if conv.bias is not None and layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(conv.bias)
        return layer.to(conv.weight)

    @torch.no_grad()
    def match(self, weight: Tensor) -> None:
        """Takes the operators, scales, a and b nearest to given kernels (C, 1, k, k), in place.

        Every kernel gets the entry of the template dictionary that explains most of its energy, and b is its mean.

        Raises:
            ConfigError: kernels of another number or size.
        """
        if tuple(weight.shape) != (self.channels, 1, self.kernel_size, self.kernel_size):
            size = self.kernel_size
            raise ConfigError(f"weight: expected ({self.channels}, 1, {size}, {size}), got {tuple(weight.shape)}")
        entries, sigmas = scale_entries(self.kernel_size)
        match = match_filters(weight.detach().flatten(0, 1), entries.flatten(0, 1))
        self.operator.copy_(match.index // entries.shape[1] + 1)
        self.raw_sigma.copy_(_inverse_softplus(sigmas.flatten(0, 1)[match.index]))
        self.scale.copy_(match.scale)
        self.offset.copy_(match.offset)

    def extra_repr(self) -> str:
        """Size and geometry."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def scale_entries(size: int) -> tuple[Tensor, Tensor]:
    """The dictionary without alpha: templates (8, n, size, size) float64 and their scales (8, n, 2), at least 0.001."""
    entries = dictionary(size)
    scales = torch.stack([torch.stack(dictionary_parameters(i, size), -1) for i in range(1, COUNT + 1)])
    # filter 7 has one scale and here the published alpha
    scales[6, :, 1] = scales[6, :, 0]
    window = max(size, 7)
    cut = (window - size) // 2
    full = key_filter(7, scales[6, :, 0], size=window)
    entries[6] = remove_mean(full[:, cut : window - cut, cut : window - cut])
    return entries, scales.clamp_min(_MIN_SIGMA)


def _first_values(
    channels: int, operators: Tensor | list[int] | None, sigma: Any, scale: Any, offset: Any
) -> tuple[list[int], list[list[float]], list[float], list[float]]:
    """Operators, raw sigmas, a and b of every channel as plain numbers.

    So the layer can be made on the meta device or under FakeTensorMode, and filled later.
    """
    with numbers():
        index = torch.arange(channels) % COUNT + 1 if operators is None else torch.as_tensor(operators)
        if index.shape != (channels,) or index.min() < 1 or index.max() > COUNT:
            raise ConfigError(f"operators: expected {channels} indices from 1 to 8, got {index.tolist()}")
        sigmas = torch.as_tensor(sigma, dtype=torch.get_default_dtype())
        sigmas = sigmas[:, None] if sigmas.ndim == 1 else sigmas
        fits = sigmas.ndim == 0 or (sigmas.ndim == 2 and sigmas.shape[0] in (1, channels) and sigmas.shape[1] in (1, 2))
        if not fits or not torch.isfinite(sigmas).all() or sigmas.min() < 0:
            raise ConfigError(
                f"sigma: expected scales of at least 0, a number, ({channels},) or ({channels}, 2), got {sigma}"
            )
        factors = {name: torch.as_tensor(value).float() for name, value in (("scale", scale), ("offset", offset))}
        for name, value in factors.items():
            if tuple(value.shape) not in ((), (1,), (channels,)):
                raise ConfigError(f"{name}: expected a number or ({channels},) of them, got {tuple(value.shape)}")
        a, b = (value.expand(channels).tolist() for value in factors.values())
        return index.tolist(), _inverse_softplus(sigmas).expand(channels, 2).tolist(), a, b


def _side(kernel_size: Any) -> int:
    pair = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size, kernel_size)
    try:
        rows, columns = (operator.index(side) for side in pair)
    except (TypeError, ValueError):  # a fraction, or not two
        rows = columns = 0
    if rows != columns or rows < 3 or rows % 2 == 0:
        raise ConfigError(
            f"kernel_size: expected an odd number of taps of at least 3, or twice the same, got {kernel_size!r}"
        )
    return rows


def _pixels(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(v, int) and v >= least for v in pair)
    if not whole:
        raise ConfigError(f"{name}: expected a whole number of at least {least} or two of them, got {value!r}")
    return pair[0], pair[1]


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _inverse_softplus(sigma: Tensor) -> Tensor:
    excess = (sigma.double() - _MIN_SIGMA).clamp_min(1e-6)
    return (excess + torch.log(-torch.expm1(-excess))).to(sigma)


def _as(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
