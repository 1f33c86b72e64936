"""The U-shaped networks of the K-Origins paper, with and without K-Origins (arXiv 2409.02281): plain torch."""

import contextlib
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framework.errors import ConfigError
from framework.nn.options import spelled_out
from framework.nn.origins.korigins import KOrigins, convolve_folded, fold_korigins
from framework.nn.precision import exact_backward, full_precision, promoted

Widened = Literal["both", "last"]

# name of the network -> (3x3 convolutions per block, 2x2 poolings); the name is the receptive field of the bottom block
FAMILIES = {8: (1, 1), 18: (1, 2), 38: (1, 3), 78: (1, 4), 14: (2, 1), 32: (2, 2), 68: (2, 3), 140: (2, 4)}


def _family(rfl: int) -> tuple[int, int]:
    if rfl not in FAMILIES:
        raise ConfigError(f"model.rfl: expected one of {', '.join(map(str, sorted(FAMILIES)))}, got {rfl}")
    return FAMILIES[rfl]


def receptive_field(rfl: int) -> int:
    """Receptive field of the bottom block, decoder ignored: the paper's RFL, which names the networks.

    Every 3x3 convolution adds 2 j and every pooling adds j and doubles j, the step in input pixels.

    Args:
        rfl: 8, 18, 38, 78 (one convolution per block) or 14, 32, 68, 140 (two).

    Returns:
        Side of the field in pixels.

    Raises:
        ConfigError: if there is no network of this name.
    """
    convolutions, pools = _family(rfl)
    side, step = 1 + 2 * convolutions, 1
    for _ in range(pools):
        side += step
        step *= 2
        side += 2 * step * convolutions
    return side


def full_receptive_field(rfl: int) -> tuple[int, int]:
    """Receptive field of a logit, decoder and skips included: what the whole network can see.

    It depends on where the pixel lies in its pooling window, so it is the interval of input pixels that one output
    pixel depends on, followed down the network, for every phase.

    Args:
        rfl: 8, 18, 38, 78, 14, 32, 68 or 140.

    Returns:
        Smallest and largest side of the field in pixels over all phases.

    Raises:
        ConfigError: if there is no network of this name.
    """
    intervals = _seen_intervals(rfl)
    sides = [last - first + 1 for first, last in intervals]
    return min(sides), max(sides)


def reach(rfl: int) -> int:
    """How far a logit looks to one side, in pixels: the largest over all phases of `full_receptive_field`.

    Raises:
        ConfigError: if there is no network of this name.
    """
    return max(max(phase - first, last - phase) for phase, (first, last) in enumerate(_seen_intervals(rfl)))


def _seen_intervals(rfl: int) -> list[tuple[int, int]]:
    """First and last input pixel, by phase of the output pixel."""
    convolutions, pools = _family(rfl)

    def seen(first: int, last: int, level: int) -> tuple[int, int]:
        """Interval at the input of a level that the interval at its output depends on."""
        first, last = first - convolutions, last + convolutions
        if level < pools:
            below_first, below_last = seen(first // 2, last // 2, level + 1)
            first, last = min(first, 2 * below_first), max(last, 2 * below_last + 1)
            first, last = first - convolutions, last + convolutions
        return first, last

    return [seen(phase, phase, 0) for phase in range(2**pools)]


class KOriginsConv(nn.Module):
    """K-Origins and the convolution that consumes its maps, in float32 under autocast and without TF32.

    Args:
        korigins: layer (B, N, H, W) -> (B, N (1 + K), H, W).
        conv: convolution of N (1 + K) channels.
    """

    def __init__(self, korigins: KOrigins, conv: nn.Conv2d) -> None:
        super().__init__()
        self.korigins = korigins
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, H, W) of any real dtype to (B, out, H', W') of the convolution's dtype, or a wider one of x."""
        frozen = self.training and torch.is_grad_enabled() and not self.korigins.weight.requires_grad
        if frozen and x.device.type != "cpu":  # fewer bytes, which are an accelerator's limit here
            return convolve_folded(x, self.korigins, self.conv)
        with full_precision(x):
            return exact_backward(self.conv(promoted(self.korigins(x), self.conv.weight)), x)


def _conv_block(in_channels: int, widths: Sequence[int], korigins: KOrigins | None, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if index == 0 and korigins is not None:
            layers.append(KOriginsConv(korigins, nn.Conv2d(korigins.out_channels, width, 3, padding=1)))
        else:
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        in_channels = width
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class EncoderOptions:
    """What the encoder of `KOriginsUNet` can be told, beside its origins.

    Attributes:
        deep_origins: origins per channel of every deeper level; 0 leaves the deeper levels without. None: the paper's
            1 with one convolution per block and 3 with two.
        deep_mean: mean of the normal distribution that the deeper origins are drawn from.
        deep_std: its standard deviation.
        trainable_origins: False freezes all origins.
        widen: (m1, m2) multiplies the filters of a plain network's encoder, by m1 on the first level and by m2 on the
            deeper ones, so that it computes as many maps as the network with K-Origins.
        widened: which of a block's convolutions `widen` multiplies: `both`, which gives the paper's 1.4 M, or only the
            `last`, as the author's code was committed.
        batch_norm: normalise after every 3x3 convolution (a control, not in the paper).
    """

    deep_origins: int | None = None
    deep_mean: float = 20000.0
    deep_std: float = 5000.0
    trainable_origins: bool = True
    widen: tuple[int, int] | None = None
    widened: Widened = "both"
    batch_norm: bool = False


class KOriginsUNet(nn.Module):
    """U-Net of the K-Origins paper, as a plain network or with K-Origins before every encoder and the bottom block.

    Sections "Networks" and "K-Origins" of arXiv 2409.02281: 3x3 convolutions with ReLU, 2x2 max pooling, 2x2
    transposed convolutions, skips by concatenation, a 1x1 head; level l has ``width`` * 2^l filters. Kernels are
    Glorot-uniform and biases zero, the defaults of Keras. Inputs are raw intensities, never normalised: under
    autocast the first level, every convolution behind K-Origins, the decoder and the head run in float32.

    Args:
        rfl: receptive field length that names the network: 8, 18, 38, 78 (one convolution per block) or
            14, 32, 68, 140 (two).
        in_channels: channels N of the image.
        num_classes: classes C, background included.
        width: filters of the first level.
        origins: first-layer origins in units of the input intensity, (K1,) or (K1, N); the paper's are
            mu - 2 sigma and mu + 2 sigma of every class. None makes the plain network.
        seed: seed of all initial values. None draws them from torch's global generator.
        **encoder: the fields of `EncoderOptions`.

    Raises:
        ConfigError: if a value is out of range, or ``widen`` meets ``origins``, or ``deep_origins`` lacks them.
    """

    #: True runs every block again in the backward pass instead of keeping what it made
    checkpoint: bool = False

    @spelled_out(EncoderOptions)
    def __init__(
        self,
        rfl: int,
        in_channels: int = 1,
        num_classes: int = 2,
        width: int = 16,
        origins: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        *,
        seed: int | None = None,
        **encoder: Any,
    ) -> None:
        super().__init__()
        options = EncoderOptions(**encoder)
        deep_origins, widen = options.deep_origins, options.widen
        convolutions, pools = _family(rfl)
        _at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        _check_encoder(options, origins is not None)
        if deep_origins is None:
            deep_origins = 0 if origins is None else (1, 3)[convolutions - 1]
        first, deeper = (1, 1) if widen is None else widen
        self.in_channels = in_channels
        self.rfl, self.pools = rfl, pools
        generator = None if seed is None else torch.Generator().manual_seed(seed)

        factors = [first, *[deeper] * (pools - 1), 1]  # the bottom block is not widened
        widths = [width * 2**level * factor for level, factor in enumerate(factors)]
        self.encoder = nn.ModuleList()
        channels = in_channels
        for level, filters in enumerate(widths):
            korigins = None
            if level == 0 and origins is not None:
                korigins = KOrigins(channels, origins, trainable=options.trainable_origins)
            elif level > 0 and deep_origins > 0:
                drawn = options.deep_mean + options.deep_std * torch.randn(deep_origins, channels, generator=generator)
                korigins = KOrigins(channels, drawn, trainable=options.trainable_origins)
            inner = filters if options.widened == "both" else width * 2**level
            self.encoder.append(
                _conv_block(channels, [inner] * (convolutions - 1) + [filters], korigins, options.batch_norm)
            )
            channels = filters
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(pools)):
            filters = width * 2**level
            self.up.append(nn.ConvTranspose2d(channels, filters, 2, stride=2))
            self.decoder.append(
                _conv_block(filters + widths[level], [filters] * convolutions, None, options.batch_norm)
            )
            channels = filters
        self.head = nn.Conv2d(channels, num_classes, 1)
        _glorot_(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Segment images.

        Args:
            x: (B, N, H, W), any real dtype, raw intensities; H and W divisible by 2 to the number of poolings.

        Returns:
            Logits (B, C, H, W) in the network's dtype (float32 unless it was cast), under autocast too.

        Raises:
            ConfigError: if the channels do not match, a side is not divisible, or float16 parameters are to be trained.
        """
        self._check(x)
        with full_precision(x):
            skips = [exact_backward(self._block(self.encoder[0], promoted(x, self.head.weight)), x)]
        for block in self.encoder[1:]:
            skips.append(self._block(block, self.pool(skips[-1])))
        x, sources = skips[-1], list(skips)
        skips.pop()
        # features keep the scale of the raw intensities: a bfloat16 decoder alone can move the logits by over 1 %
        with full_precision(x):
            for up, block in zip(self.up, self.decoder, strict=True):
                x = self._block(block, torch.cat([up(promoted(x, self.head.weight)), skips.pop()], dim=1))
            return exact_backward(self.head(x), *sources)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint and self.training and torch.is_grad_enabled()):
            return block(x)
        precise = not torch.is_autocast_enabled(x.device.type)

        def again(x: Tensor) -> Tensor:  # in the backward pass, outside of what surrounds the first run
            with full_precision(x) if precise else contextlib.nullcontext():
                return block(x)

        return cast(Tensor, checkpoint(again, x, use_reentrant=False))

    @property
    def stride(self) -> int:
        """The sides of a picture must be multiples of this."""
        return 2**self.pools

    @property
    def reach(self) -> int:
        """How far a logit looks to one side, in pixels."""
        return reach(self.rfl)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(f"image: expected (B, in_channels={self.in_channels}, H, W), got {tuple(x.shape)}")
        if self.training and self.head.weight.dtype == torch.float16:
            raise ConfigError(
                "trainer.precision: float16 parameters cannot be trained on raw 16-bit intensities, whose sums pass "
                "its largest number, 65504; use 32-true, bf16-mixed, or bf16-true"
            )
        divisor = 2**self.pools
        height, width = x.shape[-2:]
        if height % divisor or width % divisor or not height or not width:
            choices = [
                " or ".join(
                    str(size * divisor) for size in sorted({max(side // divisor, 1), max(-(-side // divisor), 1)})
                )
                for side in (height, width)
            ]
            raise ConfigError(
                f"image: expected sides divisible by {divisor} for {self.pools} poolings, got {height} x {width}; "
                f"use a height of {choices[0]} and a width of {choices[1]}"
            )

    def origin_parameters(self) -> list[nn.Parameter]:
        """Weights (K, N) of the K-Origins layers, frozen ones included; the paper trains them at a rate of 100."""
        return [module.weight for module in self.modules() if isinstance(module, KOrigins)]

    def other_parameters(self) -> list[nn.Parameter]:
        """Everything that :meth:`origin_parameters` leaves out."""
        origins = {id(parameter) for parameter in self.origin_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in origins]

    def fold(self) -> "KOriginsUNet":
        """Copy of the network for inference, every K-Origins layer folded into its convolution.

        Returns:
            Network with the same logits up to rounding and the cost of the plain one; this one is left as it is.
        """
        folded = copy.deepcopy(self)
        for block in cast(Iterable[nn.Sequential], folded.encoder):
            first = block[0]
            if isinstance(first, KOriginsConv):
                block[0] = fold_korigins(first.korigins, first.conv)
        return folded


def _check_encoder(options: EncoderOptions, with_origins: bool) -> None:
    deep_origins, widen = options.deep_origins, options.widen
    if not with_origins and deep_origins is not None:
        raise ConfigError(
            f"model.deep_origins: got {deep_origins} without origins; give model.origins, or leave both out"
        )
    if with_origins and widen is not None:
        raise ConfigError(
            f"model.widen: only a network without origins is widened, got {widen} beside them; give origins: none"
        )
    if (deep_origins or 0) < 0 or options.deep_std < 0:
        raise ConfigError(
            f"model.deep_origins, model.deep_std: expected 0 or more, got {deep_origins} and {options.deep_std}"
        )
    if widen is not None and min(widen) < 1:
        raise ConfigError(f"model.widen: expected two factors (m1, m2) of at least 1, got {widen}")


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"model.{name}: expected at least 1, got {value}")


def _glorot_(network: nn.Module, generator: torch.Generator | None) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
