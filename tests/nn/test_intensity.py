"""Hellinger distance, Bayes limits and class statistics against golden values, scipy and scikit-image."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from skimage.filters import threshold_multiotsu

from framework.errors import ConfigError, DataError
from framework.nn import (
    bayes_accuracy,
    bayes_confusion,
    bayes_iou,
    gaussian_mixture_statistics,
    hellinger,
    multi_otsu_statistics,
    origins_from_statistics,
)

quick = settings(max_examples=25, deadline=None)
intensity = st.floats(0, 65535)
spread = st.floats(10, 6000)

# from the closed forms: distance in units of a common SD, H^2, H, Bayes accuracy
EQUAL_SPREAD = [
    (0.5, 0.0308, 0.1754, 0.5987),
    (1, 0.1175, 0.3428, 0.6915),
    (2, 0.3935, 0.6273, 0.8413),
    (3, 0.6753, 0.8218, 0.9332),
    (4, 0.8647, 0.9299, 0.9772),
    (5, 0.9561, 0.9778, 0.9938),
]
EQUAL_MEANS = [(1.5, 0.0392, 0.1981, 0.5968), (2, 0.1056, 0.3249, 0.6613), (3, 0.2254, 0.4748, 0.7422)]


@pytest.mark.parametrize(("distance", "squared", "plain", "accuracy"), EQUAL_SPREAD)
def test_golden_values_for_equal_spread(distance: float, squared: float, plain: float, accuracy: float) -> None:
    m, s = 20000 + 1300 * distance, 1300
    assert hellinger(20000, s, m, s, squared=True) == pytest.approx(squared, abs=5.1e-5)
    assert hellinger(20000, s, m, s) == pytest.approx(plain, abs=5.1e-5)
    assert bayes_accuracy([20000, m], [s, s]) == pytest.approx(accuracy, abs=5.1e-5)


@pytest.mark.parametrize(("ratio", "squared", "plain", "accuracy"), EQUAL_MEANS)
def test_golden_values_for_equal_means(ratio: float, squared: float, plain: float, accuracy: float) -> None:
    assert hellinger(20000, 1000, 20000, 1000 * ratio, squared=True) == pytest.approx(squared, abs=5.1e-5)
    assert hellinger(20000, 1000, 20000, 1000 * ratio) == pytest.approx(plain, abs=5.1e-5)
    assert bayes_accuracy([20000, 20000], [1000, 1000 * ratio]) == pytest.approx(accuracy, abs=5.1e-5)


@pytest.mark.parametrize(
    ("first", "second", "squared", "plain"),
    [
        ((16500, 900), (20000, 1000), 0.8164, 0.9035),
        ((16500, 900), (20000, 5250), 0.4819, 0.6942),
        ((20000, 1000), (20000, 5250), 0.3937, 0.6274),
        ((20000, 2000), (25000, 2000), 0.5422, 0.7363),
        ((20000, 2000), (26700, 3000), 0.5948, 0.7712),
        ((25000, 2000), (26700, 3000), 0.0912, 0.3019),
    ],
)
def test_golden_hellinger_values_of_the_presets(
    first: tuple[float, float], second: tuple[float, float], squared: float, plain: float
) -> None:
    assert hellinger(*first, *second, squared=True) == pytest.approx(squared, abs=5.1e-5)
    assert hellinger(*first, *second) == pytest.approx(plain, abs=5.1e-5)


@quick
@given(m1=intensity, s1=spread, m2=intensity, s2=spread)
def test_hellinger_is_the_integral_of_its_definition(m1: float, s1: float, m2: float, s2: float) -> None:
    x = np.linspace(min(m1 - 12 * s1, m2 - 12 * s2), max(m1 + 12 * s1, m2 + 12 * s2), 400_001)
    integrand = (np.sqrt(norm.pdf(x, m1, s1)) - np.sqrt(norm.pdf(x, m2, s2))) ** 2
    assert hellinger(m1, s1, m2, s2, squared=True) == pytest.approx(0.5 * np.trapezoid(integrand, x), abs=1e-6)
    assert hellinger(m1, s1, m2, s2) == hellinger(m2, s2, m1, s1)
    assert 0 <= hellinger(m1, s1, m2, s2) <= 1


def test_hellinger_without_spread_and_next_to_zero() -> None:
    assert hellinger(5, 0, 5, 0) == 0.0
    assert hellinger(5, 0, 6, 0) == 1.0
    assert hellinger(5, 0, 5, 1) == 1.0
    assert hellinger(7, 3, 7, 3) == 0.0
    # for a small distance d in SDs, H = d / sqrt(8)
    assert hellinger(0, 1, 1e-9, 1) == pytest.approx(1e-9 / np.sqrt(8), rel=1e-6)


def test_hellinger_takes_arrays_and_tensors() -> None:
    table = hellinger(torch.tensor([[0.0], [1.0]]), 1, np.array([0.0, 1.0, 2.0]), 1)
    assert isinstance(table, np.ndarray)
    assert table.shape == (2, 3)
    assert table[0, 2] == hellinger(0, 1, 2, 1)
    assert isinstance(hellinger(torch.tensor(0.0), 1, 2, 1), float)


def test_bad_statistics_are_named() -> None:
    with pytest.raises(ConfigError, match="std_2: expected 0 or more"):
        hellinger(0, 1, 0, -1)
    with pytest.raises(ConfigError, match="mean_1, std_1: expected finite values"):
        hellinger(np.nan, 1, 0, 1)
    with pytest.raises(ConfigError, match=r"expected all of shape \(C,\), got \(2,\), \(1,\)"):
        bayes_accuracy([1, 2], [1])
    with pytest.raises(ConfigError, match="priors: expected finite values of 0 or more, not all zero"):
        bayes_accuracy([1, 2], [1, 1], [0, 0])
    with pytest.raises(ConfigError, match="stds: expected 0 or more"):
        origins_from_statistics([1, 2], [1, -1])
    with pytest.raises(ConfigError, match=r"expected both of shape \(C,\) or \(C, N\), got \(2,\) and \(3,\)"):
        origins_from_statistics([1, 2], [1, 1, 1])
    with pytest.raises(ConfigError, match="no foreground class"):
        bayes_iou([1], [1])


@quick
@given(
    classes=st.lists(
        st.tuples(st.floats(10000, 30000), st.floats(200, 5000), st.floats(0.05, 1)), min_size=1, max_size=5
    )
)
def test_bayes_accuracy_is_the_integral_of_the_largest_density(classes: list[tuple[float, float, float]]) -> None:
    m, s, p = (np.array(column) for column in zip(*classes, strict=True))
    p = p / p.sum()
    x = np.linspace((m - 12 * s).min(), (m + 12 * s).max(), 500_001)
    expected = np.trapezoid((p[:, None] * norm.pdf(x, m[:, None], s[:, None])).max(0), x)
    assert bayes_accuracy(m, s, p) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(bayes_confusion(m, s, p).sum(1), p, atol=1e-12)


def test_bayes_accuracy_against_adaptive_quadrature() -> None:
    m, s, p = np.array([16500, 20000, 20000]), np.array([900, 1000, 5250]), np.array([0.45, 0.275, 0.275])
    expected, _ = quad(lambda x: (p * norm.pdf(x, m, s)).max(), -25000, 65000, limit=500, points=[15000, 18000, 22000])
    assert bayes_accuracy(m, s, p) == pytest.approx(expected, abs=1e-6)


def test_bayes_accuracy_with_noise_free_classes() -> None:
    assert bayes_accuracy([20000, 25000, 26000], [0, 0, 0]) == 1.0
    assert bayes_accuracy([20000, 20000], [0, 0], [0.7, 0.3]) == pytest.approx(0.7)
    assert bayes_accuracy([20000, 20000], [0, 1000]) == pytest.approx(1.0)
    assert bayes_accuracy([1, 1, 5], [0, 0, 2], [0.2, 0.3, 0.5]) == pytest.approx(0.8)
    assert bayes_accuracy([1, 1], [3, 3]) == pytest.approx(0.5)
    assert bayes_accuracy([1, 2], [1, 1], [1, 0]) == pytest.approx(1.0)


def test_bayes_iou_of_two_equal_classes_from_the_threshold_by_hand() -> None:
    hit = norm.cdf(0.5)  # equal priors, one SD apart: the threshold lies in the middle
    assert bayes_iou([0, 1], [1, 1]) == pytest.approx(hit / 2 / (0.5 + (1 - hit) / 2))
    assert bayes_iou([0, 9, 5], [0, 0, 0]) == 1.0


def test_bayes_confusion_against_sampling() -> None:
    m, s, p = np.array([20000, 25000, 26700]), np.array([2000, 2000, 3000]), np.array([0.6, 0.3, 0.1])
    rng = np.random.default_rng(0)
    label = rng.choice(3, 400_000, p=p)
    called = np.argmax(p * norm.pdf(rng.normal(m[label], s[label])[:, None], m, s), axis=1)
    counted = np.histogram2d(label, called, bins=[np.arange(4) - 0.5] * 2)[0] / label.size
    np.testing.assert_allclose(bayes_confusion(m, s, p), counted, atol=4 * np.sqrt(0.25 / label.size))


def test_origins_lie_two_deviations_around_the_means_in_class_order() -> None:
    assert origins_from_statistics([20000, 25000], [1000, 0]).tolist() == [18000, 22000, 25000, 25000]
    rgb = origins_from_statistics(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), [[1.0, 0.0, 2.0], [0.5, 0.5, 0.5]])
    assert rgb.tolist() == [[-1, 2, -1], [3, 2, 7], [3, 4, 5], [5, 6, 7]]


def mixture(means: list[float], stds: list[float], count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(m, s, count) for m, s in zip(means, stds, strict=True)])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_multi_otsu_is_the_best_of_all_thresholds(classes: int) -> None:
    values = mixture([15000.0, 20000.0, 26000.0, 30000.0][:classes], [900.0, 1500.0, 700.0, 1000.0][:classes], 500)
    edges = np.histogram_bin_edges(values, 16)
    bins = np.digitize(values, edges[1:-1])

    def within(cuts: tuple[int, ...]) -> float:
        labels = np.digitize(bins, cuts)
        return sum(((bins - bins[labels == label].mean()) ** 2)[labels == label].sum() for label in range(classes))

    choices = itertools.combinations(range(1, 16), classes - 1)
    best = min((c for c in choices if len(np.unique(np.digitize(bins, c))) == classes), key=within)
    labels = np.digitize(bins, best)
    means, stds = multi_otsu_statistics(values, classes, bins=16)
    np.testing.assert_allclose(means, [values[labels == i].mean() for i in range(classes)], rtol=1e-12)
    np.testing.assert_allclose(stds, [values[labels == i].std() for i in range(classes)], rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_multi_otsu_separates_where_scikit_image_does(classes: int) -> None:
    values = mixture([15000.0, 20000.0, 26000.0, 30000.0][:classes], [900.0, 1500.0, 700.0, 1000.0][:classes], 3000)
    thresholds = threshold_multiotsu(values, classes, nbins=256)
    step = np.ptp(values) / 256
    means, _ = multi_otsu_statistics(values, classes)
    # scikit-image sums in float32 and returns bin centres: its thresholds hold to one bin
    low, high = (
        [values[np.digitize(values, thresholds + shift) == i].mean() for i in range(classes)]
        for shift in (-0.5 * step, 1.5 * step)
    )
    assert np.all((low <= means + 1e-6) & (means <= np.array(high) + 1e-6))


def test_multi_otsu_finds_six_colours() -> None:
    means = [15000.0, 20000, 24000, 25000, 28000, 30000]
    got, stds = multi_otsu_statistics(mixture(means, [60.0] * 6, 2000), 6)
    np.testing.assert_allclose(got, means, atol=10)
    np.testing.assert_allclose(stds, 60, atol=5)


@pytest.mark.parametrize("estimate", [multi_otsu_statistics, gaussian_mixture_statistics])
def test_noise_free_levels_are_the_classes(estimate) -> None:
    means, stds = estimate(torch.tensor([[26000.0, 20000.0], [25000.0, 20000.0]]), 3)
    assert means.tolist() == [20000, 25000, 26000]
    assert stds.tolist() == [0, 0, 0]


def test_gaussian_mixture_sees_through_overlap() -> None:
    means, stds = [20000.0, 25000.0, 33000.0], [2000.0, 1000.0, 3000.0]
    values = mixture(means, stds, 60_000)
    got_means, got_stds = gaussian_mixture_statistics(values, 3)
    np.testing.assert_allclose(got_means, means, atol=60)
    np.testing.assert_allclose(got_stds, stds, rtol=0.04)
    otsu_stds = multi_otsu_statistics(values, 3)[1]
    assert np.abs(got_stds - stds).max() < np.abs(otsu_stds - stds).max()
    again = gaussian_mixture_statistics(values[::-1].copy(), 3)
    assert np.array_equal(again[0], got_means)


def test_one_component_is_mean_and_deviation() -> None:
    values = mixture([20000.0], [1000.0], 5000)
    for estimate in (multi_otsu_statistics, gaussian_mixture_statistics):
        means, stds = estimate(values, 1)
        assert means[0] == pytest.approx(values.mean(), abs=1)
        assert stds[0] == pytest.approx(values.std(), abs=1)


@pytest.mark.parametrize("estimate", [multi_otsu_statistics, gaussian_mixture_statistics])
def test_impossible_values_are_named(estimate) -> None:
    with pytest.raises(ConfigError, match="classes: expected at least 1, got 0"):
        estimate([1.0, 2.0], 0)
    with pytest.raises(DataError, match="expected at least classes=3 distinct levels, got 2"):
        estimate([1.0, 2.0, 2.0], 3)
    with pytest.raises(DataError, match="NaN or infinite"):
        estimate([1.0, np.nan, 2.0], 2)
    with pytest.raises(DataError, match="fill 2 of 256 histogram bins, fewer than the 3 classes"):
        estimate([1.0, 2.0, 3.0, 1e9], 3)
