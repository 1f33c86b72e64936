"""KM-UNet's network: a U-Net whose convolutions are spline convolutions, stage by stage; plain torch."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import KANConv2d, KANConvTranspose2d, SplineLayer
from framework.nn.padding import cut_back, pad_to_stride
from framework.nn.precision import promoted
from framework.nn.splines.options import SplineOptions

Up = Literal["bilinear", "transposed"]
Activation = Literal["relu"]


class SplineUnit(nn.Module):
    """Normalise, then a spline convolution; no nodal activation. The normalisation keeps its input on the grid.

    Both the normalisation and the location of the cells run in float32 under autocast.
    """

    def __init__(self, in_channels: int, conv: SplineLayer) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        return self.conv(self.norm(promoted(x, self.norm.weight)))


class PlainUnit(nn.Module):
    """Convolution, normalisation, ReLU: the ordinary U-Net's; the convolution may be one of splines."""

    def __init__(self, out_channels: int, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        return F.relu(self.norm(promoted(self.conv(x), self.norm.weight)))


class KMUNetwork(nn.Module):
    """Encoder stages of two 3x3 units with max pooling between, a bottom stage, and a decoder with skips.

    Going up is a 1x1 unit at the coarse resolution (a quarter of the work) and bilinear interpolation, or a transposed
    2x2 unit of stride 2. A skip is put in front of what comes up, and normalised together with it, because the two
    have different statistics. The head is a plain 1x1 convolution.

    Args:
        in_channels: N.
        num_classes: C, number of logits.
        width: channels of stage 0; every stage doubles them.
        stages: S, number of poolings; stage S is the bottom.
        spline_stages: which of 0..S are spline stages; the others are plain.
        grid_sizes: G per stage, S + 1 numbers.
        max_grid_sizes: room per stage.
        spline: what the spline layers have in common; their grids are those above.
        up: `bilinear` or `transposed`.
        shape: [channels, kernel height, kernel width] of every unit in order of execution; None: from `width`.
        activation: `relu` puts the spline convolutions into the units of the plain U-Net; None: normalisation, then
            splines, and nothing else.

    Shape:
        (B, N, H, W) float -> (B, C, H, W) logits; H and W at least 2^S, reflected inside to multiples of it.

    Raises:
        ConfigError: arguments that do not go together, or an image smaller than 2^S.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int,
        stages: int,
        spline_stages: Sequence[int],
        grid_sizes: Sequence[int],
        max_grid_sizes: Sequence[int],
        spline: SplineOptions,
        up: Up = "bilinear",
        shape: Sequence[Sequence[int]] | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.stages, self.up_kind, self.activation = stages, up, activation
        self._spline_stages = set(spline_stages)
        self._grids = list(zip(grid_sizes, max_grid_sizes, strict=True))
        self._spline = spline
        plan = unit_plan(stages)
        shape = default_shape(width, stages, up) if shape is None else shape
        if len(shape) != len(plan) or any(len(s) != 3 for s in shape):
            raise ConfigError(f"model.shape: expected {len(plan)} entries [channels, kh, kw], got {shape!r}")
        self.shape = [list(map(int, s)) for s in shape]
        self.units = nn.ModuleDict()
        #: unit -> [(consumer, first channel of the consumer's input)]
        self.consumers: dict[str, list[tuple[str, int]]] = {}
        made = dict(zip(plan, self.shape, strict=True))
        for name, (channels, height, wide) in made.items():
            inputs, offset = sources(name, stages), 0
            for source in inputs:
                self.consumers.setdefault(source, []).append((name, offset))
                offset += made[source][0]
            self.units[name] = self._unit(name, offset or in_channels, channels, (height, wide))
        last = plan[-1]
        self.consumers[last] = [("head", 0)]
        self.head = nn.Conv2d(made[last][0], num_classes, 1)

    def _unit(self, name: str, in_channels: int, channels: int, kernel: tuple[int, int]) -> nn.Module:
        stage = int(name.split("_")[1])
        rising = name.startswith("up") and self.up_kind == "transposed"
        padding = (0, 0) if rising else (kernel[0] // 2, kernel[1] // 2)
        stride = 2 if rising else 1
        if stage not in self._spline_stages:
            kind = nn.ConvTranspose2d if rising else nn.Conv2d
            return PlainUnit(channels, kind(in_channels, channels, kernel, stride, padding, bias=False))
        size, room = self._grids[stage]
        layer = KANConvTranspose2d if rising else KANConv2d
        options = replace(self._spline, grid_size=size, max_grid_size=room)
        conv = layer(in_channels, channels, kernel, stride, padding, **asdict(options))
        return SplineUnit(in_channels, conv) if self.activation is None else PlainUnit(channels, conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, H, W) -> (B, C, H, W) logits."""
        height, width = x.shape[-2:]
        if min(height, width) < self.stride:
            raise ConfigError(
                f"model.stages: {self.stages} poolings need images of at least {self.stride} x {self.stride}, got "
                f"{height} x {width}; use fewer stages or larger images"
            )
        x = pad_to_stride(x, self.stride)
        skips = []
        for stage in range(self.stages):
            x = self._block(f"down_{stage}", x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self._block(f"down_{self.stages}", x)
        for stage in reversed(range(self.stages)):
            x = self.units[f"up_{stage}"](x)
            if self.up_kind == "bilinear":
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self._block(f"decode_{stage}", torch.cat([skips.pop(), x], 1))
        return cut_back(self.head(x), height, width)

    @property
    def stride(self) -> int:
        """Sides that are no multiples of this are padded."""
        return 2**self.stages

    @property
    def reach(self) -> int:
        """How far a logit looks to one side, in pixels, over all phases of the poolings."""
        phases = range(self.stride)
        intervals = [self._decoder_sees(0, phase, phase) for phase in phases]
        return max(max(p - first, last - p) for p, (first, last) in zip(phases, intervals, strict=True))

    def _grown(self, name: str, first: int, last: int) -> tuple[int, int]:
        sides = [max(s[1:]) for n, s in zip(self.units, self.shape, strict=True) if n in (f"{name}_a", f"{name}_b")]
        more = sum(side // 2 for side in sides)
        return first - more, last + more

    def _encoder_sees(self, stage: int, first: int, last: int) -> tuple[int, int]:
        """The input pixels behind an interval at the output of an encoder stage."""
        first, last = self._grown(f"down_{stage}", first, last)
        return (first, last) if stage == 0 else self._encoder_sees(stage - 1, 2 * first, 2 * last + 1)

    def _decoder_sees(self, stage: int, first: int, last: int) -> tuple[int, int]:
        """The input pixels behind an interval at the output of a decoder stage."""
        if stage == self.stages:
            return self._encoder_sees(stage, first, last)
        first, last = self._grown(f"decode_{stage}", first, last)
        more = 1 if self.up_kind == "bilinear" else 0
        below = self._decoder_sees(stage + 1, (first - more) // 2, (last + more) // 2)
        skip = self._encoder_sees(stage, first, last)
        return min(below[0], skip[0]), max(below[1], skip[1])

    def _block(self, name: str, x: Tensor) -> Tensor:
        return self.units[f"{name}_b"](self.units[f"{name}_a"](x))

    # ------------------------------------------------------------------ counting and structural removal

    def live_parameters(self) -> int:
        """Parameters that count: live edges on the grid in use, and everything that is no spline."""
        layers = [m for m in self.modules() if isinstance(m, SplineLayer)]
        inside = {id(p) for layer in layers for p in layer.parameters()}
        rest = sum(p.numel() for p in self.parameters() if id(p) not in inside)
        return rest + sum(layer.live_parameters() for layer in layers)

    def channel_groups(self) -> list[list[tuple[SplineLayer, int]]]:
        """Input channels that must go together: all uses of one unit's output channel."""
        groups = []
        for producer, (channels, _, _) in zip(self.units, self.shape, strict=True):
            uses = [(self.units[name].conv if name != "head" else None, at) for name, at in self.consumers[producer]]
            if all(isinstance(conv, SplineLayer) for conv, _ in uses):
                groups += [[(conv, at + c) for conv, at in uses] for c in range(channels)]
        return groups  # type: ignore[return-value]

    def shrunk_shape(self) -> tuple[list[list[int]], dict[str, Tensor]]:
        """What is left without dead channels and dead kernel borders.

        Returns:
            the new `shape`, and the kept output channels of every unit (int64).
        """
        kept, shape = {}, []
        for (name, unit), (channels, height, wide) in zip(self.units.items(), self.shape, strict=True):
            alive = torch.zeros(channels, dtype=torch.bool)
            for consumer, at in self.consumers[name]:
                conv = self.units[consumer].conv if consumer != "head" else None
                if isinstance(conv, SplineLayer):
                    alive |= conv.live[:, at : at + channels].cpu().transpose(0, 1).flatten(1).any(1)
                else:
                    alive[:] = True
            if not alive.any():
                alive[0] = True
            kept[name] = alive.nonzero().flatten()
            if isinstance(unit.conv, KANConv2d):
                used = unit.conv.live.cpu()[kept[name]].any(0).any(0)
                height, wide = _needed(used.any(1)), _needed(used.any(0))
            shape.append([len(kept[name]), height, wide])
        return shape, kept

    @torch.no_grad()
    def copy_from(self, larger: "KMUNetwork", kept: dict[str, Tensor]) -> None:
        """Takes over what `shrunk_shape` left of a larger network; the function stays the same."""
        for (name, unit), (channels, height, wide) in zip(self.units.items(), larger.shape, strict=True):
            del channels
            inputs, offset = [], 0
            for source in sources(name, self.stages):
                inputs.append(kept[source] + offset)
                offset += larger.shape[list(larger.units).index(source)][0]
            old: Any = larger.units[name]
            into = torch.cat(inputs) if inputs else torch.arange(old.conv.in_channels)
            _copy_unit(unit, old, into, kept[name], (height, wide))
        last = kept[list(self.units)[-1]]
        self.head.weight.copy_(larger.head.weight[:, last])
        if self.head.bias is not None and larger.head.bias is not None:
            self.head.bias.copy_(larger.head.bias)


def unit_plan(stages: int) -> list[str]:
    """Names of all units in order of execution."""
    if stages < 1:
        raise ConfigError(f"model.stages: expected at least 1, got {stages}")
    down = [f"down_{s}_{u}" for s in range(stages + 1) for u in "ab"]
    rise = [[f"up_{s}", f"decode_{s}_a", f"decode_{s}_b"] for s in reversed(range(stages))]
    return down + list(itertools.chain.from_iterable(rise))


def default_shape(width: int, stages: int, up: Up) -> list[list[int]]:
    """[channels, kernel height, kernel width] of every unit of the full network."""
    if width < 1:
        raise ConfigError(f"model.width: expected at least 1, got {width}")
    rising = [2, 2] if up == "transposed" else [1, 1]
    return [
        [width * 2 ** int(name.split("_")[1]), *(rising if name.startswith("up") else [3, 3])]
        for name in unit_plan(stages)
    ]


def sources(name: str, stages: int) -> list[str]:
    """The units whose outputs a unit reads, in channel order; none for the first."""
    kind, stage, *place = name.split("_")
    s = int(stage)
    if kind == "up":
        return [f"down_{stages}_b"] if s == stages - 1 else [f"decode_{s + 1}_b"]
    if place == ["b"]:
        return [f"{kind}_{s}_a"]
    if kind == "decode":
        return [f"down_{s}_b", f"up_{s}"]
    return [f"down_{s - 1}_b"] if s else []


def _needed(used: Tensor) -> int:
    """Side of the smallest centred kernel that holds all used rows (or columns)."""
    side = len(used)
    while side > 2 and not used[0] and not used[-1]:
        used, side = used[1:-1], side - 2
    return side


def _copy_unit(new: Any, old: Any, inputs: Tensor, outputs: Tensor, kernel: tuple[int, int]) -> None:
    channels, is_spline = inputs if isinstance(new, SplineUnit) else outputs, isinstance(new.conv, SplineLayer)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new.norm, name).copy_(getattr(old.norm, name)[channels])
    new.norm.num_batches_tracked.copy_(old.norm.num_batches_tracked)
    if not is_spline:
        turned = isinstance(old.conv, nn.ConvTranspose2d)
        first, second = (inputs, outputs) if turned else (outputs, inputs)
        new.conv.weight.copy_(old.conv.weight[first][:, second])
        return
    now = new.conv.kernel_size
    rows, columns = (slice((k - n) // 2, (k - n) // 2 + n) for k, n in zip(kernel, now, strict=True))
    new.conv.grid = old.conv.grid
    new.conv.coefficients.copy_(old.conv.coefficients[:, outputs][:, :, inputs][..., rows, columns])
    new.conv.mask.copy_(old.conv.mask[outputs][:, inputs][..., rows, columns])
    if new.conv.base_weight is not None:
        new.conv.base_weight.copy_(old.conv.base_weight[outputs][:, inputs][..., rows, columns])
