"""One table: every layer under every torch habit. What a layer cannot do it says; nothing is wrong in silence."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import framework.nn
from framework.errors import ConfigError, DataError
from framework.nn import (
    CrossMoments,
    ExpertLinear,
    Finola,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    SplineMoments,
    dct_top,
    dct_zonal,
    equal_bins,
    kmeans_colours,
    multi_otsu,
    observe,
    tile_index,
)
from tests.helpers.layers import LAYERS, Chosen, built

MADE_WITH_DEVICE = [name for name in LAYERS if name != "FoldedKOrigins"]
SPLINES = [name for name in LAYERS if name.startswith("KAN")]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


# ---------------------------------------------------------------------- what follows every operation


@pytest.mark.parametrize("name", LAYERS)
def test_exports_for_any_batch_and_size(name) -> None:
    layer, x, other = built(name)
    sizes = {0: torch.export.Dim.DYNAMIC}
    if x.ndim == 4:
        sizes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
    for z in (x, other, other[:1]):
        close(program(z), layer(z))


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_without_a_graph_break(name) -> None:
    layer, x, other = built(name)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for z in (x, other):
        z.requires_grad_()
        out = compiled(z)
        close(out, layer(z))
        mine, theirs = (torch.autograd.grad(y.square().sum(), z)[0] for y in (out, layer(z)))
        close(mine, theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_traces_to_what_holds_at_other_values_and_batches(name) -> None:
    layer, x, other = built(name)
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    close(traced(-x), layer(-x))
    if name.startswith("FoldedKOrigins") or x.ndim == 2:
        close(traced(other), layer(other))


@pytest.mark.parametrize("name", LAYERS)
def test_function_transforms(name) -> None:
    layer, x, _ = built(name)
    stacked = torch.stack([x, -x])
    close(torch.func.vmap(layer)(stacked), torch.stack([layer(x), layer(-x)]))
    small = x[:1]
    close(torch.func.jacrev(layer)(small), torch.autograd.functional.jacobian(layer, small))
    states = [{n: factor * p.detach() for n, p in layer.named_parameters()} for factor in (1.0, 1.1)]
    both = {n: torch.stack([s[n] for s in states]) for n in states[0]}

    def with_parameters(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, p, (x,))

    many = torch.func.vmap(with_parameters)(both)
    close(many[1], torch.func.functional_call(layer, states[1], (x,)))


def summed(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x).square().sum()


@pytest.mark.parametrize("name", LAYERS)
def test_many_gradients_at_once(name) -> None:
    layer, x, _ = built(name, **({} if name == "FoldedKOrigins" else {"dtype": torch.float64}))
    layer, x = layer.double(), x[:1].double()
    one_by_one, together = (torch.autograd.functional.jacobian(layer, x, vectorize=v) for v in (False, True))
    torch.testing.assert_close(together, one_by_one, rtol=1e-10, atol=1e-10)
    out = layer(x)
    parameters = list(layer.parameters())
    basis = torch.randn(3, *out.shape, dtype=x.dtype)
    many = torch.autograd.grad(out, parameters, basis, is_grads_batched=True, retain_graph=True, allow_unused=True)
    for i, cotangent in enumerate(basis):
        one = torch.autograd.grad(out, parameters, cotangent, retain_graph=True, allow_unused=True)
        for a, b in zip(many, one, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-10)
    torch.manual_seed(1)
    small = x if x.ndim == 2 else x[..., :3, :4]
    one_by_one, together = (torch.autograd.functional.hessian(summed(layer), small, vectorize=v) for v in (False, True))
    torch.testing.assert_close(together, one_by_one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_of_many_gradients(name) -> None:
    layer, x, _ = built(name)
    layer = layer.double()
    small = (x[:1] if x.ndim == 2 else x[:1, :, :3, :4]).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, small, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(layer, small, check_batched_grad=True)


# ---------------------------------------------------------------------- devices, memory, sizes


@pytest.mark.parametrize("name", MADE_WITH_DEVICE)
def test_a_layer_made_on_the_meta_device_starts_like_any_other(name) -> None:
    layer, x, _ = built(name)
    fresh = layer(x)
    with torch.device("meta"):
        empty = LAYERS[name][0]()
    again = LAYERS[name][0](device="meta")
    for late in (empty, again):
        assert all(t.is_meta for t in [*late.parameters(), *late.buffers()])
        late.to_empty(device="cpu")
        for tensor in [*late.parameters(), *late.buffers()]:
            tensor.data.fill_(77)
        for module in (layer, late):
            torch.manual_seed(0)
            module.reset_parameters()
        for (key, a), b in zip(layer.state_dict().items(), late.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)
        close(late.eval()(x), layer(x))
        assert 0.1 < float(layer(x).std() / fresh.std()) < 10


@pytest.fixture
def nan_where_nothing_was_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` gives
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_where_nothing_was_written")
@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_state_is_all_that_a_layer_without_values_needs(name, assign) -> None:
    layer, x, _ = built(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    expected = layer(x)
    with torch.device("meta"):
        made = LAYERS[name][0]().eval()
    for empty in (made, copy.deepcopy(layer).to("meta")):
        if not assign:
            empty.to_empty(device=x.device)
        empty.load_state_dict(layer.state_dict(), assign=assign)
        assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
        torch.testing.assert_close(empty(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MADE_WITH_DEVICE)
def test_a_layer_is_made_in_a_dtype(name) -> None:
    layer, x, _ = built(name, dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in layer.parameters())
    assert layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", LAYERS)
def test_channels_last(name) -> None:
    layer, x, _ = built(name)
    network = nn.Sequential(copy.deepcopy(layer))
    network.to(memory_format=torch.channels_last)
    z = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    close(network(z), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_gives_an_empty_answer_and_zero_gradients(name) -> None:
    layer, x, _ = built(name)
    nothing = x[:0].requires_grad_()
    out = layer(nothing)
    assert out.shape == (0, *layer(x).shape[1:])
    out.sum().backward()
    assert nothing.grad is not None
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", LAYERS)
def test_has_a_weight_and_a_readable_form(name) -> None:
    layer, _, _ = built(name)
    layer = layer.layer if isinstance(layer, Chosen) else layer
    assert isinstance(layer.weight, Tensor)
    assert len(repr(layer)) > len(type(layer).__name__) + 8


def test_a_spline_layer_goes_by_linears_names() -> None:
    layer = KANLinear(in_features=3, out_features=2, bias=True)
    assert (layer.in_features, layer.out_features, layer.in_channels, layer.out_channels) == (3, 2, 3, 2)
    assert "in_features=3, out_features=2, bias=True, grid=5 of 5 on (-3, 3)" in repr(layer)
    for name in ("choose_edges", "edge_scores", "map_moments"):
        assert name in framework.nn.__all__


def test_importing_the_layers_imports_nothing_heavy() -> None:
    code = "import sys, framework.nn; print([m for m in ('skimage', 'lightning', 'timm') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---------------------------------------------------------------------- edges of what is allowed


def test_values_at_the_edge_are_right_or_named() -> None:
    layer = ExpertLinear(2, 3, 2)
    with pytest.raises(DataError, match=r"got -1\.\.1"):
        layer(torch.randn(3, 2), torch.tensor([0, -1, 1]))
    with pytest.raises(ConfigError, match="grid_size"):
        KANLinear(2, 2).refit_grid(grid_size=0)
    with pytest.raises(ConfigError, match="grid_size"):
        CrossMoments(KANLinear(2, 2), grid_size=0)
    with pytest.raises(DataError, match="tile_index"):
        tile_index(torch.tensor([[0.0, float("nan")]]), 2.0)


def test_tensors_are_taken_where_arrays_are() -> None:
    grey = torch.randint(0, 256, (8, 9), dtype=torch.uint8)
    rgb = torch.randint(0, 256, (8, 9, 3), dtype=torch.uint8)
    for cut in (multi_otsu, equal_bins):
        assert all((a == b).all() for a, b in zip(cut(grey), cut(grey.numpy()), strict=True))
    assert (kmeans_colours(rgb) == kmeans_colours(rgb.numpy())).all()
    images = torch.rand(2, 3, 8, 8)
    for code in (dct_zonal, dct_top):
        assert (code(images, 12) == code(images.numpy(), 12)).all()


# ---------------------------------------------------------------------- splines: moments, pruning, refitting


@pytest.mark.parametrize("base", [None, "silu"])
@pytest.mark.parametrize("name", ["KANLinear", "KANConv2d", "KANConvTranspose2d"])
def test_pruning_with_moments_keeps_the_mean_of_every_output(name, base) -> None:
    torch.manual_seed(0)
    made = {
        "KANLinear": (KANLinear(4, 3, base=base), torch.randn(500, 4)),
        # one value a picture: every kernel position sees the same
        "KANConv2d": (KANConv2d(4, 3, 3, base=base), torch.randn(500, 4, 1, 1).expand(-1, -1, 4, 4)),
        "KANConvTranspose2d": (KANConvTranspose2d(4, 3, 1, base=base), torch.randn(20, 4, 8, 8)),
    }
    layer, x = made[name]
    with torch.no_grad():
        layer.coefficients[: layer.basis] += torch.randn(layer.basis, *layer.mask.shape)
    with observe({"layer": layer}) as moments:
        before = layer(x)
    keep = torch.ones_like(layer.live)
    keep[:, 1] = False
    layer.prune_edges(keep, moments["layer"])
    axes = [0] if x.ndim == 2 else [0, 2, 3]
    torch.testing.assert_close(layer(x).mean(axes), before.mean(axes), rtol=1e-2, atol=2e-2)
    assert (layer.edge_strength(moments["layer"])[:, 1] == 0).all()


@pytest.mark.parametrize("removed", ["a position of every output", "a whole output"])
def test_pruning_keeps_the_mean_where_no_edge_stays(removed) -> None:
    """The mean of a position without edges goes to another one, that of an output without edges to its bias."""
    torch.manual_seed(0)
    layer, x = KANConv2d(4, 3, 3, bias=True), torch.randn(500, 4, 1, 1).expand(-1, -1, 4, 4)
    with torch.no_grad():
        layer.coefficients[: layer.basis] += torch.randn(layer.basis, *layer.mask.shape)
    with observe({"layer": layer}) as moments:
        before = layer(x)
    keep = torch.ones_like(layer.live)
    if removed == "a whole output":
        keep[0] = False
    else:
        keep[:, :, 0, 2] = False
    layer.prune_edges(keep, moments["layer"])
    torch.testing.assert_close(layer(x).mean([0, 2, 3]), before.mean([0, 2, 3]), rtol=1e-2, atol=2e-2)
    assert bool(layer.live.flatten(1).any(1).all()) == (removed != "a whole output")


@pytest.mark.parametrize("name", SPLINES)
def test_moments_of_another_grid_are_refused(name) -> None:
    layer, x, _ = built(name)
    with observe({"layer": layer}) as moments:
        layer(x)
    layer.refit_grid(grid_range=(-2.0, 2.5))
    for use in (layer.edge_strength, lambda m: layer.prune_edges(layer.live, m), lambda m: m.add(layer, x)):
        with pytest.raises(ConfigError, match="collect them again"):
            use(moments["layer"])
    assert isinstance(moments["layer"], SplineMoments)


@pytest.mark.parametrize("name", SPLINES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_refitting_is_finite_whatever_the_data(name, scale) -> None:
    layer, x, _ = built(name)
    inside = torch.linspace(-3, 3, 7)
    before = layer.edge_values(inside)
    cross = CrossMoments(layer, grid_size=4)
    cross.add(scale * x)
    cross.add(scale * x + 10 * scale)
    assert cross.refit().isfinite().all()
    assert layer(x).isfinite().all()
    if scale == 1.0:  # a line at the start, which any grid holds
        torch.testing.assert_close(layer.edge_values(inside), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SPLINES)
@pytest.mark.parametrize("change", [{"grid_range": (-1.0, 1.0)}, {"grid_size": 4}], ids=["range", "cells"])
def test_cross_moments_are_of_one_grid(name, change) -> None:
    layer, x, _ = built(name)
    cross = CrossMoments(layer, grid_size=4)
    cross.add(x)
    layer.refit_grid(**change)
    for use in (cross.refit, lambda: cross.add(x)):
        with pytest.raises(ConfigError, match="make CrossMoments anew after a grid change"):
            use()


# ---------------------------------------------------------------------- without values


@pytest.mark.parametrize("name", LAYERS)
def test_made_and_run_with_torch_s_fake_tensors(name) -> None:
    layer, x, _ = built(name)
    expected = layer(x)
    with FakeTensorMode():
        fake, y, _ = built(name)
        assert fake(y).shape == expected.shape
    torch.testing.assert_close(built(name)[0](x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_made_and_run_on_the_meta_device(name) -> None:
    layer, x, _ = built(name)
    there = LAYERS[name][0](device="meta")(x.to("meta"))
    assert there.is_meta
    assert there.shape == layer(x).shape


# ---------------------------------------------------------------------- what torch's counter sees


def test_the_flop_counter_sees_every_product() -> None:
    def counted(run: Callable[[], Tensor]) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:
            out = run()
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    rows = torch.randn(6, 8, requires_grad=True)
    index = torch.tensor([0, 1, 0, 1, 1, 0])
    product = 2 * 6 * 8 * 5
    assert counted(lambda: ExpertLinear(8, 5, 2)(rows, index)) == (product, 2 * product)
    q = torch.randn(2, 8, requires_grad=True)
    height, width, channels = 5, 7, 8
    line = {"row_first": (width - 1) + width * (height - 1), "column_first": (height - 1) + height * (width - 1)}
    for scheme in ("row_first", "column_first", "separable"):
        cells = sum(line.values()) if scheme == "separable" else line[scheme]
        steps = 2 * 2 * channels * channels * cells
        assert counted(lambda s=scheme: Finola(channels, s)(q, (height, width))) == (steps, 2 * steps)
