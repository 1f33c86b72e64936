"""The discrete Gaussian and its differences against Bessel functions, identities, pyscsp and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from scipy.special import ive

from framework.errors import ConfigError
from framework.nn import discrete_gaussian, remove_mean, spread
from framework.nn.filters.scale_space import difference_matrix, sharpened_delta, smoothed_difference

quick = settings(max_examples=25, deadline=None)
WIDE = 60


@quick
@given(sigma=st.floats(0.0, 6.0), radius=st.integers(0, 20))
def test_it_is_the_scaled_bessel_function(sigma: float, radius: int) -> None:
    n = np.abs(np.arange(-radius, radius + 1))
    np.testing.assert_allclose(discrete_gaussian(sigma, radius).numpy(), ive(n, sigma**2), rtol=0, atol=1e-14)


@quick
@given(sigma=st.floats(0.0, 4.0))
def test_sum_is_one_and_variance_is_sigma_squared(sigma: float) -> None:
    t = discrete_gaussian(sigma, WIDE).numpy()
    n = np.arange(-WIDE, WIDE + 1)
    assert abs(math.fsum(t) - 1) < 1e-14
    assert abs(math.fsum(t * n**2) - sigma**2) < 1e-14 * WIDE**2


@quick
@given(a=st.floats(0.0, 3.0), b=st.floats(0.0, 3.0))
def test_semigroup(a: float, b: float) -> None:
    both = np.convolve(discrete_gaussian(a, WIDE).numpy(), discrete_gaussian(b, WIDE).numpy())[WIDE:-WIDE]
    np.testing.assert_allclose(both, discrete_gaussian(math.hypot(a, b), WIDE).numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_agrees_with_pyscsp(sigma: float) -> None:
    pyscsp = pytest.importorskip("pyscsp.discscsp")
    theirs = pyscsp.make1Dgaussfilter(sigma, "discgauss", 1e-12)
    np.testing.assert_allclose(discrete_gaussian(sigma, len(theirs) // 2).numpy(), theirs, rtol=0, atol=1e-15)
    filter_ = np.abs(smoothed_difference(sigma, "forward", 21).numpy())[:, None] * discrete_gaussian(sigma, 10).numpy()
    mean, variance = spread(torch.as_tensor(filter_))
    np.testing.assert_allclose(variance.numpy(), pyscsp.variance(filter_), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(mean.numpy(), pyscsp.filtermean(filter_), rtol=1e-12, atol=1e-13)


def test_differentiable_in_sigma_at_zero_and_beyond() -> None:
    sigma = torch.tensor([0.0, 0.3, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: discrete_gaussian(s, 4, points=200), (sigma,))
    # the diffusion equation: dT/ds is half the second difference
    s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    for n in range(-3, 4):
        (slope,) = torch.autograd.grad(discrete_gaussian(s.sqrt(), 5)[5 + n], s)
        t = ive(np.abs(np.arange(n - 1, n + 2)), 1.3)
        assert abs(float(slope) - 0.5 * (t[0] - 2 * t[1] + t[2])) < 1e-14


def test_dtypes_and_batches() -> None:
    sigma = torch.rand(3, 2)
    assert discrete_gaussian(sigma, 3).shape == (3, 2, 7)
    assert discrete_gaussian(sigma, 3).dtype == torch.float32
    assert discrete_gaussian(sigma.bfloat16(), 3).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(discrete_gaussian(sigma, 3), discrete_gaussian(sigma.clone(), 3))
    torch.testing.assert_close(
        discrete_gaussian(sigma, 3).double(), discrete_gaussian(sigma.double(), 3), rtol=0, atol=3e-7
    )


@pytest.mark.parametrize("kind", ["forward", "backward", "central", "second"])
@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_differences_are_scipys_correlation(kind: str, boundary: str, mode: str) -> None:
    taps = {"forward": [0, -1, 1], "backward": [-1, 1, 0], "central": [-0.5, 0, 0.5], "second": [1, -2, 1]}[kind]
    x = np.random.default_rng(0).normal(size=7)
    ours = difference_matrix(kind, 7, boundary).numpy() @ x  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, correlate1d(x, taps, mode=mode), rtol=0, atol=1e-15)


def test_the_three_boundaries_differ_only_at_the_edges() -> None:
    exact, reflect, zero = (smoothed_difference(1.2, "central", 7, b).numpy() for b in ("exact", "reflect", "zero"))
    wide = 0.5 * (ive(np.abs(np.arange(-2, 5)), 1.44) - ive(np.abs(np.arange(-4, 3)), 1.44))
    np.testing.assert_allclose(exact, wide, rtol=0, atol=1e-15)
    np.testing.assert_allclose(exact[1:-1], reflect[1:-1], rtol=0, atol=1e-15)
    assert abs(reflect[0] - exact[0]) > 1e-3
    assert abs(zero[0] - reflect[0]) > 1e-3
    assert smoothed_difference(1.2, "forward", 7)[-1] == 0


# worked out from the definitions in double precision
@pytest.mark.parametrize(
    ("s", "one_sided", "central"),
    [(0.3, 0.5945, 1.4708), (0.5, 0.8713, 1.8048), (1.0, 1.6964, 2.6914), (2.0, 3.6456, 4.5890), (4.0, 7.7041, 8.5366)],
)
def test_spread_of_derivatives_on_the_infinite_grid(s: float, one_sided: float, central: float) -> None:
    for kind, expected in (("forward", one_sided), ("central", central)):
        line = smoothed_difference(math.sqrt(s), kind, 81, "exact")  # type: ignore[arg-type]
        _, v = spread(line[None, :] * discrete_gaussian(0.0, 40)[:, None])
        assert abs(float(v[0, 0]) - expected) < 5.1e-5


def test_forward_and_backward_stand_half_a_pixel_off_centre() -> None:
    for kind, offset in (("forward", -0.5), ("backward", 0.5)):
        line = smoothed_difference(0.8, kind, 41, "exact")  # type: ignore[arg-type]
        mean, _ = spread(line[None, :] * torch.ones(41, 1, dtype=torch.float64))
        assert abs(float(mean[0]) - offset) < 1e-12


def test_mass_lost_by_seven_taps() -> None:
    for sigma, lost in ((0.6, 6.4e-5), (0.8, 5.0e-4), (0.95, 1.6e-3), (1.1, 4.1e-3), (1.3, 1.1e-2), (1.39, 1.5e-2)):
        assert abs(1 - float(discrete_gaussian(sigma, 3).sum()) - lost) < 0.05 * lost


def test_sharpened_delta_is_the_five_point_laplacian() -> None:
    t = np.outer(ive(np.abs(np.arange(-3, 4)), 0.49), ive(np.abs(np.arange(-3, 4)), 0.49))
    padded = np.pad(t, 1)
    laplacian = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2] - 4 * t
    delta = np.zeros((7, 7))
    delta[3, 3] = 1
    np.testing.assert_allclose(sharpened_delta(0.7, 0.4).numpy(), delta - 0.4 * laplacian, rtol=0, atol=1e-15)


def test_remove_mean_of_a_constant_is_zero() -> None:
    filters = torch.stack([torch.full((3, 3), 0.1), torch.arange(9.0).view(3, 3)])
    result = remove_mean(filters)
    assert torch.equal(result[0], torch.zeros(3, 3))
    assert abs(float(result[1].norm()) - 1) < 1e-6
    assert abs(float(result[1].mean())) < 1e-7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discrete_gaussian(-1.0, 3), "at least 0 pixels, got -1.0"),
        (lambda: discrete_gaussian(float("nan"), 3), "got nan"),
        (lambda: discrete_gaussian(torch.tensor(float("inf")), 3), "finite standard deviations"),
        (lambda: discrete_gaussian(1.0, -1), "radius: expected at least 0"),
        (lambda: discrete_gaussian(1.0, 3, points=5), "points: expected more than"),
        (lambda: smoothed_difference(1.0, "forward", 6), "odd number of taps"),
        (lambda: smoothed_difference(1.0, "sideways", 7), "kind: expected one of"),  # type: ignore[arg-type]
        (lambda: difference_matrix("forward", 7, "wrap"), "boundary: expected"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
