"""Forms for inference against direct evaluation in float64: tables, shared shapes, bytes, and layers of a low rank."""

import copy
import itertools
import pickle
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy.special import eval_legendre
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import (
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    SplineForm,
    SplineGrid,
    SplineLayer,
    form_errors,
    spline_form,
    spline_layers,
)
from framework.nn.splines.bspline import dense_basis
from framework.nn.splines.forms import FormKind
from framework.nn.splines.int8 import Int8Conv, int8_kernels
from framework.nn.splines.lifts import ByteLift, Shapes, TableLift, sag
from framework.nn.splines.low_rank import compose, factorise, first_shapes, weighted_gram

OTHERS = ("low_rank", "int8")
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda **k: KANConv2d(4, 6, 3, padding=1, bias=True, groups=2, **k), (2, 4, 9, 7)),
    "strided": (lambda **k: KANConv2d(3, 5, (3, 2), stride=2, dilation=(1, 2), padding=(1, 0), **k), (2, 3, 9, 8)),
    "uneven": (lambda **k: KANConv2d(3, 5, 2, padding="same", **k), (1, 3, 5, 6)),
    "value": (lambda **k: KANConv2d(3, 5, 3, padding=1, padding_mode="value", **k), (1, 3, 5, 6)),
    "reflect": (lambda **k: KANConv2d(3, 5, 3, padding=1, padding_mode="reflect", **k), (1, 3, 5, 6)),
    "transposed": (lambda **k: KANConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=True, **k), (2, 4, 5, 3)),
    "linear": (lambda **k: KANLinear(4, 6, bias=True, **k), (3, 5, 4)),
}
KINDS: dict[str, dict[str, Any]] = {
    "table": {},
    "low_rank": {"rank": 2},
    "int8": {},
    "low_rank_int8": {"rank": 2},
}


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def made(name: str, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> SplineLayer:
    torch.manual_seed(seed)
    layer = LAYERS[name][0](**options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def adversarial(layer: SplineLayer, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Every knot, both ends and their neighbouring numbers, and anything between."""
    grid = layer.grid
    knots = grid.low + grid.step * torch.arange(grid.size + 1, dtype=torch.float64)
    ends = torch.tensor([low, high], dtype=torch.float64)
    known = torch.cat([knots, ends, torch.nextafter(knots, ends.max()), torch.nextafter(knots, ends.min())])
    x = torch.rand(shape, dtype=torch.float64) * (high - low) + low
    places = torch.randperm(x.numel())[: len(known)]
    x.view(-1)[places] = known[: len(places)]
    return x.clamp(low, high)


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(LAYERS, KINDS)))
def test_a_form_keeps_its_bound(name: str, kind: str) -> None:
    for tail, base in itertools.product(("linear", "clamp", "zero"), (None, "silu")):
        layer = made(name, tail=tail, base=base)
        form = spline_form(layer, kind, **KINDS[kind])
        assert isinstance(form, SplineForm)
        x = adversarial(layer, LAYERS[name][1], *form.covered)
        off = (form(x) - layer(x)).abs()
        channels = -1 if name == "linear" else 1
        most = off.movedim(channels, 0).flatten(1).amax(1)
        assert bool((most <= form.bound + 1e-5 * (1 + layer(x).abs().max())).all()), (tail, base)
        assert 0 < float(form.bound.max()) < (1e-2 if kind == "table" else 1e3)
        # a bound that says something: no more than a few hundred times what random inputs reach
        assert float(off.max()) > 1e-3 * float(form.bound.max())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("data", [False, True])
def test_a_bound_holds_beyond_the_grid_where_shared_shapes_go_on_with_other_slopes(order: int, data: bool) -> None:
    """One edge alone, whose error no other's can hide."""
    for seed in range(4):
        torch.manual_seed(seed)
        layer = KANLinear(1, 3, spline_order=order).double()
        layer.coefficients.normal_()
        seen = 2.5 * torch.randn(500, 1, dtype=torch.float64) if data else None
        form = spline_form(layer, "low_rank_int8", rank=2, data=seen)
        assert isinstance(form, SplineForm)
        assert form.covered[0] < layer.grid.low
        x = torch.linspace(*form.covered, 2001, dtype=torch.float64)[:, None]
        off = (form(x) - layer(x)).abs().amax(0)
        assert bool((off <= form.bound + 1e-6).all())
        assert bool((off > 0.2 * form.bound).any())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
def test_a_table_is_off_by_an_eighth_of_the_second_derivative_and_exact_outside(order: int, tail: Any) -> None:
    torch.manual_seed(1)
    grid = SplineGrid(4, order, -2.0, 2.0, tail)
    shapes = Shapes(grid, torch.randn(3, grid.basis, 2, dtype=torch.float64), None)
    lift = TableLift(shapes, 33, torch.float64)
    assert lift.per_cell == 8
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    exact = torch.einsum("qn,cns->qcs", dense_basis(x, grid), shapes.coefficients)
    off = (lift(x[:, None].expand(-1, 3)) - exact).abs().amax(0)
    entries = x[::125]  # every entry of the table
    at_entries = torch.einsum("qn,cns->qcs", dense_basis(entries, grid), shapes.coefficients)
    torch.testing.assert_close(lift(entries[:, None].expand(-1, 3)), at_entries, rtol=1e-12, atol=1e-12)
    if order == 1:
        assert float(off.max()) < 1e-12  # all kinks are entries
    else:
        curvature = exact.diff(n=2, dim=0).abs().amax(0) / (x[1] - x[0]) ** 2  # from below
        bound = curvature / 8 * (0.5 / 4) ** 2
        assert bool((off <= 1.02 * bound + 1e-12).all())
        assert bool((off >= 0.5 * bound).any())
    far = torch.tensor([-1e6, -7.0, -2 - 1e-9, 2 + 1e-9, 5.5, 1e6], dtype=torch.float64)
    beyond = torch.einsum("qn,cns->qcs", dense_basis(far, grid), shapes.coefficients)
    if tail != "zero":  # which fades within the table
        torch.testing.assert_close(lift(far[:, None].expand(-1, 3)), beyond, rtol=1e-8, atol=1e-6)
    else:
        outside = far.abs() > 2 + order
        torch.testing.assert_close(lift(far[:, None].expand(-1, 3))[outside], beyond[outside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conv", "transposed", "linear"])
def test_nan_is_never_lost_and_infinity_never_becomes_a_wrong_number(kind: str, name: str) -> None:
    layer = made(name, dtype=torch.float32)
    form = spline_form(layer, kind, **KINDS[kind])
    x = torch.randn(LAYERS[name][1])
    x[0].view(-1)[0] = torch.nan
    said, direct = form(x), layer(x)
    assert bool(said.isnan()[direct.isnan()].all())
    assert bool(said[1].isfinite().all())
    x[0].view(-1)[0] = torch.inf
    said = form(x)
    if kind.endswith("int8"):  # keeps the end's value
        assert bool(said.isfinite().all())
    else:
        assert not bool(said[0].isfinite().all())


def test_bytes_keep_the_end_of_what_they_cover() -> None:
    layer = made("conv", dtype=torch.float32)
    form = spline_form(layer, "int8")
    low, high = form.covered
    x = torch.randn(2, 4, 9, 7) * 20
    torch.testing.assert_close(form(x), form(x.clamp(low, high)))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
def test_no_chord_is_further_off_than_the_sag(order: int, tail: Any) -> None:
    torch.manual_seed(2)
    grid = SplineGrid(4, order, -2.0, 2.0, tail)
    shapes = Shapes(grid, torch.randn(1, grid.basis, 3, dtype=torch.float64), "silu")
    for distance in (0.05, 0.3, 1.7):
        left = torch.linspace(-5, 5, 701, dtype=torch.float64)
        worst = torch.zeros(1, 4, dtype=torch.float64)
        for share in torch.linspace(0.05, 0.95, 13).tolist():
            ends = shapes.values(left), shapes.values(left + distance)
            chord = (1 - share) * ends[0] + share * ends[1]
            worst = torch.maximum(worst, (chord - shapes.values(left + share * distance)).abs().amax(0))
        assert bool((worst <= sag(shapes, distance) + 1e-12).all())


def test_a_byte_is_as_near_as_it_says() -> None:
    torch.manual_seed(3)
    grid = SplineGrid(5)
    shapes = Shapes(grid, torch.randn(2, grid.basis, 3, dtype=torch.float64), None)
    lift = ByteLift(shapes, 256, (-4.0, 4.5))
    assert lift.width == 4
    assert lift.table.dtype == torch.uint8
    x = torch.linspace(-4, 4.5, 9999, dtype=torch.float64)
    said = lift.scale * (lift(x[:, None].expand(-1, 2)).double() - lift.zero_point)
    off = (said[..., :3] - shapes.values(x)).abs().amax(0)
    assert bool((off <= lift.errors(shapes) + 1e-12).all())
    assert bool((off > 0.8 * lift.errors(shapes)).all())
    assert bool((said[..., 3] == 0).all())


# ---------------------------------------------------------------------- low rank


@pytest.mark.parametrize("name", LAYERS)
def test_full_rank_is_exact(name: str) -> None:
    layer = made(name, base="silu")
    x = 2 * torch.randn(LAYERS[name][1], dtype=torch.float64)
    form = spline_form(layer, "low_rank", rank=layer.basis, entries=0)
    torch.testing.assert_close(form(x), layer(x), rtol=1e-9, atol=1e-9)
    assert float(form.bound.max()) < 1e-9  # type: ignore[operator]


def test_shapes_are_the_best_for_the_data() -> None:
    """The truncated decomposition's error is the sum of the squares of the singular values left out."""
    torch.manual_seed(0)
    grid = SplineGrid(5)
    x = torch.randn(4000, dtype=torch.float64) * 0.7 + 0.5
    values = dense_basis(x, grid)
    gram = (values.T @ values / len(x))[None]
    edges = torch.randn(grid.basis, 7, 1, 3, 3, dtype=torch.float64)
    shapes, mix = factorise(edges, 3, 1, weighted_gram(grid, gram, 1e-9))
    lost = (values @ (edges - compose(shapes, mix, 1)).flatten(1)).square().mean(0).sum()
    singular = torch.linalg.svdvals(values @ edges.flatten(1) / len(x) ** 0.5)
    torch.testing.assert_close(lost, singular[3:].square().sum(), rtol=1e-5, atol=0)
    even = factorise(edges, 3, 1, weighted_gram(grid))
    assert (values @ (edges - compose(*even, 1)).flatten(1)).square().mean(0).sum() > 1.05 * lost


def test_data_make_a_better_form() -> None:
    layer = made("conv", dtype=torch.float32)
    x = 0.5 * torch.randn(8, 4, 9, 7) + 1
    without = form_errors(layer, spline_form(layer, "low_rank", rank=2), x)[""]
    with_data = form_errors(layer, spline_form(layer, "low_rank", rank=2, data=x), x)[""]
    assert with_data.relative < 0.9 * without.relative
    assert with_data.largest <= with_data.bound


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("base", [None, "silu"])
def test_a_layer_of_a_low_rank_is_the_layer_of_its_composed_coefficients(name: str, base: Any) -> None:
    layer = made(name, rank=2, base=base)
    x = torch.randn(LAYERS[name][1], dtype=torch.float64)
    whole = LAYERS[name][0](base=base).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), whole(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.coefficients, whole.coefficients)
    torch.testing.assert_close(layer.edge_strength(), whole.edge_strength())
    back = LAYERS[name][0](base=base, rank=2).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back.load_state_dict(whole.state_dict())
    torch.testing.assert_close(back(x), whole(x), rtol=1e-6, atol=1e-6)
    assert isinstance(pickle.loads(pickle.dumps(layer)), type(layer))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


def test_a_checkpoint_of_whole_edges_says_what_it_loses() -> None:
    whole, low = made("conv"), LAYERS["conv"][0](rank=2).double()
    with pytest.warns(UserWarning, match=r"mixtures of 2 shapes per input channel, which changes them by \d+"):
        low.load_state_dict(whole.state_dict())
    grown = made("conv", max_grid_size=10)
    grown.extend_grid()
    larger = LAYERS["conv"][0](rank=8, max_grid_size=10).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cutting cells does not make more shapes
        larger.load_state_dict(grown.state_dict())
    x = torch.randn(LAYERS["conv"][1], dtype=torch.float64)
    assert larger.grid_size == 10
    torch.testing.assert_close(larger(x), grown(x), rtol=1e-6, atol=1e-6)


def test_a_layer_of_a_low_rank_starts_plain_and_learns() -> None:
    torch.manual_seed(0)
    layer = KANConv2d(2, 3, 3, padding=1, rank=2)
    x = torch.randn(4, 2, 8, 8)
    plain = nn.functional.conv2d(x, layer.mix[0], padding=1)
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)
    target = torch.stack([x[:, 0].sin(), x[:, 1].square(), x[:, 0].abs()], 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        with torch.enable_grad():
            loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    assert layer.live_parameters() == 8 * 2 * 2 + 2 * 2 * 3 * 9


def test_a_layer_of_a_low_rank_keeps_grid_and_edges() -> None:
    layer = KANConv2d(2, 3, 3, rank=2, max_grid_size=10)
    with pytest.raises(ConfigError, match="rank: the edges of an input channel share 2 shapes"):
        layer.extend_grid()
    with pytest.raises(ConfigError, match="rank: the edges"):
        layer.prune_edges(torch.ones(3, 2, 3, 3, dtype=torch.bool))
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="rank: expected a whole number"):
            KANConv2d(2, 3, 3, rank=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at most the 8 basis functions"):
        KANLinear(2, 3, rank=9)


# ---------------------------------------------------------------------- bytes


@pytest.mark.parametrize("name", LAYERS)
def test_the_processors_kernels_say_what_floats_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's sums of whole numbers against the same numbers in float64."""
    layer = made(name, dtype=torch.float32)
    form = spline_form(layer, "int8")
    x = torch.randn(LAYERS[name][1])
    fast = form(x)
    monkeypatch.setattr("framework.nn.splines.int8.int8_kernels", lambda: False)
    torch.testing.assert_close(form(x), fast, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not int8_kernels(), reason="no oneDNN kernels for bytes on this processor")
def test_packed_weights_follow_the_weights() -> None:
    form = spline_form(made("conv", dtype=torch.float32), "int8")
    x = torch.randn(1, 4, 9, 7)
    before, inner = form(x), form.layer
    assert isinstance(inner, Int8Conv)
    inner.weight.zero_()
    assert inner.bias is not None
    torch.testing.assert_close(form(x), inner.bias.view(1, -1, 1, 1).expand_as(before))
    assert pickle.loads(pickle.dumps(form))(x).equal(form(x))
    assert copy.deepcopy(form)(x).equal(form(x))


# ---------------------------------------------------------------------- networks, export, messages


class Small(nn.Module):
    """Two spline layers with a normalisation between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = KANConv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), KANConv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_converted_as_a_whole_and_left_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    network, x = Small(), torch.randn(2, 2, 12, 10)
    network(x)  # statistics
    kept = copy.deepcopy(network.state_dict())
    form = spline_form(network, kind, data=x, **KINDS[kind])
    assert not spline_layers(form)
    assert not form.training
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), network.state_dict().values(), strict=True))
    errors = form_errors(network, form, x)
    assert set(errors) == {"first", "second"}
    assert all(e.largest <= e.bound + 1e-4 for e in errors.values())
    exact = network.eval()(x)
    assert float((form(x) - exact).square().mean() / exact.square().mean()) < 1e-2
    assert form(x).dtype == torch.float32


@pytest.mark.parametrize("kind", ["table", "low_rank_int8", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)])
def test_a_form_exports_with_dynamic_sizes(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network, x = Small().eval(), torch.randn(2, 2, 12, 10)
    form = spline_form(network, kind, **KINDS[kind])
    axes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(form, (x,), dynamic_shapes=(dict(axes.items()),))
    path = tmp_path / "form.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, f=str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for other in (x, 2 * torch.randn(3, 2, 7, 13)):
        expected = form(other)
        torch.testing.assert_close(program.module()(other), expected, rtol=1e-4, atol=1e-4)
        (said,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        # where a float is rounded into the next interval of a table of bytes, its entry is the next one
        atol = 1e-4 if not kind.endswith("int8") else 0.02
        torch.testing.assert_close(torch.from_numpy(said), expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conv", "transposed", "linear"])
def test_forms_take_an_empty_batch(kind: str, name: str) -> None:
    layer, x = made(name, dtype=torch.float32), torch.randn(LAYERS[name][1])
    form = spline_form(layer, kind, **KINDS[kind])
    assert form(x[:0]).shape == layer(x[:0]).shape == (0, *layer(x).shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_forms_are_made_and_run_in_inference_mode(kind: str) -> None:
    layer, x = made("conv", dtype=torch.float32), torch.randn(2, 4, 9, 7)
    outside = spline_form(layer, kind, **KINDS[kind])(x)
    with torch.inference_mode():
        torch.testing.assert_close(spline_form(layer, kind, **KINDS[kind])(x), outside)


def test_what_cannot_be_is_said() -> None:
    layer = KANConv2d(2, 3, 3)
    for arguments, message in (
        ({"kind": "tables"}, "kind: expected table, low_rank, int8 or low_rank_int8, got 'tables'"),
        ({"kind": "low_rank"}, "rank: low_rank needs one"),
        ({"kind": "int8", "rank": 2}, "rank: int8 has none, got 2"),
        ({"kind": "table", "entries": 1}, "entries: expected a whole number of table entries, at least 2, got 1"),
        ({"kind": "int8", "entries": 0}, "entries: expected"),
        (
            {"kind": "int8", "entries": "many"},
            "entries: expected a whole number of table entries, at least 2, got 'many'",
        ),
        ({"kind": "table", "entries": 8.0}, "entries: expected a whole number of table entries, at least 2, got 8.0"),
        ({"kind": "low_rank", "rank": "two"}, "rank: expected a whole number"),
        ({"kind": "low_rank", "rank": {"0": 2}}, "rank: expected one for each of , got none for"),
    ):
        with pytest.raises(ConfigError, match=message):
            spline_form(layer, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="module: there is no spline layer"):
        spline_form(nn.Conv2d(2, 3, 3), "table")
    with pytest.raises(ConfigError, match="expected a floating-point input"):
        spline_form(layer, "table")(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("kind", ["table", "int8"])
def test_two_entries_are_enough(kind: FormKind) -> None:
    layer, x = made("conv", dtype=torch.float32), torch.randn(2, 4, 9, 7).clamp(-0.9, 0.9)
    form = spline_form(layer, kind, entries=2)
    assert bool(((form(x) - layer(x)).abs().amax((0, 2, 3)) <= form.bound * 1.001 + 1e-5).all())


@pytest.mark.parametrize("covered", [(1.0, 1.0), (2.0, -1.0), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_named(covered: tuple[float, float]) -> None:
    grid = SplineGrid(5)
    shapes = Shapes(grid, torch.randn(2, grid.basis, 3, dtype=torch.float64), None)
    with pytest.raises(ConfigError, match="covered: expected two numbers low < high, got"):
        ByteLift(shapes, 256, covered)


def test_forms_answer_in_the_layers_dtype_and_under_autocast() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        layer = KANConv2d(2, 3, 3, padding=1, dtype=dtype)
        x = torch.randn(1, 2, 6, 6, dtype=dtype)
        for kind, more in KINDS.items():
            said = spline_form(layer, kind, **more)(x)  # type: ignore[arg-type]
            assert said.dtype == dtype
            torch.testing.assert_close(said.double(), layer(x).double(), rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert spline_form(KANConv2d(2, 3, 3), "low_rank", rank=2)(torch.randn(1, 2, 6, 6)).dtype == torch.bfloat16


def test_a_low_rank_starts_with_the_input_and_legendre_polynomials() -> None:
    grid = SplineGrid(40, 3, -2.0, 1.0)
    x = torch.linspace(-2, 1, 301, dtype=torch.float64)
    given = dense_basis(x, grid) @ first_shapes(grid, 4).double()
    assert torch.equal(first_shapes(grid, 3), first_shapes(grid, 4)[:, :3])
    unit = (2 * x + 1) / 3
    assert torch.allclose(given[:, 0], x, atol=1e-12)
    for degree in (2, 3, 4):
        exact = torch.from_numpy(eval_legendre(degree, unit.numpy()))
        assert (given[:, degree - 1] - exact).abs().max() < 0.02, degree


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_stands_at_two_places_is_replaced_at_both(kind: str) -> None:
    torch.manual_seed(0)
    layer = KANLinear(3, 3)
    network = nn.ModuleDict({"first": nn.Sequential(layer, nn.Tanh()), "second": layer, "third": KANLinear(3, 2)})
    form = spline_form(network, kind, **KINDS[kind])  # type: ignore[arg-type]
    assert not any(isinstance(module, SplineLayer) for module in form.modules())
    assert form["first"][0] is form["second"]
    x = torch.randn(5, 3)
    torch.testing.assert_close(form["second"](x), spline_form(layer, kind, **KINDS[kind])(x))  # type: ignore[arg-type]
    assert isinstance(network["second"], KANLinear)


@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
def test_a_table_has_a_slope_on_its_entries_too(tail: Any) -> None:
    """On a binary fraction of a unit every entry is hit exactly; the slope is that of the chord behind it."""
    layer = KANLinear(1, 1, grid_size=4, grid_range=(-2, 2), tail=tail).double()
    layer.coefficients.normal_()
    form = spline_form(layer, "table", entries=17)
    x = (torch.arange(-8, 8, dtype=torch.float64) / 4)[:, None]
    chords = (form(x + 0.125) - form(x)) / 0.125
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(form(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(slope, chords)


def test_ranks_by_name_are_wanted_for_every_layer() -> None:
    network = nn.Sequential(KANLinear(3, 3), KANLinear(3, 4))
    with pytest.raises(ConfigError, match="rank: expected one for each of 0, 1, got none for 1"):
        spline_form(network, "low_rank", rank={"0": 2})
    form = spline_form(network, "low_rank", rank={"0": 2, "1": 3})
    assert [child.lift.count for child in cast(Any, form)] == [2, 3]


def test_a_form_without_values_is_printed() -> None:
    form = spline_form(KANLinear(3, 2), "table")
    assert f"bound={float(form.bound.max()):.3g}" in repr(form)
    assert "bound=?" in repr(form.to("meta"))


@pytest.mark.parametrize("kind", KINDS)
def test_forms_are_the_same_whatever_the_default_device_is(kind: str) -> None:
    layer, x = made("conv", dtype=torch.float32), torch.randn(2, 4, 9, 7)
    expected = spline_form(layer, kind, **KINDS[kind])  # type: ignore[arg-type]
    with torch.device("meta"):
        form = spline_form(layer, kind, **KINDS[kind])  # type: ignore[arg-type]
    assert torch.equal(form(x), expected(x))
    assert torch.equal(form.bound, expected.bound)
