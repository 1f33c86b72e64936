"""Fitting the scales of the eight key filters to learned ones, in the six published ways.

Lindeberg, Babaiee, Kiasari, "Modelling and analysis of the 8 filters from the master key filters hypothesis",
arXiv 2509.12746 and JMIV 68(3), 2026. Learned filters are first brought to the units of their operators.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from framework.errors import ConfigError, DataError
from framework.nn.filters.key_filters import ALONG, METHODS, NAMES, KeyFilterFit, key_filter
from framework.nn.filters.scale_space import grid, spread

# ------------------------------------------------------------------------------------------- normalisation, section 2


def monomial_response(filter_: Tensor, index: int, across: bool = False) -> float:
    """Response of filter 1 to 6 to its monomial, by true convolution, at the origin.

    The monomial is y - M_y for filters 1, 3, 6 and x - M_x for 2, 4, 5 (the other one with `across`), M the mean
    position of the filter's absolute values.

    Args:
        filter_: (k, k).
        index: 1 to 6.
        across: the response along the other axis, which an ideal filter does not have.
    """
    (mean_x, mean_y), _ = spread(filter_)
    x, y = grid(filter_.shape[-1], like=filter_)
    along_x = (ALONG[index][1] != "none") != across
    # a convolution sees the monomial at -p
    return float((filter_ * (-x - mean_x if along_x else -y - mean_y)).sum())


def dc_offset(filter_: Tensor) -> float:
    """The constant C for which |h - C| is most compact: the minimum of sqrt(det V(|h - C|)), for filters 7 and 8.

    Searched as published: multiples of 1/1000, 100 values about the best, and the parabola through the best three. The
    objective has kinks, so this is not quite its minimum.

    Args:
        filter_: (k, k) with unit l2 norm.
    """

    def best(candidates: Tensor) -> tuple[int, Tensor]:
        _, v = spread(filter_ - candidates[:, None, None])
        values = torch.linalg.det(v).clamp_min(0).sqrt()
        return int(values.argmin()), values

    coarse = torch.arange(-100, 101, dtype=torch.float64) / 1000
    centre = coarse[best(coarse)[0]]
    fine = torch.linspace(-0.001, 0.001, 100, dtype=torch.float64) + centre
    at, values = best(fine)
    if at in (0, len(fine) - 1):
        return float(fine[at])
    before, here, after = values[at - 1 : at + 2].tolist()
    shift = (before - after) / (2 * (before - 2 * here + after))
    return float(fine[at] + shift * (fine[1] - fine[0]))


def normalize_filter(filter_: Tensor, index: int) -> Tensor:
    """A learned filter in the units of its operator (eq. def-h1-norm to def-h8-norm).

    Filters 1 to 6 are divided by their response to their monomial, which also gives 2 and 3 the operator's sign; 7
    and 8 lose their DC offset and get sum 1.

    Args:
        filter_: (k, k), any scale; 7 and 8 are searched at unit l2 norm.
        index: 1 to 8.

    Raises:
        DataError: the filter is zero, or has no response to normalise by.
    """
    norm = torch.linalg.vector_norm(filter_)
    if not norm > 0:
        raise DataError(f"filter {index}: it is zero everywhere, so there is nothing to fit")
    if index <= 6:
        response = monomial_response(filter_, index)
        if abs(response) < 1e-6 * float(norm):
            raise DataError(
                f"filter {index}: it has no response to its monomial ({response:.2g}), so it is no {NAMES[index - 1]}"
            )
        return filter_ / response
    # leaves a filter of unit norm (to its six digits) exactly as it is
    unit = filter_ if abs(float(norm) - 1) < 1e-4 else filter_ / norm
    compact = unit - dc_offset(unit)
    return compact / compact.sum()


# ------------------------------------------------------------------------------------------------- fitting, section 4

_WEIGHT_SIGMA = dict.fromkeys(range(1, 9), 1.0) | {7: math.sqrt(0.5)}


def fit_key_filters(filters: Tensor | np.ndarray, method: str) -> list[KeyFilterFit]:
    """Fits the scales of the eight operators to learned filters (arXiv 2509.12746; docs/master_key.md, "Fitting").

    A: closed form from the weighted variances. B: per axis, the scale at which the template's weighted variance is the
    filter's, the other axis at 1. C1, D1: smallest l1, l2 distance over (sigma_x, sigma_y); C2, D2: over one common
    sigma. Filter 7 has (sigma, alpha) in every method, by l1 in C and by l2 otherwise.

    Args:
        filters: (8, 7, 7) in order.
        method: A, B, C1, C2, D1 or D2.

    Returns:
        eight records, filters 1 to 8.

    Raises:
        ConfigError: an unknown method.
        DataError: filters of another shape, not finite, or zero.
    """
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    given = torch.as_tensor(filters).detach().cpu().double()
    if tuple(given.shape) != (8, 7, 7):
        raise DataError(f"filters: expected eight 7x7 filters, (8, 7, 7), got {tuple(given.shape)}")
    if not torch.isfinite(given).all():
        raise DataError("filters: expected finite values, got NaN or infinity")
    normalized = [normalize_filter(h, index) for index, h in enumerate(given, start=1)]
    power = 1 if method.startswith("C") else 2
    fits = []
    for index, h in enumerate(normalized, start=1):
        if index == 7:
            fits.append(_fit_sharpened(h, power))
        elif method in ("A", "B"):
            fits.append(_fit_variances(h, index, method))
        else:
            fits.append(_fit_distance(h, index, power, common=method.endswith("2")))
    return fits


def weighted_variances(filter_: Tensor, index: int) -> Tensor:
    """V_g of a filter (..., k, k), weighted by its own template at the reference scale: (..., 2) along x and y."""
    template = key_filter(index, _WEIGHT_SIGMA[index], size=filter_.shape[-1])
    return spread(filter_, template)[1].diagonal(dim1=-2, dim2=-1)


def _fit_variances(h: Tensor, index: int, method: str) -> KeyFilterFit:
    target = weighted_variances(h, index)
    sigmas = []
    for axis in (0, 1):
        derived = ALONG[index][1 - axis] != "none"
        if method == "A":
            # variance of a product with its equal-scale copy: s / 2 along a smoothed axis, 3 s / 2 along a derived one
            sigmas.append(math.sqrt(float(target[axis]) * (2 / 3 if derived else 2)))
        else:
            sigmas.append(_matching_scale(index, axis, float(target[axis])))
    sigma_x, sigma_y = sigmas
    reached = weighted_variances(key_filter(index, sigma_x, sigma_y), index)
    return KeyFilterFit(index, sigma_x, sigma_y, None, float((reached - target).abs().max()))


def _matching_scale(index: int, axis: int, target: float) -> float:
    """The first scale at which the template's weighted variance along an axis is `target`; else the nearest."""

    def deviation(sigma: Tensor) -> Tensor:
        one = torch.ones_like(sigma)
        scales = (sigma, one) if axis == 0 else (one, sigma)
        return weighted_variances(key_filter(index, *scales), index)[..., axis] - target

    sigmas = torch.linspace(0.05, 4.0, 396, dtype=torch.float64)
    values = deviation(sigmas)
    changes = torch.nonzero(values[:-1].sign() != values[1:].sign()).flatten()
    if len(changes) == 0:
        return float(sigmas[values.abs().argmin()])
    low, high = sigmas[changes[0]], sigmas[changes[0] + 1]
    return float(brentq(lambda s: float(deviation(torch.tensor(s, dtype=torch.float64))), low, high, xtol=1e-13))


def _fit_distance(h: Tensor, index: int, power: int, common: bool) -> KeyFilterFit:
    coarse = torch.cat([torch.arange(0, 2, 0.02), torch.arange(2, 4.5, 0.1)]).double()
    if common:

        def along_diagonal(p: Tensor, q: Tensor) -> Tensor:
            return _distance(key_filter(index, p).unsqueeze(1), h, power)

        sigma, _, value = _minimize(along_diagonal, coarse, torch.zeros(1, dtype=torch.float64))
        return KeyFilterFit(index, sigma, sigma, None, value)

    def over_plane(p: Tensor, q: Tensor) -> Tensor:
        return _distance(key_filter(index, p[:, None], q[None, :]), h, power)

    sigma_x, sigma_y, value = _minimize(over_plane, coarse, coarse)
    return KeyFilterFit(index, sigma_x, sigma_y, None, value)


def _fit_sharpened(h: Tensor, power: int) -> KeyFilterFit:
    # The template is linear in alpha, so that the best alpha of every sigma is exact: a line's least-squares slope, or
    # for l1 the weighted median of the pointwise ratios.
    delta = key_filter(7, 1.0, alpha=0.0)

    def laplacians(sigma: Tensor) -> Tensor:
        return (delta - key_filter(7, sigma, alpha=1.0)).flatten(-2)

    def best_alpha(sigma: Tensor) -> Tensor:
        lap, rest = laplacians(sigma), (delta - h).flatten()
        if power == 2:
            return (lap * rest).sum(-1) / lap.square().sum(-1)
        weight = lap.abs()
        ratio = torch.where(weight > 0, rest / torch.where(weight > 0, lap, 1.0), 0.0)
        ratio, order = ratio.sort(-1)
        mass = weight.gather(-1, order).cumsum(-1)
        middle = (mass < mass[..., -1:] / 2).sum(-1, keepdim=True)
        return ratio.gather(-1, middle).squeeze(-1)

    def profile(p: Tensor, q: Tensor) -> Tensor:
        return _distance(key_filter(7, p, alpha=best_alpha(p)).unsqueeze(1), h, power)

    sigma, _, value = _minimize(profile, torch.arange(0, 2, 0.005, dtype=torch.float64), torch.zeros(1).double())
    return KeyFilterFit(7, sigma, sigma, float(best_alpha(torch.tensor(sigma, dtype=torch.float64))), value)


def _distance(templates: Tensor, h: Tensor, power: int) -> Tensor:
    return torch.linalg.vector_norm((templates - h).flatten(-2), ord=power, dim=-1)


def _minimize(
    objective: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor, starts: int = 4
) -> tuple[float, float, float]:
    """Global minimum over a grid p x q, by ever finer grids about its best local minima (the l1 distance has kinks)."""
    values = objective(p, q)
    padded = torch.nn.functional.pad(values[None, None], (1, 1, 1, 1), value=math.inf)[0, 0]
    shape = values.shape
    around = [padded[i : i + shape[0], j : j + shape[1]] for i in (0, 1, 2) for j in (0, 1, 2)]
    is_local = values <= torch.stack(around).amin(0)
    candidates = torch.nonzero(is_local)
    order = values[is_local].argsort()[:starts]
    best = (math.inf, 0.0, 0.0)
    steps = torch.linspace(-1, 1, 13, dtype=torch.float64)
    for i, j in candidates[order].tolist():
        centre_p, centre_q, value = float(p[i]), float(q[j]), float(values[i, j])
        width = 0.06
        while width > 1e-9:
            fine_p = (centre_p + width * steps).clamp_min(0)
            fine_q = (centre_q + width * steps).clamp_min(0) if len(q) > 1 else q
            fine = objective(fine_p, fine_q)
            at = int(fine.argmin())
            if float(fine.flatten()[at]) < value:
                value = float(fine.flatten()[at])
                centre_p, centre_q = float(fine_p[at // fine.shape[1]]), float(fine_q[at % fine.shape[1]])
            width *= 0.25
        best = min(best, (value, centre_p, centre_q))
    if len(q) > 1:
        best = min(best, _polish(objective, *best))
    return best[1], best[2], best[0]


def _polish(
    objective: Callable[[Tensor, Tensor], Tensor], value: float, p: float, q: float
) -> tuple[float, float, float]:
    """Nelder and Mead's simplex, which can follow a valley that lies askew to the axes."""

    def at(point: np.ndarray) -> float:
        pair = torch.as_tensor(point).clamp_min(0)
        return float(objective(pair[:1], pair[1:]))

    for edge in (1e-2, 1e-4):
        simplex = np.array([[p, q], [p + edge, q], [p, q + edge]])
        options = {"initial_simplex": simplex, "xatol": 1e-10, "fatol": 1e-14}
        found = minimize(at, [p, q], method="Nelder-Mead", options=options)
        if found.fun < value:
            value, (p, q) = float(found.fun), (float(v) for v in found.x.clip(0))
    return value, p, q
