"""How hard generated squares are, beside what a network made of them: Hellinger distance and Bayes limits."""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import chi2, ncx2

from datamodules import SquaresDataModule
from framework.nn import KOrigins, bayes_accuracy, hellinger
from models import KOriginsSegmentation
from models.korigins.network import receptive_field


def figures(model: KOriginsSegmentation, data: SquaresDataModule) -> dict[str, object]:
    """Hellinger distance and Bayes limits of the hardest pair of classes, grey or in colour.

    Returns:
        `hellinger` H and `hellinger_squared` H^2 of the pair that lies closest; `bayes_pixel`: the share of pixels
        that the best classifier of one pixel calls right, classes equally frequent; `bayes_field`: the same of
        receptive_field^2 pixels that are known to be of one class.
    """
    mean, std = data.class_statistics()
    closest = min(itertools.combinations(range(len(mean)), 2), key=lambda pair: _overlap_distance(mean, std, *pair))
    squared = _overlap_distance(mean, std, *closest)
    field = receptive_field(model.network.rfl) ** 2
    i, j = closest
    one, many = None, None
    if mean.shape[1] == 1:
        one = round(bayes_accuracy(mean[[i, j], 0], std[[i, j], 0]), 4)
        many = round(pair_accuracy(mean[i, 0], std[i, 0], mean[j, 0], std[j, 0], field), 4)
    return {
        "hellinger": round(float(np.sqrt(squared)), 4),
        "hellinger_squared": round(squared, 4),
        "bayes_pixel": "" if one is None else one,
        "bayes_field": "" if many is None else many,
    }


def first_origin(model: KOriginsSegmentation, data: SquaresDataModule) -> dict[str, object]:
    """Where the single origin of the first level ended.

    Returns:
        `origin` in intensity units; `between`: 1 if it lies between the means of the two classes, else 0.
    """
    layer = next(module for module in model.modules() if isinstance(module, KOrigins))
    means = data.class_statistics()[0][:, 0]
    origin = float(layer.weight.detach()[0, 0])
    return {"origin": round(origin, 1), "between": int(means.min() < origin < means.max())}


def _overlap_distance(mean: NDArray[np.float64], std: NDArray[np.float64], i: int, j: int) -> float:
    """H^2 of two classes whose channels are independent: 1 - product of the channels' overlaps."""
    return float(1 - np.prod(1 - np.asarray(hellinger(mean[i], std[i], mean[j], std[j], squared=True))))


def pair_accuracy(m1: float, s1: float, m2: float, s2: float, pixels: int) -> float:
    """Accuracy of the best classifier that sees `pixels` independent pixels of one class, two equally frequent ones.

    The log-likelihood ratio of normal classes is a quadratic in each pixel. Of equal spread it depends on the mean
    alone: Phi(sqrt(n) |m1 - m2| / (2 s)). Else it depends on sum (x - c)^2 with one centre c, which is a non-central
    chi-squared variable under either class.

    Args:
        m1: mean of the first class, in intensity units.
        s1: its standard deviation, at least 0.
        m2: mean of the second class.
        s2: its standard deviation.
        pixels: n, at least 1.

    Returns:
        Accuracy in [0.5, 1].
    """
    if s1 == s2:
        if s1 == 0:
            return 1.0 if m1 != m2 else 0.5
        return float(ndtr(np.sqrt(pixels) * abs(m1 - m2) / (2 * s1)))
    if min(s1, s2) == 0:
        return 1.0
    if s1 > s2:
        m1, s1, m2, s2 = m2, s2, m1, s1
    # log p1 - log p2 = n log(s2 / s1) + sum(((x - m2) / s2)^2 - ((x - m1) / s1)^2) / 2: the first where it is positive
    curvature = 1 / s1**2 - 1 / s2**2
    centre = (m1 / s1**2 - m2 / s2**2) / curvature
    constant = (m1 / s1) ** 2 - (m2 / s2) ** 2 - centre**2 * curvature
    limit = pixels * (2 * np.log(s2 / s1) - constant) / curvature  # first class where sum (x - c)^2 is below

    def below(mean: float, std: float) -> float:
        shift = pixels * ((mean - centre) / std) ** 2
        return float(ncx2.cdf(limit / std**2, pixels, shift) if shift > 0 else chi2.cdf(limit / std**2, pixels))

    return (below(m1, s1) + 1 - below(m2, s2)) / 2
