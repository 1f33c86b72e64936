"""Spline convolutions against the written-out sum, their gradients, state and bad input."""

import dataclasses
import inspect
import itertools
import typing
import warnings

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn
from torch.nn.utils import prune

from framework.errors import CheckpointError, ConfigError
from framework.nn import CrossMoments, KANConv2d, KANConvTranspose2d, KANLinear, observe
from framework.nn.splines.options import SplineArguments, SplineOptions

IMPLEMENTATIONS = ("dense", "scatter", "recompute", "operator")
TAILS = ("linear", "clamp", "zero")


def randomised(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def triple_sum(layer, x, padding_mode):
    """Y[o] = sum_c sum_i sum_j phi_{ocij}(X[c, y + i, x + j]), phi from scipy's BSpline; edges off the map give 0."""
    grid = layer.grid
    knots = grid.low + (np.arange(grid.size + 2 * grid.order + 1) - grid.order) * grid.step
    w = layer.coefficients.detach().numpy()[: grid.basis]
    pad = layer.padding
    mode = {"value": "constant", "reflect": "reflect", "replicate": "edge"}.get(padding_mode)
    batch, channels, height, width = x.shape
    padded = x if mode is None else np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], mode=mode)  # type: ignore[call-overload]
    stride, dilation = layer.stride[0], layer.dilation[0]
    kh, kw = layer.kernel_size
    rows = (height + 2 * pad - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * pad - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((batch, layer.out_channels, rows, columns))
    per_group = channels // layer.groups
    for b, o, r, q in itertools.product(range(batch), range(layer.out_channels), range(rows), range(columns)):
        for c, i, j in itertools.product(range(per_group), range(kh), range(kw)):
            channel = o // (layer.out_channels // layer.groups) * per_group + c
            y, z = r * stride + i * dilation, q * stride + j * dilation
            if mode is None:
                y, z = y - pad, z - pad
                if not (0 <= y < height and 0 <= z < width):
                    continue
            out[b, o, r, q] += BSpline(knots, w[:, o, c, i, j], grid.order)(padded[b, channel, y, z])
    return out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("padding_mode", ["zeros", "mask", "value", "reflect", "replicate"])
def test_convolution_equals_the_written_out_triple_sum(implementation, padding_mode):
    for order, stride, dilation, groups in ((3, 1, 1, 1), (2, 2, 1, 2), (1, 1, 2, 1)):
        layer = KANConv2d(
            2, 2, 3, stride, 2, dilation, groups, padding_mode=padding_mode, spline_order=order, dtype=torch.float64,
            implementation=implementation,
        )  # fmt: skip
        randomised(layer)
        x = np.random.default_rng(1).uniform(-2.99, 2.99, (1, 2, 5, 4))
        expected = triple_sum(layer, x, padding_mode)
        assert np.abs(layer(torch.from_numpy(x)).detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("padding_mode", ["zeros", "value", "reflect", "replicate"])
@pytest.mark.parametrize("base", [None, "silu"])
def test_gradients(implementation, tail, padding_mode, base):
    layer = KANConv2d(
        2, 2, 3, padding=1, padding_mode=padding_mode, grid_size=3, max_grid_size=6, dtype=torch.float64, tail=tail,
        base=base, bias=True, implementation=implementation, grid_range=(-1, 1),
    )  # fmt: skip
    randomised(layer)
    # inputs inside and outside the grid, none at a kink
    x = (torch.rand(1, 2, 3, 3, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_of_transposed_and_linear_layers(implementation, order):
    kwargs = {"dtype": torch.float64, "implementation": implementation, "spline_order": order, "base": "linear"}
    for layer, shape in (
        (KANConvTranspose2d(4, 2, 2, 2, groups=2, **kwargs), (1, 4, 3, 2)),
        (KANLinear(3, 2, bias=True, **kwargs), (2, 2, 3)),
    ):
        randomised(layer)
        x = (torch.rand(shape, dtype=torch.float64) * 5 - 2.5).requires_grad_()
        assert torch.autograd.gradcheck(layer, (x,))
        layer(x).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_transposed_and_linear_layers_equal_written_out_sums(implementation):
    x = np.random.default_rng(2).uniform(-2.9, 2.9, (1, 4, 3, 2))
    layer = randomised(KANConvTranspose2d(4, 2, 2, 2, groups=2, dtype=torch.float64, implementation=implementation))
    knots = layer.grid.low + (np.arange(layer.basis + 4) - 3) * layer.grid.step
    w = layer.coefficients.detach().numpy()
    expected = np.zeros((1, 2, 6, 4))
    for o, c, i, j, r, q in itertools.product(range(2), range(2), range(2), range(2), range(3), range(2)):
        expected[0, o, 2 * r + i, 2 * q + j] += BSpline(knots, w[:, o, c, i, j], 3)(x[0, 2 * o + c, r, q])
    assert np.abs(layer(torch.from_numpy(x)).detach().numpy() - expected).max() < 1e-12
    linear = randomised(KANLinear(4, 2, dtype=torch.float64, implementation=implementation))
    w = linear.coefficients.detach().numpy()
    expected = [
        [sum(BSpline(knots, w[:, o, c], 3)(x[0, c, r, 0]) for c in range(4)) for o in range(2)] for r in range(3)
    ]
    assert np.abs(linear(torch.from_numpy(x[0, :, :, 0].T.copy())).detach().numpy() - expected).max() < 1e-12


def test_same_padding_equals_an_even_border_and_handles_even_kernels():
    layer = KANConv2d(2, 3, 3, padding="same")
    twin = KANConv2d(2, 3, 3, padding=1)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 6, 5)
    assert torch.equal(layer(x), twin(x))
    assert KANConv2d(2, 3, (2, 4), padding="same")(x).shape == (2, 3, 6, 5)


def test_valid_padding_is_none() -> None:
    layer, bare = KANConv2d(2, 3, 3, padding="valid"), KANConv2d(2, 3, 3)
    bare.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 6, 5)
    assert layer(x).shape == (2, 3, 4, 3)
    assert torch.equal(layer(x), bare(x))


def test_a_new_layer_is_a_plain_convolution():
    torch.manual_seed(0)
    layer = KANConv2d(3, 4, 3, padding=1, grid_size=7)
    x = 4 * torch.randn(2, 3, 8, 8)
    slope = layer.edge_values(torch.tensor([1.0])) - layer.edge_values(torch.tensor([0.0]))
    plain = nn.functional.conv2d(x, slope[0].detach(), padding=1)
    assert (layer(x) - plain).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize("grid_size", [5, 40])
def test_gradients_do_not_grow_through_eight_layers(grid_size):
    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.BatchNorm2d(16), KANConv2d(16, 16, 3, padding=1, grid_size=grid_size)]
    x = torch.randn(4, 16, 16, 16, requires_grad=True)
    y = nn.Sequential(*layers)(x)
    y.backward(torch.randn_like(y))
    # outputs and inputs have unit variance, so equal gradient norms mean neither growth nor decay
    assert 1 / 3 < float(x.grad.norm() / torch.randn_like(y).norm()) < 3


@pytest.mark.parametrize("make", [lambda **k: KANConv2d(6, 4, 3, groups=2, **k), lambda **k: KANLinear(6, 4, **k)])
def test_doubling_from_5_to_40_keeps_the_output(make):
    torch.manual_seed(0)
    layer = make(max_grid_size=40, base="silu")
    randomised(layer)
    x = 3 * torch.randn(*((2, 6, 7, 7) if isinstance(layer, KANConv2d) else (20, 6)))
    first = layer(x)
    identity = layer.coefficients
    for size in (10, 20, 40):
        layer.extend_grid()
        assert layer.grid_size == size
        assert (layer(x) - first).abs().max() <= 1e-5 * first.abs().max()
    assert layer.coefficients is identity


def test_unused_room_gets_no_gradient():
    layer = KANConv2d(2, 2, 3, max_grid_size=10)
    layer(torch.randn(1, 2, 5, 5)).sum().backward()
    assert layer.coefficients.grad[: layer.basis].abs().sum() > 0
    assert layer.coefficients.grad[layer.basis :].abs().sum() == 0


def test_range_change_by_moments_of_the_data_keeps_the_output_on_them():
    torch.manual_seed(0)
    layer = randomised(KANConv2d(3, 2, 3, max_grid_size=12, dtype=torch.float64))
    with torch.no_grad():
        layer.coefficients[:8] = torch.sin(torch.linspace(-2, 2, 8)).view(-1, 1, 1, 1, 1) * layer.coefficients[:1]
    x = 0.8 * torch.randn(4, 3, 16, 16, dtype=torch.float64)
    before = layer(x)
    moments = CrossMoments(layer, 12, (-4.0, 4.0))
    for part in x.split(2):
        moments.add(part)
    moments.refit()
    assert (layer.grid.size, layer.grid.low, layer.grid.high) == (12, -4.0, 4.0)
    assert (layer(x) - before).std() < 0.02 * before.std()


@pytest.mark.parametrize("layer", [KANConv2d(3, 2, 3, base="silu"), KANLinear(3, 2)], ids=["convolution", "linear"])
def test_moments_under_autocast_are_those_without(layer):
    x = torch.randn(4, 3, 9, 9) if isinstance(layer, KANConv2d) else torch.randn(64, 3)
    seen, crossed = [], []
    for enabled in (False, True):
        cross = CrossMoments(layer, 12, (-4.0, 4.0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), observe({"layer": layer}) as moments:
            layer(x)
            cross.add(x)
        seen.append(moments["layer"].tensors())
        crossed.append((cross.gram_sum, cross.cross_sum))
    for name, expected in seen[0].items():
        assert torch.equal(seen[1][name], expected), name
    assert all(torch.equal(a, b) for a, b in zip(*crossed, strict=True))


def test_recompute_keeps_what_a_plain_convolution_keeps():
    from torch.profiler import ProfilerActivity, profile

    def held(layer):
        x = torch.randn(4, 32, 64, 64, requires_grad=True)
        layer(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            y = layer(x)
        total = sum(e.self_cpu_memory_usage for e in profiler.key_averages())
        return total - y.numel() * 4 + x.numel() * 4  # what is allocated and still alive, and the input it refers to

    plain = held(nn.Conv2d(32, 32, 3, padding=1, bias=False))
    assert held(KANConv2d(32, 32, 3, padding=1, implementation="recompute")) <= 1.1 * plain
    # the measure can tell: the scatter form holds the lifted map
    assert held(KANConv2d(32, 32, 3, padding=1, implementation="scatter")) > 5 * plain


def test_recompute_refuses_a_grid_that_changed_under_it():
    layer = KANConv2d(2, 2, 3, max_grid_size=10, implementation="recompute")
    y = layer(torch.randn(1, 2, 5, 5))
    layer.extend_grid()
    with pytest.raises(ConfigError, match="extend it between two steps"):
        y.sum().backward()


def test_autocast_locates_cells_in_float32_and_returns_bfloat16():
    torch.manual_seed(0)
    layer = randomised(KANConv2d(8, 8, 3, padding=1, grid_size=20))
    x = torch.randn(2, 8, 16, 16)
    exact = layer(x)
    for implementation in IMPLEMENTATIONS:
        layer.implementation = implementation
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert (y.float() - exact).abs().max() < 0.02 * exact.abs().max()
        y.float().sum().backward()
        assert layer.coefficients.grad.isfinite().all()


# ---------------------------------------------------------------------- state


def test_a_checkpoint_of_an_extended_grid_is_taken_over():
    layer = KANConv2d(2, 2, 3, max_grid_size=20)
    randomised(layer)
    layer.extend_grid()
    fresh = KANConv2d(2, 2, 3, max_grid_size=20)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.grid_size == 10
    assert torch.equal(fresh.coefficients, layer.coefficients)


def test_a_coarser_checkpoint_is_prolonged_exactly():
    coarse = randomised(KANConv2d(2, 2, 3))
    fine = KANConv2d(2, 2, 3, grid_size=20, max_grid_size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 2, 9, 9)
    assert (fine(x) - coarse(x)).abs().max() < 1e-5 * coarse(x).abs().max()


def test_a_finer_checkpoint_is_projected_with_a_warning_that_states_the_error():
    fine = randomised(KANConv2d(2, 2, 3, grid_size=20))
    coarse = KANConv2d(2, 2, 3)
    with pytest.warns(UserWarning, match=r"20 grid cells do not fit into 5.*changes a spline by at most \d+\.\d+%"):
        coarse.load_state_dict(fine.state_dict())
    assert coarse.grid_size == 5
    assert coarse.coefficients.isfinite().all()


def test_another_degree_is_refused():
    with pytest.raises(CheckpointError, match="has degree 2, the layer has 3"):
        KANConv2d(2, 2, 3).load_state_dict(KANConv2d(2, 2, 3, spline_order=2).state_dict())


def test_state_is_tensors_only():
    assert all(isinstance(value, torch.Tensor) for value in KANConv2d(2, 2, 3).state_dict().values())


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": 0}, "grid_size: expected"),
        ({"max_grid_size": 3}, "max_grid_size: expected at least grid_size = 5, got 3"),
        ({"base": "relu"}, "base: expected null, silu or linear, got 'relu'"),
        ({"implementation": "fast"}, "implementation: expected auto, dense, scatter, recompute, operator"),
        ({"padding_mode": "circular"}, "padding_mode: expected one of zeros, mask, value"),
        ({"padding": "full"}, "padding: expected numbers, same or valid"),
        ({"padding": -1}, "padding: expected one or two whole numbers, at least 0, got -1"),
        ({"padding": "same", "stride": 2}, "padding: same needs stride 1"),
        ({"groups": 3}, "groups: expected positive numbers"),
        ({"padding": 1.5}, "padding: expected one or two whole numbers, at least 0, got 1.5"),
        ({"padding": (1, 2, 3)}, "padding: expected one or two whole numbers"),
        ({"stride": 1.0}, "stride: expected one or two whole numbers, at least 1, got 1.0"),
        ({"grid_size": 5.0}, "grid_size: expected a whole number of cells, at least 1, got 5.0"),
        ({"grid_size": None}, "grid_size: expected a whole number of cells, at least 1, got None"),
        ({"spline_order": 3.0}, "spline_order: expected 1, 2 or 3, got 3.0"),
        ({"rank": 2.0}, "rank: expected a whole number of shapes per input channel, at least 1, got 2.0"),
        ({"rank": "all"}, "rank: expected a whole number of shapes per input channel, at least 1, got 'all'"),
        ({"groups": 1.0}, "groups: expected positive numbers"),
        ({"max_grid_size": 10.0}, "max_grid_size: expected a whole number of cells, got 10.0"),
        ({"grid_range": (1,)}, "grid_range: expected two numbers"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        KANConv2d(2, 2, 3, **arguments)


@pytest.mark.parametrize("kind", [KANConv2d, KANConvTranspose2d, KANLinear])
def test_signatures_show_the_shared_options(kind):
    shown = inspect.signature(kind).parameters
    for field in dataclasses.fields(SplineOptions):
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[field.name].default == field.default
    # the twin for type checkers
    assert typing.get_type_hints(SplineArguments) == typing.get_type_hints(SplineOptions)
    with pytest.raises(TypeError, match="grid_sizes"):
        kind(2, 2, grid_sizes=3) if kind is KANLinear else kind(2, 2, 3, grid_sizes=3)


def test_wrong_inputs_are_named():
    with pytest.raises(ConfigError, match=r"expected a floating-point input \(B, 2, H, W\), got .* \(1, 3, 4, 4\)"):
        KANConv2d(2, 2, 3)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="floating-point"):
        KANConv2d(2, 2, 3)(torch.zeros(1, 2, 4, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"\(\.\.\., 2\)"):
        KANLinear(2, 2)(torch.zeros(4, 3))


def test_extension_without_room_names_the_argument_to_add():
    with pytest.raises(ConfigError, match="build the layer with max_grid_size: 10 or more"):
        KANConv2d(2, 2, 3).extend_grid()
    for factor in (1, 1.5, "a", None):
        with pytest.raises(ConfigError, match="factor: expected a whole number, at least 2, got"):
            KANConv2d(2, 2, 3, max_grid_size=10).extend_grid(factor)


@pytest.mark.parametrize("grid_range", [(1,), (1, 2, 3), "a", ("a", "b"), 3])
def test_a_range_that_is_not_two_numbers_is_named(grid_range):
    layer = KANConv2d(2, 2, 3)
    for use in (layer.refit_grid, lambda **k: CrossMoments(layer, **k), lambda **k: KANConv2d(2, 2, 3, **k)):
        with pytest.raises(ConfigError, match="grid_range: expected two numbers"):
            use(grid_range=grid_range)


def test_far_inputs_stay_finite_and_nan_is_not_hidden():
    layer = KANConv2d(1, 1, 3, padding=1)
    assert layer(torch.full((1, 1, 4, 4), 1e6)).isfinite().all()
    assert layer(torch.full((1, 1, 4, 4), float("nan"))).isnan().all()


@pytest.mark.slow
def test_compiled_layers_agree_with_eager_ones():
    torch.manual_seed(0)
    layer = randomised(KANConv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    expected, x.grad = x.grad, None
    compiled = torch.compile(layer)(x)
    compiled.sum().backward()
    assert torch.allclose(compiled, y, atol=1e-4)
    assert torch.allclose(x.grad, expected, atol=1e-3)


def test_bad_arguments_of_a_transposed_layer_are_named() -> None:
    for arguments, message in (
        ({"padding": 0.5}, "padding: expected one or two whole numbers, at least 0, got 0.5"),
        ({"output_padding": -1}, "output_padding: expected one or two whole numbers, at least 0, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            KANConvTranspose2d(2, 2, 3, **arguments)


def test_numbers_of_numpy_are_whole_numbers() -> None:
    layer = KANConv2d(2, 2, np.int64(3), padding=np.int64(1), grid_size=np.int64(4), max_grid_size=np.int64(8))
    assert layer(torch.zeros(1, 2, 5, 5)).shape == (1, 2, 5, 5)


@pytest.mark.parametrize("rank", [None, 2])
def test_pruning_by_the_alias_names_the_parameter(rank: int | None) -> None:
    layer = KANLinear(3, 2, rank=rank)
    with pytest.raises(ConfigError, match="expected `coefficients`"):
        prune.l1_unstructured(layer, "weight", 0.5)
    before = layer(torch.ones(1, 3))
    prune.identity(layer, "coefficients" if rank is None else "mix")
    torch.testing.assert_close(layer(torch.ones(1, 3)), before)
