"""Convolutions and linear layers whose weights are B-spline functions, each run as one ordinary convolution.

Y[o] = sum_{c,i,j} phi_{o,c,i,j}(X[c] shifted by (i, j)) with phi = sum_k w_k B_k. Because the basis does not depend on
(o, i, j), the sum over k goes outside the shift: lift every channel to its n basis values, then convolve once.
"""

from collections.abc import Sequence
from typing import Any, Unpack, cast

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from framework.errors import ConfigError
from framework.nn.options import spelled_out
from framework.nn.splines.bspline import is_whole
from framework.nn.splines.layer import SplineLayer
from framework.nn.splines.options import SplineArguments, SplineOptions

PADDING_MODES = ("zeros", "mask", "value", "reflect", "replicate")
Size = int | Sequence[int]


class _SplineConv(SplineLayer):
    """What both convolutions share: the order of the lifted map."""

    def channels_last(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H, W, C), a view."""
        return x.permute(0, 2, 3, 1)

    def arranged(self, lifted: Tensor) -> Tensor:
        """(B, H, W, C, n) -> (B, C n, H, W), channels last in memory, the n values of a channel side by side."""
        return lifted.flatten(3).permute(0, 3, 1, 2)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ConfigError(
                f"{type(self).__name__}: expected a floating-point input (B, {self.in_channels}, H, W), got {x.dtype} "
                f"{tuple(x.shape)}"
            )
        return x


class KANConv2d(_SplineConv):
    """Conv2d whose kernel elements are B-spline functions; Conv2d's arguments, then the spline's.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: (kh, kw) or one number.
        stride: as in Conv2d.
        padding: as in Conv2d, `same` and `valid` included.
        dilation: as in Conv2d.
        groups: as in Conv2d.
        bias: adds one number per output; without effect in front of a normalisation.
        padding_mode: `zeros` or `mask`: beyond the border an edge gives nothing; `value`: it sees x = 0 and gives
            phi(0); `reflect`, `replicate`: it sees the image mirrored or continued.
        device: of the parameters.
        dtype: of the parameters.
        grid_size: G, cells on `grid_range`.
        max_grid_size: cells to allocate room for; None: no room to grow.
        spline_order: p, 1, 2 or 3.
        grid_range: (a, b) in units of the input; put a normalisation in front.
        base: None (B-splines alone), or a further term w silu(x) or w x per edge.
        tail: `linear`, `clamp` or `zero`, see `SplineGrid`.
        implementation: `dense` evaluates all functions, for compilers and export; `scatter` the live ones only;
            `recompute` keeps no more for the backward pass than a plain convolution does and builds the lifted map
            twice; `operator` is one operator of torch's for each pass, on a GPU one kernel; `auto` is `scatter` on a
            CPU, else `operator`. A compiler gets the dense form, unless it is told `operator`.
        rank: R shapes per input channel that all its edges are mixtures of, so that the convolution is R wide instead
            of G + p; None: every edge has its own spline. Its grid and single edges stay as they are.

    Shape:
        (B, C, H, W) float -> (B, O, H', W'), channels last in memory.

    Raises:
        ConfigError: an argument out of its range; an input of another shape.
    """

    @spelled_out(SplineOptions)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        **spline: Unpack[SplineArguments],
    ) -> None:
        self.kernel_size = _positive_pair("kernel_size", kernel_size)
        options = SplineOptions(**spline)
        super().__init__(in_channels, out_channels, self.kernel_size, groups, bias, options, device, dtype)
        self.stride, self.dilation = _positive_pair("stride", stride), _positive_pair("dilation", dilation)
        if padding_mode not in PADDING_MODES:
            raise ConfigError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self.padding = padding
        self._borders = self._border_widths(padding)

    def _border_widths(self, padding: Size | str) -> tuple[int, int, int, int]:
        """(left, right, top, bottom)."""
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ConfigError(f"padding: expected numbers, same or valid, got {padding!r}")
            if padding == "valid":
                return (0, 0, 0, 0)
            if self.stride != (1, 1):
                raise ConfigError(f"padding: same needs stride 1, got {self.stride}")
            whole = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (whole[1] // 2, whole[1] - whole[1] // 2, whole[0] // 2, whole[0] - whole[0] // 2)
        pair = _whole_pair("padding", padding, 0)
        return (pair[1], pair[1], pair[0], pair[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        x = self._checked(x)
        left, right, top, bottom = self._borders
        padding = (0, 0)
        if self.padding_mode in ("zeros", "mask"):
            if (left, top) == (right, bottom):
                padding = (top, left)
            else:
                # an uneven border of nothing: pad the lifted map
                return self.run_lifted(x, self._uneven)
        elif any(self._borders):
            mode = "constant" if self.padding_mode == "value" else self.padding_mode
            x = F.pad(x, self._borders, mode=mode)
        return self.run_lifted(x, lambda m, w: self._conv2d(m, w, padding))

    def _uneven(self, lifted: Tensor, weight: Tensor) -> Tensor:
        return self._conv2d(F.pad(lifted, self._borders), weight, (0, 0))

    def _conv2d(self, lifted: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        bias = None if self.bias is None else self.bias.to(lifted.dtype)
        return F.conv2d(lifted, weight, bias, self.stride, padding, self.dilation, self.groups)

    def lifted_weight(self, edges: Tensor) -> Tensor:
        """(O, C / groups n, kh, kw), channels last in memory."""
        return edges.permute(1, 3, 4, 2, 0).flatten(3).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """As Conv2d's, with the grid."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, padding_mode={self.padding_mode}, dilation={self.dilation}, "
            f"groups={self.groups}, {self.spline_repr()}"
        )


class KANConvTranspose2d(_SplineConv):
    """ConvTranspose2d whose kernel elements are B-spline functions; arguments and errors as `KANConv2d`.

    Beyond the border an edge gives nothing (`padding_mode` other than `zeros` and `mask` has no meaning here).

    Shape:
        (B, C, H, W) float -> (B, O, H', W'), with ConvTranspose2d's sizes.
    """

    @spelled_out(SplineOptions)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        **spline: Unpack[SplineArguments],
    ) -> None:
        self.kernel_size = _positive_pair("kernel_size", kernel_size)
        options = SplineOptions(**spline)
        super().__init__(in_channels, out_channels, self.kernel_size, groups, bias, options, device, dtype)
        if padding_mode not in ("zeros", "mask"):
            raise ConfigError(f"padding_mode: a transposed convolution knows zeros (or mask), got {padding_mode!r}")
        self.stride, self.dilation = _positive_pair("stride", stride), _positive_pair("dilation", dilation)
        self.padding = _whole_pair("padding", padding, 0)
        self.output_padding = _whole_pair("output_padding", output_padding, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        return self.run_lifted(self._checked(x), self._transposed)

    def extra_repr(self) -> str:
        """As ConvTranspose2d's, with the grid."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, output_padding={self.output_padding}, dilation={self.dilation}, "
            f"groups={self.groups}, {self.spline_repr()}"
        )

    def _transposed(self, lifted: Tensor, weight: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(lifted.dtype)
        return F.conv_transpose2d(
            lifted, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def lifted_weight(self, edges: Tensor) -> Tensor:
        """(C n, O / groups, kh, kw)."""
        n, out, inner = edges.shape[:3]
        w = edges.reshape(n, self.groups, out // self.groups, inner, *self.kernel_size)
        return w.permute(1, 3, 0, 2, 4, 5).reshape(self.in_channels * n, out // self.groups, *self.kernel_size)


class KANLinear(SplineLayer):
    """Linear layer whose weights are B-spline functions: the KAN layer (Liu et al., arXiv 2404.19756, eq. 2.5).

    Args:
        in_features: I.
        out_features: O.
        bias: adds one number per output.
        device: of the parameters.
        dtype: of the parameters.
        grid_size: this and the rest as in `KANConv2d`; `recompute` keeps x alone.

    Shape:
        (..., I) float -> (..., O).

    Raises:
        ConfigError: an argument out of its range; an input of another shape.
    """

    @spelled_out(SplineOptions)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        **spline: Unpack[SplineArguments],
    ) -> None:
        super().__init__(in_features, out_features, (), 1, bias, SplineOptions(**spline), device, dtype)

    @property
    def in_features(self) -> int:
        """I, `in_channels` of the other spline layers."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """O."""
        return self.out_channels

    def extra_repr(self) -> str:
        """As Linear's, with the grid."""
        return f"in_features={self.in_channels}, out_features={self.out_channels}, {self.spline_repr()}"

    def channels_last(self, x: Tensor) -> Tensor:
        """(..., I) as it is."""
        return x

    def arranged(self, lifted: Tensor) -> Tensor:
        """(..., I, n) -> (..., I n)."""
        return lifted.flatten(-2)

    def lifted_weight(self, edges: Tensor) -> Tensor:
        """(O, I n)."""
        return edges.permute(1, 2, 0).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if x.shape[-1] != self.in_channels or not x.is_floating_point():
            raise ConfigError(
                f"KANLinear: expected a floating-point input (..., {self.in_channels}), got {x.dtype} {tuple(x.shape)}"
            )
        return self.run_lifted(x, self._linear)

    def _linear(self, lifted: Tensor, weight: Tensor) -> Tensor:
        return F.linear(lifted, weight, None if self.bias is None else self.bias.to(lifted.dtype))


def _positive_pair(name: str, value: Size) -> tuple[int, int]:
    return _whole_pair(name, value, 1)


def _whole_pair(name: str, value: Size, least: int) -> tuple[int, int]:
    pair = tuple(_pair(value))
    if len(pair) != 2 or not all(is_whole(v, least) for v in pair):
        raise ConfigError(f"{name}: expected one or two whole numbers, at least {least}, got {value!r}")
    return cast(tuple[int, int], pair)
