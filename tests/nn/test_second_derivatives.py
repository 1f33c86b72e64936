"""Every layer is differentiable twice: against finite differences, and against plain torch networks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, hvp, vhp

from framework.nn import (
    ExpertLinear,
    Finola,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    KOrigins,
    ScaleSpaceDepthwiseConv2d,
    Segment,
    SineLayer,
    fold_korigins,
    nested_sort,
)

INDEX = torch.tensor([2, 0, 1, 0, 2, 1, 1])
RUNS = [Segment(0, 2, 0), Segment(2, 5, 2), Segment(5, 7, 1)]
Case = tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[nn.Module, Tensor], Tensor]]


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def splines() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for way in ("auto", "dense", "scatter", "recompute", "operator"):
        cases[f"KANLinear-{way}"] = (lambda way=way: KANLinear(3, 2, bias=True, implementation=way), (4, 3), plainly)
        cases[f"KANConv2d-{way}"] = (
            lambda way=way: KANConv2d(2, 3, 3, padding=1, stride=2, base="silu", implementation=way),
            (1, 2, 4, 5),
            plainly,
        )
        cases[f"KANConvTranspose2d-{way}"] = (
            lambda way=way: KANConvTranspose2d(2, 2, 2, stride=2, base="linear", implementation=way),
            (1, 2, 2, 3),
            plainly,
        )
    for order in (1, 2, 3):
        for tail in ("linear", "clamp", "zero"):
            cases[f"KANLinear-{order}-{tail}"] = (
                lambda order=order, tail=tail: KANLinear(3, 2, spline_order=order, tail=tail, grid_range=(-1, 1)),
                (4, 3),
                plainly,
            )
    cases["KANConv2d-rank"] = (
        lambda: KANConv2d(4, 2, 2, padding=1, groups=2, base="silu", rank=2),
        (1, 4, 3, 2),
        plainly,
    )
    cases["KANLinear-rank"] = (lambda: KANLinear(3, 2, rank=3), (4, 3), plainly)
    cases["KANConv2d-value-grouped"] = (
        lambda: KANConv2d(4, 2, 2, padding=1, groups=2, padding_mode="value"),
        (1, 4, 3, 2),
        plainly,
    )
    return cases


def experts() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for bias in ("shared", "per_expert", "none"):
        cases[f"ExpertLinear-index-{bias}"] = (
            lambda bias=bias: ExpertLinear(2, 3, 3, bias=bias),
            (7, 2),
            lambda layer, x: layer(x, INDEX),
        )
        cases[f"ExpertLinear-networks-{bias}"] = (
            lambda bias=bias: ExpertLinear(2, 3, 3, bias=bias, num_networks=2),
            (2, 7, 2),
            lambda layer, x: layer(x, segments=[RUNS, RUNS]),
        )
    cases["SineLayer"] = (lambda: SineLayer(2, 3, w0=3.0), (5, 2), plainly)
    cases["SineLayer-first"] = (lambda: SineLayer(2, 3, w0=3.0, first=True), (5, 2), plainly)
    cases["SineLayer-experts"] = (
        lambda: SineLayer(2, 3, 3, w0=2.0, bias="per_expert"),
        (7, 2),
        lambda layer, x: layer(x, segments=RUNS),
    )
    return cases


def others() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for scheme in ("separable", "row_first", "column_first", "wavefront"):
        for checkpoint in (False, True):
            cases[f"Finola-{scheme}-{checkpoint}"] = (
                lambda scheme=scheme, checkpoint=checkpoint: Finola(3, scheme, checkpoint=checkpoint),
                (2, 2, 3),
                lambda layer, q: layer(q, (3, 4), (1, 1)),
            )
    cases["Finola-tied-bare"] = (lambda: Finola(3, matrices=1, normalize=False), (2, 3), lambda f, q: f(q, (2, 3)))
    cases["KOrigins"] = (lambda: KOrigins(2, [0.1, 0.5]), (1, 2, 3, 3), plainly)
    cases["FoldedKOrigins"] = (
        lambda: fold_korigins(KOrigins(1, [0.1, 0.5]).double(), nn.Conv2d(3, 2, 3, padding=1).double()),
        (1, 1, 4, 5),
        plainly,
    )
    cases["ScaleSpaceDepthwiseConv2d"] = (lambda: ScaleSpaceDepthwiseConv2d(8, 3, sigma=0.8), (1, 8, 3, 2), plainly)
    return cases


CASES = splines() | experts() | others()


def prepared(name: str) -> tuple[nn.Module, Tensor, Callable[[nn.Module, Tensor], Tensor]]:
    torch.manual_seed(3)
    build, shape, call = CASES[name]
    layer = build().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer, 0.8 * torch.randn(shape, dtype=torch.float64), call


def scalar(layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of the input and all parameters whose value is neither linear nor symmetric in the outputs."""
    names = [n for n, _ in layer.named_parameters()]

    def value(x: Tensor, *parameters: Tensor) -> Tensor:
        out = Called(layer, call)(dict(zip(names, parameters, strict=True)), x)
        weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view(out.shape)
        return (weights * out.sin() + 0.3 * out.square()).sum()

    return value


class Called:
    """`call` on the layer with other parameters, put in for the moment."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        self.layer, self.call = layer, call

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        holder = _Holder(self.layer, self.call)
        return torch.func.functional_call(holder, {f"layer.{n}": p for n, p in parameters.items()}, (x,))


class _Holder(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_their_gradients_are_finite_differences(name) -> None:
    layer, x, call = prepared(name)
    inputs = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]
    value = scalar(layer, call)
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_that_of_finite_differences(name) -> None:
    layer, x, call = prepared(name)
    value = scalar(layer, call)
    parameters = tuple(p.detach() for p in layer.parameters())
    whole = hessian(lambda z: value(z, *parameters), x).reshape(x.numel(), x.numel())
    step = 1e-5
    columns = []
    for unit in torch.eye(x.numel(), dtype=x.dtype):
        grads = []
        for sign in (1, -1):
            z = (x.detach() + sign * step * unit.view(x.shape)).requires_grad_()
            grads.append(torch.autograd.grad(value(z, *parameters), z)[0].flatten())
        columns.append((grads[0] - grads[1]) / (2 * step))
    expected = torch.stack(columns)
    assert whole.abs().max() > 0
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-7)
    v = torch.randn_like(x)
    _, product = hvp(lambda z: value(z, *parameters), x, v)
    torch.testing.assert_close(product.flatten(), whole @ v.flatten(), rtol=1e-8, atol=1e-8)
    _, product = vhp(lambda z: value(z, *parameters), x, v)
    torch.testing.assert_close(product.flatten(), whole @ v.flatten(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_of_the_gradients_does_not_change_them(name) -> None:
    layer, x, call = prepared(name)
    inputs = [x.requires_grad_(), *layer.parameters()]
    loss = call(layer, x).square().sum()
    fast = torch.autograd.grad(loss, inputs, retain_graph=True)
    followed = torch.autograd.grad(loss, inputs, create_graph=True)
    for a, b in zip(fast, followed, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-11)


def test_a_siren_has_the_second_derivatives_of_a_plain_torch_network() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(SineLayer(2, 8, first=True, w0=5.0), SineLayer(8, 8, w0=5.0), ExpertLinear(8, 1, 1)).double()
    layers = [module for module in ours.modules() if isinstance(module, ExpertLinear)]

    def plain(x: Tensor) -> Tensor:
        for factor, layer in zip((5.0, 5.0, None), layers, strict=True):
            x = x @ layer.weight[0].T + layer.bias
            x = x if factor is None else torch.sin(factor * x)  # the factor stands on weights and bias alike
        return x

    x = torch.rand(6, 2, dtype=torch.float64) - 0.5
    a, b = (hessian(lambda z, f=f: f(z).square().sum(), x) for f in (ours, plain))
    assert b.abs().max() > 0.1
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_an_expert_network_has_the_second_derivatives_of_its_experts() -> None:
    torch.manual_seed(0)
    layer = SineLayer(2, 4, 3, w0=3.0, bias="per_expert").double()
    x = torch.rand(7, 2, dtype=torch.float64)
    mine = hessian(lambda z: layer(z, INDEX).square().sum(), x)

    def by_row(z: Tensor) -> Tensor:
        rows = [torch.sin(3.0 * (layer.linear.weight[e] @ r + layer.linear.bias[e])) for r, e in zip(z, INDEX)]  # noqa: B905
        return torch.stack(rows).square().sum()

    torch.testing.assert_close(mine, hessian(by_row, x), rtol=1e-9, atol=1e-9)


def test_a_spline_has_the_second_derivative_of_its_polynomials() -> None:
    """A cubic B-spline's second derivative is a linear spline of second differences of its coefficients."""
    layer = KANLinear(1, 1, grid_size=4, grid_range=(-2, 2)).double()
    with torch.no_grad():
        layer.coefficients.normal_()
    x = torch.tensor([-1.7, -0.4, 0.3, 1.2], dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    c = layer.coefficients.flatten().detach()
    differences = c[2:] - 2 * c[1:-1] + c[:-2]  # at the knots -2, -1, 0, 1, 2; h = 1
    cell = (x.detach().flatten() + 2).floor().long()
    u = x.detach().flatten() + 2 - cell
    expected = (1 - u) * differences[cell] + u * differences[cell + 1]
    torch.testing.assert_close(second.flatten(), expected)


@pytest.mark.parametrize("way", ["auto", "scatter", "recompute"])
def test_a_boundary_factor_times_two_spline_layers(way) -> None:
    """(1 - x^2) net(x), as solvers of boundary problems write it."""
    torch.manual_seed(0)
    net = nn.Sequential(KANLinear(1, 5, implementation=way), KANLinear(5, 1, implementation=way)).double()
    dense = copy.deepcopy(net)
    for layer in dense:
        layer.implementation = "dense"
    x = torch.linspace(-0.9, 0.95, 20, dtype=torch.float64)[:, None].requires_grad_()

    def second(network: nn.Module) -> tuple[Tensor, tuple[Tensor, ...]]:
        (slope,) = torch.autograd.grad(((1 - x**2) * network(x)).sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return curve, torch.autograd.grad(curve.square().sum(), list(network.parameters()))

    (a, a_grads), (b, b_grads) = second(net), second(dense)
    torch.testing.assert_close(a, b)
    for one, other in zip(a_grads, b_grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [n for n in CASES if "dense" not in n])
def test_a_gradient_penalty_trains_every_parameter_as_finite_differences_say(name) -> None:
    layer, x, call = prepared(name)
    x.requires_grad_()

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(call(layer, x).sin().sum(), x, create_graph=True)
        return slope.square().sum()

    parameters = list(layer.parameters())
    grads = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    torch.manual_seed(1)
    for parameter, grad in zip(parameters, grads, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
            values.append(float(penalty()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-5)
        expected = (values[0] - values[1]) / 2e-5
        got = 0.0 if grad is None else float((grad * direction).sum())
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_parameters_changed_before_the_backward_pass_are_an_error() -> None:
    layer, x, call = prepared("KANConv2d-recompute")
    out = call(layer, x.requires_grad_())
    with torch.no_grad():
        layer.coefficients.mul_(2)
    with pytest.raises(RuntimeError, match="in place"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["KANLinear-auto", "SineLayer", "ExpertLinear-index-shared", "Finola-separable-False"])
def test_forward_mode_through_a_fast_path_is_right_or_refused(name) -> None:
    layer, x, call = prepared(name)
    v = torch.randn_like(x)
    _, through = torch.func.jvp(lambda z: call(layer, z), (x,), (v,))
    step = 1e-6
    with torch.no_grad():
        expected = (call(layer, x + step * v) - call(layer, x - step * v)) / (2 * step)
    torch.testing.assert_close(through, expected, rtol=1e-6, atol=1e-7)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(Exception, match="forward"):
        call(layer, torch.autograd.forward_ad.make_dual(x, v))


def test_sorted_rows_give_the_second_derivatives_of_unsorted_ones() -> None:
    layer, x, _ = prepared("ExpertLinear-index-per_expert")
    sort = nested_sort([INDEX])

    def by_segments(z: Tensor) -> Any:
        return layer(z[sort.order], segments=sort.segments[0])[sort.inverse()].sin().sum()

    mine = hessian(by_segments, x)
    torch.testing.assert_close(mine, hessian(lambda z: layer(z, INDEX).sin().sum(), x))
    assert mine.abs().max() > 0
