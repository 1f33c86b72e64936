"""Slopes and curvatures of every route where they jump: at knots, ends and the centres of cells, against scipy's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from framework.nn import KANConv2d, KANLinear, SplineGrid
from framework.nn.splines.bspline import bspline_basis, end_slopes

SIZE, LOW, HIGH = 6, -3.0, 3.0
#: binary fractions: on the grid's knots, ends and centres without rounding, and beyond it
POINTS = torch.arange(-24, 25, dtype=torch.float64) / 4
TAILS: tuple[Any, ...] = ("linear", "clamp", "zero")


def expected(layer: KANLinear, points: np.ndarray, order: int) -> np.ndarray:
    """The derivative of the layer's one spline, right-hand at knots, that of the inside at the ends."""
    grid, c = layer.grid, layer.coefficients.detach().flatten().numpy()
    if order > grid.order:
        return np.zeros_like(points)
    more = 8 if grid.tail == "zero" else 0
    knots = grid.low + (np.arange(grid.size + 2 * grid.order + 1 + 2 * more) - grid.order - more) * grid.step
    spline = BSpline(knots, np.pad(c, more), grid.order, extrapolate=False)
    found = spline.derivative(order)(np.clip(points, grid.low, grid.high) if more == 0 else points)
    outside = (points < grid.low) | (points > grid.high)
    if grid.tail == "clamp" or (grid.tail == "linear" and order == 2):
        found = np.where(outside, 0, found)
    return np.asarray(found)


def spline(order: int, tail: Any, implementation: Any = "auto") -> KANLinear:
    torch.manual_seed(order)
    layer = KANLinear(
        1, 1, grid_size=SIZE, spline_order=order, grid_range=(LOW, HIGH), tail=tail, implementation=implementation
    )
    with torch.no_grad():
        layer.coefficients.normal_()
    return layer.double()


def derivatives(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and curvature at all points, by autograd."""
    x = POINTS[:, None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
    return slope.detach().flatten(), curvature.flatten()


def check(layer: KANLinear, slope: Tensor, curvature: Tensor | None) -> None:
    at = POINTS.numpy()
    np.testing.assert_allclose(slope.numpy(), expected(layer, at, 1), atol=1e-12)
    if curvature is not None:
        np.testing.assert_allclose(curvature.numpy(), expected(layer, at, 2), atol=1e-11)


@pytest.mark.parametrize("implementation", ["scatter", "dense", "recompute", "operator"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_route_has_the_derivatives_of_the_splines_polynomials(order: int, tail: Any, implementation: Any) -> None:
    layer = spline(order, tail, implementation)
    check(layer, *derivatives(layer))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_function_transforms_see_the_same_derivatives(order: int, tail: Any) -> None:
    layer = spline(order, tail)

    def value(x: Tensor) -> Tensor:
        return layer(x.view(1, 1)).sum()

    slope = torch.func.vmap(torch.func.grad(value))(POINTS).detach()
    curvature = torch.func.vmap(torch.func.hessian(value))(POINTS).detach()
    check(layer, slope, curvature)


@pytest.mark.parametrize("way", ["compile", "export", "trace"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_graphs_have_the_same_slopes(order: int, way: str) -> None:
    layer = spline(order, "linear")
    x = POINTS[:, None].clone().requires_grad_()
    function: Any
    if way == "compile":
        torch._dynamo.reset()
        function = torch.compile(layer, backend="aot_eager")
    elif way == "export":
        function = torch.export.export(layer, (x.detach(),)).module()
    else:
        function = torch.jit.trace(layer, x.detach())
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    check(layer, slope.flatten(), None)


def test_black_and_white_pixels_get_the_gradient_compiled_that_they_get_eagerly() -> None:
    """Images on [0, 1] with saturated pixels, and a layer on just that range."""
    torch.manual_seed(0)
    layer = KANConv2d(1, 4, 3, padding=1, grid_range=(0, 1))
    x = (torch.randn(2, 1, 16, 16) * 0.5 + 0.5).clamp(0, 1).requires_grad_()
    assert ((x == 0) | (x == 1)).float().mean() > 0.2
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    mine, graph = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, compiled))
    torch.testing.assert_close(graph, mine, rtol=1e-4, atol=1e-5)
    assert mine[x == 0].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_choice_of_derivatives_changes_no_value(order: int, tail: Any, dtype: torch.dtype) -> None:
    """Bit for bit the truncated powers of |z|, which the plain form for inference takes."""
    grid = SplineGrid(7, order, -1.1, 2.3, tail)
    torch.manual_seed(0)
    ends = [grid.low, grid.high, float("inf"), -float("inf"), float("nan"), 1e30, -0.0, 1e-30]
    knots = [grid.low + m * grid.step for m in range(-5, 13)]
    x = torch.cat([torch.tensor(ends + knots, dtype=dtype), 3 * torch.randn(20_000, dtype=dtype)])
    t = ((x if tail == "zero" else x.clamp(grid.low, grid.high)) - grid.low) * (grid.size / (grid.high - grid.low))
    z = (t[:, None] - (torch.arange(grid.basis, dtype=dtype) - (order - (order + 1) / 2))).abs()
    half = (order + 1) / 2
    outer, inner = (half - z).relu(), (half - 1 - z).relu()
    powers = {
        1: lambda: outer,
        2: lambda: (outer * outer - 3 * (inner * inner)) / 2,
        3: lambda: (outer * outer * outer - 4 * (inner * inner * inner)) / 6,
    }[order]()
    if tail == "linear":
        keep = (x >= grid.low) & (x <= grid.high) | x.isnan()
        x, powers = x[keep], powers[keep]
    got = bspline_basis(x, 7, order, (-1.1, 2.3), tail)
    assert torch.equal(got.isnan(), powers.isnan())
    a, b = (t.nan_to_num(7.0).view(torch.int32) for t in (got, powers.contiguous()))
    assert torch.equal(a, b)


@pytest.mark.parametrize("implementation", ["scatter", "dense", "operator"])
@pytest.mark.parametrize("tail", ["linear", "clamp"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_end_has_its_slope_however_it_is_rounded(order: int, tail: Any, implementation: Any) -> None:
    for grid_range in ((-1.1, 2.3), (0.1, 0.7), (-3.0, 3.0), (0.0, 1.0)):
        for size in (3, 5, 7, 10):
            kwargs = {"grid_size": size, "spline_order": order, "grid_range": grid_range, "tail": tail}
            layer = KANLinear(1, 1, implementation=implementation, **kwargs)  # type: ignore[arg-type]
            with torch.no_grad():
                layer.coefficients.normal_()
            x = torch.tensor(grid_range)[:, None].requires_grad_()
            (slope,) = torch.autograd.grad(layer(x).sum(), x)
            of_ends = torch.tensor(end_slopes(layer.grid)) @ layer.coefficients.detach()[:, 0, 0]
            torch.testing.assert_close(slope.flatten(), of_ends, rtol=1e-4, atol=1e-4)
