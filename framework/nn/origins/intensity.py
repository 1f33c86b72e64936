"""Intensity statistics of classes: how separable they are, and where K-Origins should start.

Arrays may be numpy, torch or plain sequences; results are floats and float64 numpy arrays.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from framework.errors import ConfigError, DataError

Array = NDArray[np.float64]


def _array(values: ArrayLike | torch.Tensor) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _plain(values: Array) -> Any:
    return float(values) if values.ndim == 0 else values


def _check_statistics(means: Array, stds: Array, names: tuple[str, str] = ("means", "stds")) -> None:
    if not (np.isfinite(means).all() and np.isfinite(stds).all()):
        raise ConfigError(f"{names[0]}, {names[1]}: expected finite values, got {means} and {stds}")
    if (stds < 0).any():
        raise ConfigError(f"{names[1]}: expected 0 or more, got {stds}")


def hellinger(
    mean_1: ArrayLike, std_1: ArrayLike, mean_2: ArrayLike, std_2: ArrayLike, *, squared: bool = False
) -> float | Array:
    """Hellinger distance of two normal distributions: 0 for equal ones, 1 for disjoint ones.

    H^2 = 1 - sqrt(2 s1 s2 / (s1^2 + s2^2)) exp(-(m1 - m2)^2 / (4 (s1^2 + s2^2))). With both standard deviations zero
    it is 0 for equal means and 1 otherwise. The K-Origins paper (arXiv 2409.02281) does not say whether the distances
    that it prints are H or H^2, so report both.

    Args:
        mean_1: mean or means, any shape; the four arguments are broadcast.
        std_1: standard deviation, at least 0, in the unit of the means.
        mean_2: as ``mean_1``.
        std_2: as ``std_1``.
        squared: return H^2 instead of H.

    Returns:
        Float for scalars, else a float64 array, in [0, 1].

    Raises:
        ConfigError: if a value is not finite or a standard deviation is negative.
    """
    m1, s1, m2, s2 = np.broadcast_arrays(*(_array(values) for values in (mean_1, std_1, mean_2, std_2)))
    _check_statistics(m1, s1, ("mean_1", "std_1"))
    _check_statistics(m2, s2, ("mean_2", "std_2"))
    norm = np.hypot(s1, s2)
    scale = np.where(norm == 0, 1.0, norm)
    with np.errstate(divide="ignore"):
        # 2 s1 s2 = s1^2 + s2^2 - (s1 - s2)^2: exact for nearly equal distributions, where 1 - x would cancel
        log_overlap = 0.5 * np.log1p(-np.minimum(((s1 - s2) / scale) ** 2, 1.0)) - ((m1 - m2) / scale) ** 2 / 4
    distance = np.where(norm == 0, (m1 != m2).astype(np.float64), -np.expm1(log_overlap))
    return _plain(distance if squared else np.sqrt(distance))


def bayes_confusion(means: ArrayLike, stds: ArrayLike, priors: ArrayLike | None = None) -> Array:
    """Confusion of the best classifier that sees one pixel's intensity only, for normal classes.

    The intensity axis is cut where two weighted densities cross, the roots of a quadratic; between two cuts one
    class wins, and the normal distribution function gives every class's mass there: no grid, no sampling. A class of
    standard deviation zero is a point: there it wins over every density, and among points of equal mean the largest
    prior wins, the first of equal ones.

    Args:
        means: (C,) in intensity units.
        stds: (C,), at least 0, in intensity units.
        priors: (C,) class frequencies, at least 0; normalised here. None: equal.

    Returns:
        (C, C) float64: the probability that a pixel is of class i (row) and called class j (column); sums to 1.

    Raises:
        ConfigError: if shapes differ, or a value is negative or not finite, or all priors are zero.
    """
    m, s = _array(means), _array(stds)
    p = np.ones_like(m) if priors is None else _array(priors)
    if m.ndim != 1 or m.size == 0 or m.shape != s.shape or m.shape != p.shape:
        raise ConfigError(f"means, stds, priors: expected all of shape (C,), got {m.shape}, {s.shape} and {p.shape}")
    _check_statistics(m, s)
    if not np.isfinite(p).all() or (p < 0).any() or p.sum() == 0:
        raise ConfigError(f"priors: expected finite values of 0 or more, not all zero, got {p}")
    p = p / p.sum()
    confusion = np.zeros((m.size, m.size))
    for i in np.flatnonzero(s == 0):
        same = np.flatnonzero((s == 0) & (m == m[i]))
        confusion[i, same[np.argmax(p[same])]] = p[i]

    spread = np.flatnonzero((s > 0) & (p > 0))
    if spread.size == 0:
        return confusion
    centre, unit = m[spread].mean(), s[spread].max()
    mu, sigma, prior = (m[spread] - centre) / unit, s[spread] / unit, p[spread]
    # log(prior density) = a x^2 + b x + c
    quadratics = np.stack(
        [-0.5 / sigma**2, mu / sigma**2, np.log(prior) - np.log(sigma) - 0.5 * (mu / sigma) ** 2], axis=1
    )
    cuts = np.sort(
        np.concatenate([_real_roots(f - g) for k, f in enumerate(quadratics) for g in quadratics[:k]] + [[]])
    )
    probes = np.array([0.0])
    if cuts.size:
        probes = np.concatenate([[cuts[0] - 1], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] + 1]])
    winners = np.argmax(quadratics @ np.stack([probes**2, probes, np.ones_like(probes)]), axis=0)
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    masses = prior[:, None] * np.diff(ndtr((edges - mu[:, None]) / sigma[:, None]), axis=1)
    np.add.at(confusion, (spread[:, None], spread[winners][None, :]), masses)
    return confusion


def _real_roots(quadratic: Array) -> Array:
    a, b, c = quadratic
    if a == 0:
        return np.array([-c / b]) if b != 0 else np.empty(0)
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return np.empty(0)
    q = -0.5 * (b + np.copysign(np.sqrt(discriminant), b))
    return np.array([q / a, c / q if q != 0 else 0.0])


def bayes_accuracy(means: ArrayLike, stds: ArrayLike, priors: ArrayLike | None = None) -> float:
    """Highest accuracy that a classifier can reach from one pixel's intensity, for normal classes.

    The integral of the largest weighted density, evaluated piecewise; see :func:`bayes_confusion`.

    Args:
        means: (C,) in intensity units.
        stds: (C,), at least 0, in intensity units.
        priors: (C,) class frequencies. None: equal.

    Returns:
        Accuracy in [1 / C, 1].

    Raises:
        ConfigError: as :func:`bayes_confusion`.
    """
    return float(np.trace(bayes_confusion(means, stds, priors)))


def bayes_iou(means: ArrayLike, stds: ArrayLike, priors: ArrayLike | None = None) -> float:
    """Mean foreground IoU of the classifier that reaches :func:`bayes_accuracy`; class 0 is background.

    IoU_j = TP / (TP + FP + FN) of the expected confusion. It is the reference that goes with the accuracy, not an
    upper bound: a classifier that trades accuracy for IoU can lie above it.

    Args:
        means: (C,) in intensity units, background first.
        stds: (C,), at least 0, in intensity units.
        priors: (C,) class frequencies. None: equal.

    Returns:
        IoU in [0, 1], averaged over the foreground classes that occur.

    Raises:
        ConfigError: as :func:`bayes_confusion`, or if no foreground class has a prior above zero.
    """
    confusion = bayes_confusion(means, stds, priors)
    hits = np.diag(confusion)[1:]
    union = (confusion.sum(0) + confusion.sum(1))[1:] - hits
    if not (union > 0).any():
        raise ConfigError("priors: they leave no foreground class; give at least two classes, background first")
    return float(np.mean(hits[union > 0] / union[union > 0]))


def origins_from_statistics(means: ArrayLike, stds: ArrayLike) -> Array:
    """First-layer origins of K-Origins: mu - 2 sigma and mu + 2 sigma of every class (arXiv 2409.02281).

    Args:
        means: (C,), or (C, N) for N channels, in intensity units.
        stds: shape of ``means``, at least 0, in intensity units.

    Returns:
        (2 C,) or (2 C, N) float64: class 0 low, class 0 high, class 1 low, and so on.

    Raises:
        ConfigError: if shapes differ or a value is negative or not finite.
    """
    m, s = _array(means), _array(stds)
    if m.ndim not in (1, 2) or m.shape != s.shape:
        raise ConfigError(f"means, stds: expected both of shape (C,) or (C, N), got {m.shape} and {s.shape}")
    _check_statistics(m, s)
    return np.stack([m - 2 * s, m + 2 * s], axis=1).reshape(-1, *m.shape[1:])


def multi_otsu_statistics(values: ArrayLike | torch.Tensor, classes: int, bins: int = 256) -> tuple[Array, Array]:
    """Class statistics without labels: means and standard deviations between the Multi-Otsu thresholds.

    Liao, Chen and Chung, J. Inf. Sci. Eng. 17 (2001): the thresholds with the largest variance between classes. They
    are found by dynamic programming over the histogram, whose cost does not explode with the number of classes.

    Args:
        values: intensities, any shape.
        classes: number of classes, at least 1.
        bins: histogram bins between the smallest and the largest value.

    Returns:
        Means and standard deviations, (classes,) float64 each, by ascending mean.

    Raises:
        ConfigError: if ``classes`` is below 1.
        DataError: if the values are not finite, or have fewer distinct levels than classes.
    """
    v = _values(values, classes)
    levels = np.unique(v)
    if levels.size == classes:  # noise-free data: the levels are the classes
        return levels, np.zeros(classes)
    counts, edges = np.histogram(v, bins)
    if np.count_nonzero(counts) < classes:
        raise DataError(
            f"values: they fill {np.count_nonzero(counts)} of {bins} histogram bins, fewer than the {classes} classes; "
            "clip outliers or raise bins"
        )
    labels = np.digitize(v, edges[_otsu_cuts(counts, classes)])
    groups = [v[labels == label] for label in range(classes)]
    return np.array([group.mean() for group in groups]), np.array([group.std() for group in groups])


def _values(values: ArrayLike | torch.Tensor, classes: int) -> Array:
    v = _array(values).ravel()
    if classes < 1:
        raise ConfigError(f"classes: expected at least 1, got {classes}")
    if not np.isfinite(v).all():
        raise DataError("values: they hold NaN or infinite intensities; give finite ones")
    if np.unique(v).size < classes:
        raise DataError(
            f"values: expected at least classes={classes} distinct levels, got {np.unique(v).size}; give values with "
            "contrast, or fewer classes"
        )
    return v


def _otsu_cuts(counts: NDArray[np.int64], classes: int) -> NDArray[np.intp]:
    """First bins of all classes but the lowest: the largest sum of (class sum)^2 / (class count)."""
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * (np.arange(counts.size) + 0.5))])
    count = mass[None, :] - mass[:, None]  # of the bins from row to column
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(count > 0, (moment[None, :] - moment[:, None]) ** 2 / count, -np.inf)
    best, origins = gain[0], []
    for _ in range(classes - 1):
        total = best[:, None] + gain
        origins.append(np.argmax(total, axis=0))
        best = np.max(total, axis=0)
    cuts = [counts.size]
    for origin in reversed(origins):
        cuts.append(origin[cuts[-1]])
    return np.array(cuts[:0:-1], dtype=np.intp)


def gaussian_mixture_statistics(
    values: ArrayLike | torch.Tensor,
    classes: int,
    bins: int = 1024,
    max_iterations: int = 1000,
    tolerance: float = 1e-9,
) -> tuple[Array, Array]:
    """Class statistics without labels: a normal mixture fitted to the histogram by expectation-maximisation.

    Unlike :func:`multi_otsu_statistics` it sees through overlap. The start is Multi-Otsu's, so that the same values
    always give the same answer. A standard deviation never falls below that of a uniform distribution in one bin.

    Args:
        values: intensities, any shape.
        classes: number of components, at least 1.
        bins: histogram bins between the smallest and the largest value.
        max_iterations: limit of the iterations.
        tolerance: stop when the mean log-likelihood per value grows by less.

    Returns:
        Means and standard deviations, (classes,) float64 each, by ascending mean.

    Raises:
        ConfigError: if ``classes`` is below 1.
        DataError: if the values are not finite, or have fewer distinct levels than classes.
    """
    v = _values(values, classes)
    means, stds = multi_otsu_statistics(v, classes)
    if not stds.any():
        return means, stds
    counts, edges = np.histogram(v, bins)
    x, weights = (edges[1:] + edges[:-1]) / 2, counts / counts.sum()
    floor = (edges[1] - edges[0]) / np.sqrt(12)
    stds, shares = np.maximum(stds, floor), np.full(classes, 1 / classes)
    before = -np.inf
    for _ in range(max_iterations):
        log_joint = np.log(shares) - np.log(stds) - 0.5 * ((x[:, None] - means) / stds) ** 2
        log_density = np.logaddexp.reduce(log_joint, axis=1)
        likelihood = weights @ log_density
        if likelihood - before < tolerance:
            break
        before = likelihood
        responsibility = np.exp(log_joint - log_density[:, None]) * weights[:, None]
        shares = np.maximum(responsibility.sum(0), np.finfo(np.float64).tiny)
        means = x @ responsibility / shares
        stds = np.sqrt(np.sum(responsibility * (x[:, None] - means) ** 2, axis=0) / shares).clip(floor)
    order = np.argsort(means)
    return means[order], stds[order]
