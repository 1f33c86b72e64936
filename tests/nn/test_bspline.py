"""The closed-form basis against scipy, its refinement, moments and projection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from framework.errors import ConfigError
from framework.nn import SplineGrid, bspline_basis
from framework.nn.splines.bspline import (
    dense_basis,
    end_slopes,
    greville,
    projection_error,
    projection_matrix,
    refinement_matrix,
    uniform_moments,
)
from framework.nn.splines.expansion import scatter_values

ORDERS = (1, 2, 3)
TAILS = ("linear", "clamp", "zero")


def scipy_basis(x: np.ndarray, grid: SplineGrid) -> np.ndarray:
    """(Q, n) values of the extended-knot basis; scipy's design matrix is half open at the right end."""
    knots = grid.low + (np.arange(grid.size + 2 * grid.order + 1) - grid.order) * grid.step
    return np.stack(
        [BSpline(knots, np.eye(grid.basis)[k], grid.order, extrapolate=False)(x) for k in range(grid.basis)], -1
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_both_routes_equal_scipy_inside_the_grid(order, size, dtype, tolerance):
    grid = SplineGrid(size, order, -3.0, 3.0)
    x = torch.linspace(-3, 3 - 1e-6, 1001, dtype=dtype)
    expected = scipy_basis(x.double().numpy(), grid)
    for values in (dense_basis(x, grid), scatter_values(x, grid, None, dtype)):
        assert values.dtype == dtype
        assert np.abs(values.double().numpy() - expected).max() < tolerance


@pytest.mark.parametrize("order", ORDERS)
def test_tails_follow_their_definitions(order):
    grid = SplineGrid(4, order, -2.0, 1.0, "zero")
    x = np.array([-40.0, -3.1, -2.2, 1.3, 2.0, 9.0])
    extended = np.nan_to_num(
        np.stack(
            [
                # over the whole knot line, padded so that every function is inside scipy's base interval
                BSpline.basis_element(grid.low + (np.arange(k, k + order + 2) - order) * grid.step, False)(x)
                for k in range(grid.basis)
            ],
            -1,
        )
    )
    values = dense_basis(torch.from_numpy(x), grid).numpy()
    assert np.abs(values - extended).max() < 1e-12
    ends = np.clip(x, -2, 1)
    at_ends = scipy_basis(np.clip(ends, -2, 1 - 1e-13), grid)
    clamped = bspline_basis(torch.from_numpy(x), 4, order, (-2, 1), "clamp").numpy()
    assert np.abs(clamped - at_ends).max() < 1e-11
    step = 1e-6
    slope_low = (scipy_basis(np.array([-2 + step]), grid) - scipy_basis(np.array([-2.0]), grid)) / step
    slope_high = (scipy_basis(np.array([1 - step]), grid) - scipy_basis(np.array([1 - 2 * step]), grid)) / step
    assert np.abs(np.array(end_slopes(grid)) - np.concatenate([slope_low, slope_high])).max() < 1e-4
    slopes = np.where(x[:, None] < 0, end_slopes(grid)[0], end_slopes(grid)[1])
    linear = bspline_basis(torch.from_numpy(x), 4, order, (-2, 1), "linear").numpy()
    assert np.abs(linear - (at_ends + (x - ends)[:, None] * slopes)).max() < 1e-10


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ORDERS), st.integers(1, 50), st.sampled_from(("linear", "clamp")), st.floats(-50, 50))
def test_basis_sums_to_one_everywhere(order, size, tail, x):
    grid = SplineGrid(size, order, -3.0, 2.0, tail)
    assert abs(float(dense_basis(torch.tensor(x, dtype=torch.float64), grid).sum()) - 1) < 1e-11


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ORDERS), st.integers(1, 40), st.sampled_from(TAILS), st.floats(-20, 20))
def test_scatter_equals_dense(order, size, tail, x):
    grid = SplineGrid(size, order, -1.5, 3.0, tail)
    point = torch.tensor([x], dtype=torch.float64)
    assert torch.allclose(
        dense_basis(point, grid), scatter_values(point, grid, None, torch.float64), atol=1e-10, rtol=1e-12
    )


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("order", ORDERS)
def test_greville_coefficients_reproduce_the_identity(order, tail):
    grid = SplineGrid(7, order, -3.0, 3.0, tail)
    x = torch.linspace(-3, 3, 97, dtype=torch.float64) * (2 if tail == "linear" else 1)
    assert (dense_basis(x, grid) @ greville(grid) - x).abs().max() < 1e-13


def test_cubic_doubling_has_the_published_mask():
    matrix = refinement_matrix(SplineGrid(6, 3), 2)
    column = matrix[:, 4]
    assert torch.equal(column[column != 0], torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 8)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ORDERS), st.integers(1, 12), st.integers(1, 5), st.sampled_from(("linear", "clamp")))
def test_knot_insertion_is_exact_and_keeps_the_range_of_coefficients(order, size, factor, tail):
    grid = SplineGrid(size, order, -3.0, 3.0, tail)
    matrix = refinement_matrix(grid, factor)
    assert matrix.min() >= 0
    assert (matrix.sum(1) - 1).abs().max() < 1e-14
    coefficients = torch.from_numpy(np.random.default_rng(size).normal(size=grid.basis))
    x = torch.linspace(-5, 5, 211, dtype=torch.float64)
    fine = dense_basis(x, grid.resized(size * factor)) @ (matrix @ coefficients)
    assert (fine - dense_basis(x, grid) @ coefficients).abs().max() < 1e-11


def test_average_of_squares_is_the_published_constant():
    # mean over a cell of sum_k B_k^2: 2/3, 11/20, 151/315
    for order, expected in ((1, 2 / 3), (2, 11 / 20), (3, 151 / 315)):
        _, second = uniform_moments(SplineGrid(6, order))
        assert abs(float(second.diagonal().sum()) - expected) < 1e-14


def test_projection_is_exact_where_spaces_are_nested_and_states_its_error_elsewhere():
    source = SplineGrid(5, 3)
    finer = projection_matrix(source, source.resized(10))
    assert (finer - refinement_matrix(source, 2)).abs().max() < 1e-11
    coarser = source.resized(3)
    projection = projection_matrix(source, coarser)
    stated = projection_error(source, coarser, projection)
    x = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    old, new = dense_basis(x, source), dense_basis(x, coarser)
    worst = 0.0
    for seed in range(50):
        c = torch.from_numpy(np.random.default_rng(seed).normal(size=source.basis))
        relative = (new @ projection @ c - old @ c).square().mean().sqrt() / (old @ c).square().mean().sqrt()
        worst = max(worst, float(relative))
    assert 0.01 < worst <= stated * 1.001


def test_empty_cells_give_a_finite_fit_that_follows_the_old_function():
    source, target = SplineGrid(10, 3), SplineGrid(13, 3)
    x = torch.linspace(-0.3, 0.3, 500, dtype=torch.float64)
    new, old = dense_basis(x, target), dense_basis(x, source)
    projection = projection_matrix(source, target, new.T @ new / 500, new.T @ old / 500)
    c = torch.sin(greville(source))
    everywhere = torch.linspace(-3, 3, 101, dtype=torch.float64)
    error = dense_basis(everywhere, target) @ projection @ c - dense_basis(everywhere, source) @ c
    assert error.abs().max() < 0.01
    assert (new @ projection @ c - old @ c).abs().max() < 1e-3


@pytest.mark.parametrize("tail", TAILS)
def test_nan_stays_nan_and_far_values_stay_finite(tail):
    grid = SplineGrid(5, 3, tail=tail)
    x = torch.tensor([float("nan"), 1e30, -1e30])
    for values in (dense_basis(x, grid), scatter_values(x, grid, None, torch.float32)):
        assert values[0].isnan().any()
        assert not values[1:].isnan().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": 0}, "grid_size: expected a whole number of cells"),
        ({"grid_size": 2.5}, "grid_size"),
        ({"grid_size": 5, "spline_order": 4}, "spline_order: expected 1, 2 or 3, got 4"),
        ({"grid_size": 5, "grid_range": (3, -3)}, "grid_range: expected two finite numbers low < high"),
        ({"grid_size": 5, "grid_range": (0, float("nan"))}, "grid_range"),
        ({"grid_size": 5, "grid_range": 3}, r"grid_range: expected two numbers \(low, high\), got 3"),
        ({"grid_size": 5, "grid_range": (0,)}, r"grid_range: expected two numbers \(low, high\), got \(0,\)"),
        ({"grid_size": 5.0}, "grid_size: expected a whole number of cells, at least 1, got 5.0"),
        ({"grid_size": 5, "tail": "cubic"}, "tail: expected linear, clamp or zero, got 'cubic'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bspline_basis(torch.zeros(3), **arguments)


def test_refinement_by_less_than_one_is_refused():
    with pytest.raises(ConfigError, match="factor: expected a whole number"):
        refinement_matrix(SplineGrid(5), 0)
