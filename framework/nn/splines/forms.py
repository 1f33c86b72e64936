"""Spline layers for inference: tables, shared shapes, bytes; each with a bound of its error, as plain modules.

`table` reads the basis functions off a table; `low_rank` gives every input channel R shapes of its own, of which the
edges are mixtures, so that the convolution is R wide instead of n, and reads those off a table; `int8` reads the basis
as bytes and convolves by weights of 8 bits; `low_rank_int8` does both.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import has_values
from framework.nn.precision import without_autocast
from framework.nn.splines.bspline import SplineGrid, end_slopes
from framework.nn.splines.expansion import Base
from framework.nn.splines.int8 import Int8Conv, by_output
from framework.nn.splines.kan import KANConv2d, KANConvTranspose2d, KANLinear
from framework.nn.splines.layer import SplineLayer, spline_layers
from framework.nn.splines.lifts import ByteLift, ExactLift, Shapes, TableLift, second_differences
from framework.nn.splines.low_rank import check_rank, compose, factorise, weighted_gram
from framework.nn.splines.moments import SplineMoments, observe

FormKind = Literal["table", "low_rank", "int8", "low_rank_int8"]

#: entries of a table where none are asked for: with linear interpolation, and of the nearest byte
ENTRIES = {"table": 512, "low_rank": 512, "int8": 4096, "low_rank_int8": 1024}


class SplineForm(nn.Module):
    """A spline layer as a lift of every value and one ordinary layer, without gradients of its parameters in mind.

    Called as the spline layer. Bytes know no NaN: with them a sample that holds one is NaN throughout.

    Attributes:
        kind: of the form.
        lift: `TableLift`, `ExactLift` or `ByteLift`.
        layer: the ordinary layer, Conv2d, ConvTranspose2d or Linear, or `Int8Conv` of it.
        covered: (low, high), the inputs for which `bound` holds: the grid's range, of `int8` what its table covers.
            Outside `table` and `low_rank` follow the tail (of their shapes) exactly, bytes keep the end's value.
        bound: buffer (O,) float64: the most that an output is off the spline layer's with inputs in `covered`, apart
            from the rounding of floating point.
    """

    bound: Tensor

    def __init__(self, spline: SplineLayer, lift: nn.Module, layer: nn.Module, kind: FormKind) -> None:
        super().__init__()
        self.kind, self.lift, self.layer = kind, lift, layer
        self.in_channels, self.out_channels = spline.in_channels, spline.out_channels
        self._linear = isinstance(spline, KANLinear)
        self._before, self._between = _borders(spline)
        self._dtype = spline.coefficients.dtype
        grid = spline.grid
        self.covered = lift.covered if isinstance(lift, ByteLift) else (grid.low, grid.high)
        self.register_buffer("bound", torch.zeros(spline.out_channels, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (..., C) floating point -> (B, O, H', W') or (..., O)."""
        channels = x.shape[-1] if self._linear else x.shape[1] if x.ndim == 4 else -1
        if channels != self.in_channels or not x.is_floating_point():
            wanted = f"(..., {self.in_channels})" if self._linear else f"(B, {self.in_channels}, H, W)"
            raise ConfigError(f"SplineForm: expected a floating-point input {wanted}, got {x.dtype} {tuple(x.shape)}")
        device, dtype = x.device.type, torch.promote_types(x.dtype, self._dtype)
        if self._before is not None:
            x = F.pad(x, self._before[0], mode=self._before[1])
        with without_autocast(device):
            lifted = self.lift(x if self._linear else x.permute(0, 2, 3, 1)).flatten(-2)
        if not self._linear:
            lifted = lifted.permute(0, 3, 1, 2)
        whole = isinstance(self.layer, Int8Conv)
        if self._between is not None:
            lifted = F.pad(lifted, self._between, value=cast(Int8Conv, self.layer).zero_point if whole else 0)
        if whole:
            return self.layer(lifted).add_(_poison(x, self._linear)).to(dtype)
        return self.layer(lifted.to(self.layer.weight.dtype))

    def bytes_held(self) -> int:
        """Bytes of all parameters and buffers that a forward pass reads."""
        tensors = [*self.parameters(), *(b for name, b in self.named_buffers() if name != "bound")]
        return sum(t.numel() * t.element_size() for t in tensors)

    def extra_repr(self) -> str:
        """Kind, and the largest of the bounds."""
        bound = f"{float(self.bound.max()):.3g}" if has_values(self.bound) else "?"
        return f"{self.kind}, covered=({self.covered[0]:g}, {self.covered[1]:g}), bound={bound}"


def _poison(x: Tensor, linear: bool) -> Tensor:
    """0 for every sample, NaN for those that hold one; as wide as an output."""
    most = x.amax(-1, keepdim=True) if linear else x.amax((1, 2, 3), keepdim=True)
    return most.float().clamp(-1, 1) * 0


def _borders(spline: SplineLayer) -> tuple[tuple[tuple[int, ...], str] | None, tuple[int, ...] | None]:
    """What is padded before the lift, and after it where the layer's own padding cannot."""
    if not isinstance(spline, KANConv2d):
        return None, None
    left, right, top, bottom = spline._borders
    if spline.padding_mode in ("zeros", "mask"):
        return None, None if (left, top) == (right, bottom) else spline._borders
    mode = "constant" if spline.padding_mode == "value" else spline.padding_mode
    return ((spline._borders, mode) if any(spline._borders) else None), None


def ordinary_layer(spline: SplineLayer, edges: Tensor, fill: int = 0) -> nn.Module:
    """The layer that runs on the lifted values.

    Args:
        spline: whose form it is.
        edges: (R, O, C / groups, *kernel), what every lifted value of a channel weighs.
        fill: lifted values of every channel that weigh nothing, behind the others.
    """
    if fill:
        edges = torch.cat([edges, edges.new_zeros((fill, *edges.shape[1:]))])
    weight = spline.lifted_weight(edges).detach()
    channels, dtype = spline.in_channels * len(edges), weight.dtype
    common: dict[str, Any] = {"bias": spline.bias is not None, "device": weight.device, "dtype": dtype}
    layer: nn.Module
    if isinstance(spline, KANConv2d):
        left, right, top, bottom = spline._borders
        inside = spline.padding_mode in ("zeros", "mask") and (left, top) == (right, bottom)
        layer = nn.Conv2d(
            channels, spline.out_channels, spline.kernel_size, spline.stride, (top, left) if inside else 0,
            spline.dilation, spline.groups, **common,
        )  # fmt: skip
    elif isinstance(spline, KANConvTranspose2d):
        layer = nn.ConvTranspose2d(
            channels, spline.out_channels, spline.kernel_size, spline.stride, cast(Any, spline.padding),
            cast(Any, spline.output_padding), spline.groups, dilation=spline.dilation, **common,
        )  # fmt: skip
    else:
        layer = nn.Linear(channels, spline.out_channels, **common)
    held = cast(Any, layer)
    order = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    held.weight.data = weight.contiguous(memory_format=order)
    if spline.bias is not None:
        held.bias.data = spline.bias.detach().to(dtype).clone()
    return layer.requires_grad_(False).eval()


class _Parts(NamedTuple):
    """A spline layer taken apart, in float64."""

    shapes: Shapes
    edges: Tensor  # (R, O, C / groups, *kernel)
    lost: Tensor | None  # (n, O, C / groups, *kernel), coefficients of what is lost by sharing shapes

    def missed(self, covered: tuple[float, float]) -> Tensor | float:
        """(O,), the most that is lost by sharing shapes on the grid and, with tails that go on, as far as covered."""
        if self.lost is None:
            return 0.0
        grid, most = self.shapes.grid, self.lost.abs().amax(0)
        if grid.tail == "linear":
            slopes = torch.tensor(end_slopes(grid), dtype=most.dtype) @ self.lost.flatten(1)
            beyond = torch.tensor([max(0.0, grid.low - covered[0]), max(0.0, covered[1] - grid.high)], dtype=most.dtype)
            most = most + (slopes.abs() * beyond[:, None]).amax(0).view(most.shape)
        return most.flatten(1).sum(1)


def _take_apart(spline: SplineLayer, kind: FormKind, rank: int | None, moments: SplineMoments | None) -> _Parts:
    edges = spline.edge_coefficients().detach().double().cpu()
    splines, rest = edges[: spline.basis], edges[spline.basis :]
    if kind in ("table", "int8"):
        unit = torch.eye(spline.basis, dtype=torch.float64)[None]
        return _Parts(Shapes(spline.grid, unit, spline.base), edges, None)
    gram = None
    if moments is not None:
        moments.check(spline)
        gram = (moments.second / moments.weight)[:, : spline.basis, : spline.basis]
    check_rank(cast(int, rank))
    shared, mix = factorise(splines, cast(int, rank), spline.groups, weighted_gram(spline.grid, gram))
    lost = splines - compose(shared, mix, spline.groups)
    return _Parts(Shapes(spline.grid, shared.permute(2, 0, 1), spline.base), torch.cat([mix, rest]), lost)


def _float_form(spline: SplineLayer, parts: _Parts, kind: FormKind, entries: int) -> SplineForm:
    dtype = torch.promote_types(spline.coefficients.dtype, torch.float32)
    device = spline.coefficients.device
    lift: nn.Module = TableLift(parts.shapes, entries, dtype) if entries else ExactLift(parts.shapes, dtype)
    layer = ordinary_layer(spline, parts.edges.to(device, spline.coefficients.dtype))
    form = SplineForm(spline, lift, layer, kind)
    count = parts.shapes.coefficients.shape[2]
    bound = form.bound.cpu() + parts.missed(form.covered)
    if entries:
        made = parts.edges[:count]
        if kind == "low_rank":
            made = compose(parts.shapes.coefficients.permute(1, 2, 0), made, spline.groups)
        per_edge = second_differences(made, spline.grid) / (8 * cast(TableLift, lift).per_cell ** 2)
        bound = bound + per_edge.flatten(1).sum(1)
    form.bound.copy_(bound)
    return form.to(device)


def _byte_form(
    spline: SplineLayer, parts: _Parts, kind: FormKind, entries: int, covered: tuple[float, float]
) -> SplineForm:
    lift = ByteLift(parts.shapes, entries, covered)
    exact = cast(Any, ordinary_layer(spline, parts.edges, lift.width - lift.count))
    layer = Int8Conv(exact, lift.scale, lift.zero_point)
    form = SplineForm(spline, lift, layer, kind)
    # |sum (w + dw)(b + db) - w b| <= |w + dw| |db| + |dw| |b|, over all lifted values of a channel
    rounded = layer.rounded_weight()
    wide, narrow = (_per_lifted(w.abs(), exact, lift.width) for w in (rounded, rounded - exact.weight))
    channels = torch.arange(spline.in_channels)
    off = lift.errors(parts.shapes).expand(spline.in_channels, -1)
    ends = parts.shapes.values(torch.linspace(*covered, entries + 1, dtype=torch.float64)).abs().amax(0)
    largest = ends.expand(spline.in_channels, -1) + off
    bound = form.bound.cpu() + parts.missed(covered)
    for group in channels.chunk(spline.groups) if spline.groups > 1 else [channels]:
        outputs = slice(None)
        if spline.groups > 1:
            each = spline.out_channels // spline.groups
            start = int(group[0]) // len(group) * each
            outputs = slice(start, start + each)
        bound[outputs] += (wide[outputs, :, : lift.count] * off[group]).sum((1, 2))
        bound[outputs] += (narrow[outputs, :, : lift.count] * largest[group]).sum((1, 2))
    form.bound.copy_(bound)
    return form.to(spline.coefficients.device)


def _per_lifted(weight: Tensor, layer: nn.Module, width: int) -> Tensor:
    """(O, C / groups, width): an ordinary layer's weight summed over the kernel."""
    area = weight[0, 0].numel()
    return by_output(weight, layer).reshape(len(by_output(weight, layer)), -1, width, area).sum(3)


class Seen(NamedTuple):
    """What a layer saw of the data."""

    moments: SplineMoments
    low: float
    high: float


@contextmanager
def _extremes(layers: Mapping[str, SplineLayer], found: dict[str, tuple[float, float]]) -> Any:
    def watch(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            low, high = (float(v) for v in inputs[0].detach().float().aminmax())
            known = found.get(name, (low, high))
            found[name] = (min(low, known[0]), max(high, known[1]))

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def seen(module: nn.Module, data: Tensor | Iterable[Tensor]) -> dict[str, Seen]:
    """Runs batches through a module in evaluation mode and says what its spline layers saw, by name."""
    layers, extremes = spline_layers(module), dict[str, tuple[float, float]]()
    training = module.training
    module.eval()
    try:
        with observe(layers) as moments, _extremes(layers, extremes):
            for batch in [data] if isinstance(data, Tensor) else data:
                module(batch)
    finally:
        module.train(training)
    return {name: Seen(moments[name], *extremes[name]) for name in moments}


def _covered(grid: SplineGrid, base: Base | None, what: Seen | None) -> tuple[float, float]:
    """Where a table of bytes is to be right: where nothing changes beyond, or what was seen.

    Without data that is the grid's range and a cell more on both sides; with data a grid's width beyond, at most.
    """
    width = grid.high - grid.low
    if grid.tail != "linear" and base is None:
        more = grid.order * grid.step if grid.tail == "zero" else 0.0
        return grid.low - more, grid.high + more
    if what is None:
        return grid.low - grid.step, grid.high + grid.step
    low, high = max(what.low, grid.low - width), min(what.high, grid.high + width)
    return min(low, grid.low + width / 4), max(high, grid.high - width / 4)


@torch.no_grad()
def spline_form(
    module: nn.Module,
    kind: FormKind,
    *,
    rank: int | Mapping[str, int] | None = None,
    entries: int | None = None,
    data: Tensor | Iterable[Tensor] | None = None,
) -> nn.Module:
    """A copy of a module for inference, in which every spline layer is a `SplineForm`.

    Args:
        module: a network with spline layers, or one of them.
        kind: `table`, `low_rank`, `int8` or `low_rank_int8`.
        rank: R of the low-rank kinds, for all layers or by their names; n or more is exact.
        entries: L of a table; 0 (of `low_rank`): none, the functions themselves; None: enough for the kind.
        data: a batch, or batches, of the module's input. Shapes are then the best for what the layers see (their Gram
            matrices) instead of for evenly spread inputs, and tables of bytes cover what they see.

    Returns:
        the copy, in evaluation mode, on the module's device.

    Raises:
        ConfigError: an unknown kind, a rank that is missing or not wanted, no spline layer.
    """
    if kind not in get_args(FormKind):
        raise ConfigError(f"kind: expected table, low_rank, int8 or low_rank_int8, got {kind!r}")
    if kind.startswith("low_rank") != (rank is not None):
        raise ConfigError(f"rank: {kind} {'needs one' if rank is None else f'has none, got {rank}'}")
    entries = ENTRIES[kind] if entries is None else entries
    layers = spline_layers(module)
    if not layers:
        raise ConfigError("module: there is no spline layer in it (KANConv2d, KANConvTranspose2d, KANLinear)")
    if isinstance(rank, Mapping) and (without := sorted(layers.keys() - rank.keys())):
        raise ConfigError(f"rank: expected one for each of {', '.join(layers)}, got none for {', '.join(without)}")
    known = {} if data is None else seen(module, data)
    made = copy.deepcopy(module).eval()
    for name, spline in layers.items():
        what = known.get(name)
        of_layer = rank.get(name) if isinstance(rank, Mapping) else rank
        with torch.device("cpu"):  # where tables are made, whatever the default device is
            parts = _take_apart(spline, kind, of_layer, what.moments if what else None)
            if kind.endswith("int8"):
                form = _byte_form(spline, parts, kind, entries, _covered(spline.grid, spline.base, what))
            else:
                form = _float_form(spline, parts, kind, entries)
        if not name:
            return form.eval()
        for place, child in module.named_modules(remove_duplicate=False):
            if child is spline:
                made.set_submodule(place, form.eval())
    return made


class FormError(NamedTuple):
    """How far a form's layer is off the spline layer, on the same inputs."""

    bound: float  # the largest over outputs
    largest: float
    relative: float  # root mean square, as a share of that of the layer's output


@torch.no_grad()
def form_errors(module: nn.Module, form: nn.Module, data: Tensor | Iterable[Tensor]) -> dict[str, FormError]:
    """Runs every spline layer of a module and its form on what the layer sees of the data; by the layers' names."""
    forms = dict(form.named_modules())
    found: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            off = forms[name](inputs[0]).double() - output.double()
            sums = torch.stack([off.abs().max(), off.square().sum(), output.double().square().sum()])
            before = found.get(name)
            if before is not None:
                sums = torch.cat([torch.maximum(sums[:1], before[0][:1]), sums[1:] + before[0][1:]])
            found[name] = [sums]

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in spline_layers(module).items()]
    training = module.training
    module.eval()
    try:
        for batch in [data] if isinstance(data, Tensor) else data:
            module(batch)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    errors = {}
    for name, (sums,) in found.items():
        largest, squares, size = sums.tolist()
        bound = float(cast(SplineForm, forms[name]).bound.max())
        errors[name] = FormError(bound, largest, (squares / max(size, 1e-300)) ** 0.5)
    return errors
