import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framework.errors import ConfigError, DataError
from framework.nn import (
    ExpertLinear,
    Segment,
    SineLayer,
    clip_segments,
    coordinate_grid,
    nested_sort,
    siren_bound,
    tile_index,
)

quick = settings(max_examples=25, deadline=None)
KODAK = [(512, 768), (768, 512)]


def masked_loop(layer: ExpertLinear, x: Tensor, index: Tensor) -> Tensor:
    """The published snippet: select, multiply, put back."""
    out = x.new_zeros(len(x), layer.out_features)
    for e in range(layer.num_experts):
        bias = {"shared": layer.bias, "none": 0}.get(layer.bias_kind, layer.bias[e] if layer.bias is not None else 0)
        out[index == e] = x[index == e] @ layer.weight[e].T + bias
    return out


def padded(layer: ExpertLinear, x: Tensor, index: Tensor) -> Tensor:
    """One batched product over blocks as long as the largest expert's."""
    rows = [(index == e).nonzero().flatten() for e in range(layer.num_experts)]
    blocks = torch.nn.utils.rnn.pad_sequence([x[r] for r in rows], batch_first=True)
    products = torch.bmm(blocks, layer.weight.transpose(1, 2)) + layer.bias
    out = x.new_zeros(len(x), layer.out_features)
    for r, product in zip(rows, products, strict=True):
        out[r] = product[: len(r)]
    return out


def one_hot(layer: ExpertLinear, x: Tensor, index: Tensor) -> Tensor:
    """All experts on all rows, then a selection."""
    everything = torch.einsum("noi,ri->rno", layer.weight, x)
    chosen = torch.nn.functional.one_hot(index, layer.num_experts).to(x.dtype)
    return torch.einsum("rno,rn->ro", everything, chosen) + layer.bias


def weight_gather(layer: ExpertLinear, x: Tensor, index: Tensor) -> Tensor:
    """A weight matrix per row."""
    return torch.einsum("roi,ri->ro", layer.weight[index], x) + layer.bias


@pytest.mark.parametrize("naive", [masked_loop, padded, one_hot, weight_gather])
def test_equals_the_naive_formulations_with_gradients(naive) -> None:
    torch.manual_seed(0)
    layer = ExpertLinear(5, 7, 4).double()
    x = torch.randn(60, 5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (60,))
    upstream = torch.randn(60, 7, dtype=torch.float64)
    wrt = [x, layer.weight, layer.bias]
    expected = naive(layer, x, index)
    torch.testing.assert_close(layer(x, index), expected, rtol=0, atol=1e-13)
    ours = torch.autograd.grad(layer(x, index), wrt, upstream)
    for a, b in zip(ours, torch.autograd.grad(expected, wrt, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@quick
@given(
    index=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    bias=st.sampled_from(["shared", "per_expert", "none"]),
    gain=st.sampled_from([1.0, 30.0]),
)
def test_any_shares_empty_experts_too(index: list[int], bias: str, gain: float) -> None:
    torch.manual_seed(len(index))
    layer = ExpertLinear(3, 4, 4, bias=bias).double()  # type: ignore[arg-type]
    x, experts = torch.randn(len(index), 3, dtype=torch.float64), torch.tensor(index)
    torch.testing.assert_close(layer(x, experts, gain=gain), gain * masked_loop(layer, x, experts))


@pytest.mark.parametrize("bias", ["shared", "per_expert", "none"])
def test_gradcheck(bias) -> None:
    torch.manual_seed(0)
    layer = ExpertLinear(2, 3, 3, bias=bias, num_networks=2).double()
    index = torch.tensor([[0, 2, 0, 2, 2], [1, 1, 1, 1, 1]])  # expert 1, then 0 and 2, are empty
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, index))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))


def test_networks_side_by_side_equal_networks_alone_bit_by_bit() -> None:
    torch.manual_seed(0)
    both = ExpertLinear(6, 8, 4, num_networks=2)
    x, index = torch.randn(2, 50, 6), torch.randint(0, 4, (2, 50))
    together = both(x, index)
    for b in range(2):
        alone = ExpertLinear(6, 8, 4)
        alone.load_state_dict({k: v[b] for k, v in both.state_dict().items()})
        assert torch.equal(alone(x[b], index[b]), together[b])


@quick
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=60))
def test_nested_sort_makes_every_layer_contiguous(experts: list[tuple[int, ...]]) -> None:
    table = torch.tensor(experts)
    sort = nested_sort(list(table.T))
    assert sorted(sort.order.tolist()) == list(range(len(experts)))
    assert torch.equal(sort.order[sort.inverse()], torch.arange(len(experts)))
    assert [tuple(row) for row in table[sort.order].flip(1).tolist()] == sorted(e[::-1] for e in experts)
    for level, runs in enumerate(sort.segments):
        assert len(runs) <= 4 ** (4 - level)
        assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
        assert runs[-1].stop == len(experts)
        for run in runs:
            assert (table[sort.order[run.start : run.stop], level] == run.expert).all()


def test_sorted_network_equals_the_unsorted_one_layer_by_layer() -> None:
    torch.manual_seed(0)
    coords = coordinate_grid(16, 24).flatten(0, 1)
    index = [tile_index(coords, a) for a in (4, 2, 1)] + [torch.randint(0, 4, (16 * 24,))]
    layers = [SineLayer(8 if level else 2, 8, 4, first=level == 0) for level in range(4)]
    order, segments = nested_sort(index)
    slow, fast = coords, coords[order]
    for layer, e, runs in zip(layers, index, segments, strict=True):
        slow, fast = torch.sin(30 * masked_loop(layer.linear, slow, e)), layer(fast, segments=runs)
    torch.testing.assert_close(fast, slow[order], rtol=0, atol=2e-5)  # sines of 30 x float32 sums


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 30), st.integers(1, 30))
def test_clipped_segments_are_the_runs_of_a_part(lengths: list[int], start: int, length: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    segments = nested_sort([labels]).segments[0]
    stop = min(start + length, len(labels))
    part = labels[start:stop].tolist()
    assert [e for s in clip_segments(segments, start, stop) for e in [s.expert] * (s.stop - s.start)] == part


# ---------------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", KODAK)
@pytest.mark.parametrize(
    ("multiplier", "tile"), [(128, (2, 3)), (8, (32, 48)), (4, (64, 96)), (2, (128, 192)), (1, (256, 384))]
)
def test_tiles_of_the_paper_are_exact_in_both_orientations(
    size: tuple[int, int], multiplier: int, tile: tuple[int, int]
) -> None:
    rows, columns = tile if size[0] < size[1] else tile[::-1]
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    # tile 0 begins at -1, where the coordinate -A is even for every A but 1
    shift = multiplier % 2
    expected = 2 * ((y // rows + shift) % 2) + (x // columns + shift) % 2
    index = tile_index(coordinate_grid(*size), multiplier)
    assert torch.equal(index, expected)
    assert torch.bincount(index.flatten()).tolist() == [size[0] * size[1] // 4] * 4


def test_inclusive_coordinates_leave_the_last_pixel_in_a_tile_of_its_own() -> None:
    line = tile_index(coordinate_grid(512, 768, "inclusive"), 2)[0]
    changes = (line[1:] != line[:-1]).nonzero().flatten()
    assert len(changes) + 1 == 2 * 2 + 1
    assert changes[-1] == 766


@quick
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.1, 200), st.floats(-2, 2))
def test_tile_index_is_the_written_out_formula(y: float, x: float, a: float, b: float) -> None:
    import math

    coords = torch.tensor([y, x], dtype=torch.float64)
    row, column = (math.floor(a * c + b) % 2 for c in coords.tolist())
    assert tile_index(coords, a, b).item() == 2 * row + column


def test_negative_tiles_use_the_non_negative_modulo() -> None:
    assert tile_index(torch.tensor([-0.1, 0.1]), 1).item() == 2


# ---------------------------------------------------------------------- sine layers


@pytest.mark.parametrize(("first", "bound"), [(True, 1 / 64), (False, (6 / 64) ** 0.5 / 30)])
def test_initial_values_fill_the_published_ranges(first: bool, bound: float) -> None:
    torch.manual_seed(0)
    layer = SineLayer(64, 512, 4, first=first).linear
    assert siren_bound(64, 30, first) == pytest.approx(bound)
    for expert in layer.weight:
        assert 0.99 * bound < expert.abs().max() <= bound
        assert expert.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert 0.95 / 8 < layer.bias.abs().max() <= 1 / 8


def test_sine_layer_is_sin_of_w0_times_a_linear_map() -> None:
    layer = SineLayer(3, 4, w0=7.0).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    expected = torch.sin(7.0 * torch.nn.functional.linear(x, layer.linear.weight[0], layer.linear.bias))
    torch.testing.assert_close(layer(x), expected)


def test_the_first_layer_keeps_float32_under_autocast() -> None:
    first, second = SineLayer(2, 8, 4, first=True), SineLayer(8, 8, 4)
    coords = coordinate_grid(8, 8).flatten(0, 1)
    index = tile_index(coords, 2)
    with torch.autocast("cpu", torch.bfloat16):
        h = first(coords, index)
        z = second(h, index)
    assert torch.equal(h, first(coords, index))
    assert z.dtype == torch.bfloat16
    # inputs, weights and result are rounded once each, by half a unit in the last of 8 bits
    largest = 30 * (8 * second.linear.weight.abs().max() + second.linear.bias.abs().max())
    torch.testing.assert_close(z.float(), second(h, index), rtol=0, atol=3 * 2**-9 * largest.item())


def test_pixel_centres_and_inclusive_coordinates() -> None:
    assert coordinate_grid(1, 4)[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert coordinate_grid(2, 3, "inclusive")[..., 1].tolist() == [[-1, 0, 1]] * 2
    assert coordinate_grid(2, 3, "inclusive")[..., 0].tolist() == [[-1] * 3, [1] * 3]


@pytest.mark.parametrize("networks", [None, 2])
@pytest.mark.parametrize("bias", ["shared", "per_expert", "none"])
def test_no_rows_have_no_runs_under_transforms_too(networks, bias) -> None:
    layer = ExpertLinear(3, 2, 4, bias, num_networks=networks)
    batch = () if networks is None else (networks,)
    runs = [] if networks is None else [[]] * networks
    x = torch.zeros(*batch, 0, 3)
    assert layer(x, segments=runs).shape == (*batch, 0, 2)
    assert torch.func.vmap(lambda z: layer(z, segments=runs))(x[None]).shape == (1, *batch, 0, 2)
    torch._dynamo.reset()
    out = torch.compile(lambda z: layer(z, segments=runs), backend="aot_eager", fullgraph=True)(x)
    assert out.shape == (*batch, 0, 2)
    out.sum().backward()
    assert all(not p.grad.any() for p in layer.parameters())


def test_a_generator_draws_on_its_own_device_whatever_the_default() -> None:
    layers = [SineLayer(3, 4, 2, generators=[torch.Generator().manual_seed(0)], device="cpu") for _ in range(2)]
    with torch.device("meta"):
        layers[1].reset_parameters([torch.Generator("cpu").manual_seed(0)])
        SineLayer(3, 4, generators=[torch.Generator("cpu")])
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------- bad input


def test_bad_input_is_named() -> None:
    layer = ExpertLinear(3, 4, 2)
    x = torch.zeros(5, 3)
    with pytest.raises(DataError, match=r"expected an input \(N, in_features=3\), got \(5, 2\)"):
        layer(torch.zeros(5, 2))
    with pytest.raises(ConfigError, match="with 2 experts give index or segments"):
        layer(x)
    with pytest.raises(ConfigError, match="not both"):
        layer(x, torch.zeros(5, dtype=torch.int64), [Segment(0, 5, 0)])
    with pytest.raises(DataError, match=r"expected experts 0\.\.1, got 2"):
        layer(x, torch.full((5,), 2))
    with pytest.raises(DataError, match=r"expected an index \(1, 5\), got \(1, 4\)"):
        layer(x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"index: expected whole numbers of experts 0\.\.1, got torch.float32"):
        layer(x, torch.zeros(5))
    with pytest.raises(DataError, match="segments cover 4 rows of 5"):
        layer(x, segments=[Segment(0, 4, 0)])
    with pytest.raises(DataError, match="do not follow row 2"):
        layer(x, segments=[Segment(0, 2, 0), Segment(3, 5, 1)])
    with pytest.raises(DataError, match="expected segments of 1 networks, got 2"):
        ExpertLinear(3, 4, 2, num_networks=1)(x[None], segments=[[], []])
    with pytest.raises(ConfigError, match="num_experts: expected at least 1, got 0"):
        ExpertLinear(3, 4, 0)
    with pytest.raises(ConfigError, match="bias: expected shared"):
        ExpertLinear(3, 4, 2, bias="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiplier: expected a number above 0"):
        tile_index(torch.zeros(1, 2), 0)
    with pytest.raises(DataError, match=r"expected coordinates \(\.\.\., 2\)"):
        tile_index(torch.zeros(1, 3), 1)
    with pytest.raises(DataError, match="nested_sort: expected indices"):
        nested_sort([])
    for networks, generators in ((2, 1), (None, 2)):
        with pytest.raises(
            ConfigError, match=rf"generators: expected one for each of {networks or 1} .*, got {generators}"
        ):
            SineLayer(2, 2, num_networks=networks, generators=[torch.Generator()] * generators)
    with pytest.raises(ConfigError, match="w0: expected a number above 0"):
        SineLayer(2, 2, w0=0)
    with pytest.raises(ConfigError, match="grid: expected pixel_center or inclusive"):
        coordinate_grid(2, 2, "corner")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="inclusive needs at least 2"):
        coordinate_grid(1, 2, "inclusive")
