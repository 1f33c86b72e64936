"""The rollout against the cell loop written out from the equations; invariances, growth, precision, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framework.errors import ConfigError
from framework.nn import Finola

quick = settings(max_examples=20, deadline=None)
SIZES = [((8, 8), None), ((7, 9), None), ((6, 10), (0, 0)), ((5, 5), (1, 3)), ((16, 16), None)]
SCHEMES = ["separable", "row_first", "column_first", "wavefront"]


def cell_loop(
    q: Tensor, matrices: Tensor, size, start, scheme: str, normalize: bool = True, eps: float = 1e-5
) -> Tensor:
    """The map of q (B, C), cell by cell, from the equations of sections 2 and 3."""
    (height, width), (row, col) = size, start
    right, left, down, up = matrices

    def step(z: Tensor, matrix: Tensor) -> Tensor:
        if not normalize:
            return z + z @ matrix.T
        centred = z - z.mean(-1, keepdim=True)
        return z + (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()) @ matrix.T

    def to_row(z: Tensor, r: int) -> Tensor:
        return step(z, down if r > row else up)

    def to_col(z: Tensor, c: int) -> Tensor:
        return step(z, right if c > col else left)

    def towards(i: int, origin: int) -> int:
        return i - 1 if i > origin else i + 1

    def outwards(count: int, origin: int) -> list[int]:
        return [*range(origin + 1, count), *range(origin - 1, -1, -1)]

    def stacked(cells: dict) -> Tensor:
        return torch.stack([torch.stack([cells[r, c] for c in range(width)], -1) for r in range(height)], -2)

    def one_route(row_first: bool) -> dict:
        cells = {(row, col): q}
        if row_first:
            for c in outwards(width, col):
                cells[row, c] = to_col(cells[row, towards(c, col)], c)
            for c in range(width):
                for r in outwards(height, row):
                    cells[r, c] = to_row(cells[towards(r, row), c], r)
        else:
            for r in outwards(height, row):
                cells[r, col] = to_row(cells[towards(r, row), col], r)
            for r in range(height):
                for c in outwards(width, col):
                    cells[r, c] = to_col(cells[r, towards(c, col)], c)
        return cells

    if scheme == "wavefront":
        cells = {(row, col): q}
        for r, c in sorted(((r, c) for r in range(height) for c in range(width)),
                           key=lambda rc: abs(rc[0] - row) + abs(rc[1] - col))[1:]:  # fmt: skip
            parents = []
            if c != col:
                parents.append(to_col(cells[r, towards(c, col)], c))
            if r != row:
                parents.append(to_row(cells[towards(r, row), c], r))
            cells[r, c] = torch.stack(parents).mean(0)
        return stacked(cells)
    routes = {"separable": (True, False), "row_first": (True,), "column_first": (False,)}[scheme]
    return torch.stack([stacked(one_route(route)) for route in routes]).mean(0)


def centre(size) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


def layer_and_vector(channels=6, batch=2, seed=0, paths=None, **kwargs) -> tuple[Finola, Tensor]:
    torch.manual_seed(seed)
    shape = (batch, channels) if paths is None else (batch, paths, channels)
    return Finola(channels, **kwargs).double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gradients(grown: Tensor, layer: Finola, q: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.cos(torch.arange(grown.numel(), dtype=grown.dtype)).view(grown.shape)
    of_q, of_weight = torch.autograd.grad((grown * weights).sum(), [q, layer.weight])
    return of_q, of_weight


def assert_equal_to_cell_loop(layer: Finola, q: Tensor, size, start) -> None:
    grown = layer(q, size, start)
    reference = cell_loop(q, layer.directional(), size, start or centre(size), layer.scheme, layer.normalize)
    assert grown.shape == (len(q), layer.channels, *size)
    assert (grown - reference).abs().max() <= 1e-12
    for ours, theirs in zip(gradients(grown, layer, q), gradients(reference, layer, q), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize(("size", "start"), SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_map_and_gradients_are_those_of_the_cell_loop(scheme, size, start) -> None:
    assert_equal_to_cell_loop(*layer_and_vector(scheme=scheme), size, start)


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
def test_map_and_gradients_are_those_of_the_cell_loop_at_64(scheme) -> None:
    assert_equal_to_cell_loop(*layer_and_vector(scheme=scheme, channels=16, batch=1), (64, 64), None)


@pytest.mark.parametrize("scheme", SCHEMES)
@quick
@given(data=st.data(), size=st.tuples(st.integers(1, 6), st.integers(1, 6)), matrices=st.sampled_from([1, 2, 4]),
       normalize=st.booleans())  # fmt: skip
def test_any_size_start_and_tying_is_the_cell_loop(scheme, data, size, matrices, normalize) -> None:
    start = data.draw(st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1)))
    layer, q = layer_and_vector(scheme=scheme, matrices=matrices, normalize=normalize, channels=3)
    grown = layer(q, size, start)
    reference = cell_loop(q, layer.directional(), size, start, scheme, normalize)
    torch.testing.assert_close(grown, reference, rtol=1e-12, atol=1e-12)


def test_the_test_tells_a_perturbed_matrix_apart() -> None:
    layer, q = layer_and_vector()
    reference = cell_loop(q, layer.directional(), (8, 8), (4, 4), "separable")
    with torch.no_grad():
        layer.weight[0] += 1e-6 * torch.randn_like(layer.weight[0])
    assert (layer(q, (8, 8)) - reference).abs().max() > 1e-7


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradcheck(scheme, checkpoint) -> None:
    layer, q = layer_and_vector(scheme=scheme, channels=3, batch=1, paths=2, checkpoint=checkpoint)
    assert torch.autograd.gradcheck(lambda q, w: _with_weight(layer, w)(q, (3, 4)), (q, layer.weight))


def _with_weight(layer: Finola, weight: Tensor):
    return lambda q, size: torch.func.functional_call(layer, {"weight": weight}, (q, size))


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_paths_are_summed_with_shared_matrices(scheme, checkpoint) -> None:
    layer, q = layer_and_vector(scheme=scheme, paths=3, checkpoint=checkpoint)
    each = sum(cell_loop(q[:, i], layer.directional(), (5, 6), (2, 3), scheme) for i in range(3))
    torch.testing.assert_close(layer(q, (5, 6)), each, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(layer(q, (5, 6)), layer, q), gradients(each, layer, q), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
def test_a_second_backward_through_a_retained_graph_is_the_first_again(scheme) -> None:
    layer, q = layer_and_vector(scheme=scheme)
    total = layer(q, (5, 5)).square().sum()
    first = torch.autograd.grad(total, [q, layer.weight], retain_graph=True)
    second = torch.autograd.grad(total, [q, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
def test_the_null_direction_moves_no_map(scheme) -> None:
    layer, q = layer_and_vector(scheme=scheme, channels=16)
    before = layer(q, (16, 16))
    torch.manual_seed(1)
    with torch.no_grad():
        layer.weight.add_(5 * torch.randn(4, 16, 1, dtype=torch.float64))  # u 1^T for every matrix
    after = layer(q, (16, 16))
    assert (after - before).abs().max() < 1e-11
    with torch.no_grad():
        layer.weight.add_(0.01 * torch.randn(4, 1, 16, dtype=torch.float64))  # 1 u^T is no null direction
    assert (layer(q, (16, 16)) - before).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
def test_the_matrices_do_not_see_scale_and_mean_of_the_state(scheme) -> None:
    """A zhat(a z + b 1) = A zhat(z): steps from a scaled and shifted vector are the same steps."""
    layer, q = layer_and_vector(scheme=scheme, channels=8)
    step = layer(q, (1, 3), (0, 1))[:, :, 0, 2] - q
    moved = 50 * q + 7
    far = layer(moved, (1, 3), (0, 1))[:, :, 0, 2] - moved
    torch.testing.assert_close(far, step, rtol=1e-4, atol=1e-4)  # equal up to eps


def test_wavefront_is_another_function_than_the_average_of_two_maps() -> None:
    """Section 3: with random matrices (s = 0.3, C = 128, 64 x 64) the two maps differ by 60 % in relative L2 norm."""
    torch.manual_seed(0)
    q, separable, wavefront = torch.randn(1, 128), Finola(128), Finola(128, "wavefront")
    wavefront.load_state_dict(separable.state_dict())
    with torch.no_grad():
        a, b = separable(q, (64, 64)), wavefront(q, (64, 64))
    assert 0.4 < float((a - b).norm() / a.norm()) < 0.8


@pytest.mark.parametrize(
    ("std", "corner", "without"),
    [(0.02, 14, 15), (0.1, 39, 6.6e2), (0.3, 104, 2.9e7), (1.0, 339, 5.7e19), (3.0, 965, math.inf)],
)
def test_normalisation_turns_exponential_growth_into_linear(std, corner, without) -> None:
    """The table of section 11 (C = 128, 64 x 64): norm of the corner, about 11 at the centre; with and without norm."""
    torch.manual_seed(0)
    q = torch.randn(4, 128)
    layer = Finola(128, init_std=std)
    plain = Finola(128, init_std=std, normalize=False)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        grown, free = layer(q, (64, 64)), plain(q, (64, 64))
    assert float(grown[:, :, 32, 32].norm(dim=1).mean()) == pytest.approx(math.sqrt(128), rel=0.1)
    assert float(grown[:, :, 0, 0].norm(dim=1).mean()) == pytest.approx(corner, rel=0.25)
    blown = float(free[:, :, 0, 0].double().norm(dim=1).mean())
    if math.isinf(without):
        assert not blown < 1e37  # at the end of float32's range
    else:
        assert abs(math.log10(blown / without)) < 0.15 + 0.1 * math.log10(without)


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
@pytest.mark.parametrize("std", [0.02, 0.1, 0.3, 1.0])
def test_bf16_products_stay_within_half_a_percent_of_float32(scheme, std) -> None:
    torch.manual_seed(0)
    q, layer = torch.randn(2, 128), Finola(128, scheme, init_std=std)
    with torch.no_grad():
        exact = layer(q, (64, 64))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(q, (64, 64))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert float((mixed - exact).norm() / exact.norm()) < 0.005


def test_bf16_gradients_are_near_those_of_float32() -> None:
    torch.manual_seed(0)
    layer, q = Finola(64), torch.randn(2, 64, requires_grad=True)
    exact = gradients(layer(q, (16, 16)), layer, q)
    with torch.autocast("cpu", torch.bfloat16):
        grown = layer(q, (16, 16))
    for mixed, true in zip(gradients(grown, layer, q), exact, strict=True):
        assert mixed.dtype == torch.float32
        assert float((mixed - true).norm() / true.norm()) < 0.02


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_constant_vectors_give_no_nan(scheme, value) -> None:
    layer = Finola(8, scheme)
    q = torch.full((1, 8), value, requires_grad=True)
    grown = layer(q, (6, 6))
    assert grown.isfinite().all()
    for gradient in gradients(grown, layer, q):
        assert gradient.isfinite().all()


def test_tied_matrices() -> None:
    layer, _ = layer_and_vector(matrices=2)
    right, left, down, up = layer.directional()
    assert torch.equal(left, -right)
    assert torch.equal(up, -down)
    assert not torch.equal(right, down)
    one, _ = layer_and_vector(matrices=1)
    assert torch.equal(one.directional()[0], one.directional()[2])
    assert [sum(p.numel() for p in Finola(10, matrices=m).parameters()) for m in (4, 2, 1)] == [400, 200, 100]


def test_walking_is_repeated_stepping() -> None:
    layer, q = layer_and_vector()
    for i, direction in enumerate(("right", "left", "down", "up")):
        expected = {0: layer(q, (1, 4), (0, 0))[..., 0, 3], 1: layer(q, (1, 4), (0, 3))[..., 0, 0],
                    2: layer(q, (4, 1), (0, 0))[..., 3, 0], 3: layer(q, (4, 1), (3, 0))[..., 0, 0]}[i]  # fmt: skip
        torch.testing.assert_close(layer.walk(q, direction, 3), expected, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_asked_of_a_frozen_layer() -> None:
    layer, q = layer_and_vector()
    layer.requires_grad_(False)
    (grad,) = torch.autograd.grad(layer(q, (4, 4)).sum(), q)
    layer.requires_grad_(True)
    torch.testing.assert_close(grad, torch.autograd.grad(layer(q, (4, 4)).sum(), q)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 1}, "channels: expected at least 2"),
        ({"channels": 4, "scheme": "diagonal"}, "scheme: expected one of separable, row_first"),
        ({"channels": 4, "matrices": 3}, "matrices: expected 4, 2"),
        ({"channels": 4, "eps": 0.0}, "eps and init_std"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Finola(**arguments)


@pytest.mark.parametrize(
    ("shape", "size", "start", "message"),
    [
        ((2, 5), (4, 4), None, r"q: expected \(B, 4\) or \(B, M, 4\).*latents of a model with other channels"),
        ((4,), (4, 4), None, "q: expected"),
        ((2, 4), (0, 4), None, "size: expected"),
        ((2, 4), (4, 4), (4, 0), r"start: expected \(row, column\) inside the 4 x 4 map, got \(4, 0\)"),
        ((2, 4), (4, 4), (0, -1), "start: expected"),
        *(((2, 4), size, None, "size: expected .*, got") for size in ((3,), (3, 3, 3), None, (2.5, 3), "ab", 3)),
        *(((2, 4), (4, 4), start, "start: expected .*, got") for start in ((0,), (1.5, 1), "ab")),
    ],
)
def test_bad_input_is_named(shape, size, start, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Finola(4)(torch.zeros(shape), size, start)


@pytest.mark.parametrize(
    ("direction", "steps", "message"),
    [
        ("foo", 2, "direction: expected one of right, left, down, up, got 'foo'"),
        ("right", -1, "steps: expected a whole number of at least 0, got -1"),
        ("up", 1.5, "steps: expected a whole number of at least 0, got 1.5"),
    ],
)
def test_bad_walks_are_named(direction, steps, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Finola(4).walk(torch.zeros(2, 4), direction, steps)


@pytest.mark.parametrize("scheme", ["separable", "wavefront"])
def test_a_step_captures_into_a_graph(scheme: str, device: str) -> None:
    if device != "cuda":
        pytest.skip("a graph of launches needs a GPU: --device cuda")
    torch.manual_seed(0)
    layer = Finola(16, scheme)  # type: ignore[arg-type]
    q = torch.randn(2, 16, requires_grad=True)

    def step() -> torch.Tensor:
        layer.weight.grad = q.grad = None
        grown = layer(q, (6, 7))
        grown.square().sum().backward()
        return grown

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step().clone()
        expected_gradient = layer.weight.grad.clone()  # type: ignore[union-attr]
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grown = step()
    grown.detach().zero_()
    graph.replay()
    torch.testing.assert_close(grown, expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.weight.grad, expected_gradient, rtol=0, atol=0)
