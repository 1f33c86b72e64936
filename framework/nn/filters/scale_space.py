"""Discrete scale space: the discrete Gaussian, difference operators on it, and how filters spread.

Conventions of every array here: columns run with x to the right, rows run downwards. Operators act along an axis by
correlation, the way a convolution layer applies its weight: (d+ f)(i) = f(i + 1) - f(i) with i the array position.
Whoever wants y upwards differences rows in the opposite direction; `framework.nn.filters.key_filters` does.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.precision import without_autocast

Difference = Literal["none", "forward", "backward", "central", "second"]
Boundary = Literal["reflect", "zero", "exact"]

# taps of the correlation at i - 1, i, i + 1
TAPS: dict[str, tuple[float, float, float]] = {
    "none": (0.0, 1.0, 0.0),
    "forward": (0.0, -1.0, 1.0),
    "backward": (-1.0, 1.0, 0.0),
    "central": (-0.5, 0.0, 0.5),
    "second": (1.0, -2.0, 1.0),
}


def discrete_gaussian(sigma: float | Tensor, radius: int, points: int | None = None) -> Tensor:
    """The discrete analogue of the Gaussian, T(n; s) = exp(-s) I_n(s) with s = sigma^2, cut to 2 radius + 1 taps.

    It is not renormalised: its sum is 1 and its variance exactly s on the infinite grid, and T(s) * T(t) = T(s + t)
    (Lindeberg 1990). Computed as the Fourier integral of exp(s (cos t - 1)) by the trapezoidal rule, which converges
    geometrically, on any device and differentiably, down to sigma = 0 (a unit impulse).

    Args:
        sigma: standard deviations in pixels, at least 0, any shape (...); a number counts as float64. Negative values
            of a tensor act like their absolute value.
        radius: taps on either side of the centre.
        points: of the rule; None: enough for full precision at the largest sigma (which reads its value).

    Returns:
        (..., 2 radius + 1), of sigma's dtype, at least float32.

    Raises:
        ConfigError: a negative or infinite sigma or a negative radius.
    """
    if isinstance(sigma, Tensor):
        s = sigma if sigma.dtype in (torch.float32, torch.float64) else sigma.float()
    else:
        s = torch.tensor(float(sigma), dtype=torch.float64)
        if not 0 <= float(sigma) < math.inf:
            raise ConfigError(f"sigma: expected a finite standard deviation of at least 0 pixels, got {sigma}")
    if radius < 0:
        raise ConfigError(f"radius: expected at least 0, got {radius}")
    if points is None:
        largest = float(s.detach().abs().max()) if s.numel() else 0.0
        if not math.isfinite(largest):
            raise ConfigError(f"sigma: expected finite standard deviations, got {largest}")
        # the rule adds T(n + k points): beyond 9 sigma (or 40 taps, for small sigma) that is below 1e-17
        points = 2 * (radius + math.ceil(max(40.0, 9.0 * largest)))
    if points <= 2 * radius:
        raise ConfigError(f"points: expected more than 2 radius = {2 * radius}, got {points}")
    with without_autocast(s.device.type):
        k = torch.arange(points, device=s.device, dtype=s.dtype)
        taps = torch.arange(-radius, radius + 1, device=s.device, dtype=s.dtype).abs()
        # sin^2 keeps the digits that cos - 1 loses near 0
        decay = -2 * torch.sin(k * (math.pi / points)) ** 2
        # cosines as sines of angles within a quarter turn: exactly symmetric, so that their sums cancel exactly
        turn = torch.remainder(k[:, None] * taps, points)
        turn = torch.minimum(turn, points - turn)
        waves = torch.sin((points / 4 - turn) * (2 * math.pi / points)) / points
        return torch.exp(s.square().unsqueeze(-1) * decay) @ waves


def difference_matrix(kind: Difference, size: int, boundary: Boundary = "reflect") -> Tensor:
    """A difference operator on `size` samples as a matrix; float64.

    Args:
        kind: `none`, `forward` d+ = [0, -1, 1], `backward` d- = [-1, 1, 0], `central` d = [-1/2, 0, 1/2] or `second`
            [1, -2, 1], read as the factors of the samples at i - 1, i, i + 1.
        size: number of samples of the result.
        boundary: what stands outside the window. `reflect`: the edge sample again, so that a one-sided difference there
            is 0 and a central one is half a one-sided one (the published fits); `zero`: nothing; `exact`: the input has
            one more sample at either end, so nothing is missing.

    Returns:
        (size, size), or (size, size + 2) with `exact`.

    Raises:
        ConfigError: an unknown kind or boundary.
    """
    _check_difference(kind, boundary)
    return torch.tensor(difference_rows(kind, size, boundary), dtype=torch.float64)


@functools.cache
def difference_rows(kind: Difference, size: int, boundary: Boundary) -> list[list[float]]:
    """The rows of `difference_matrix` as numbers: a tensor kept here could be one of an exporter's or a fake mode."""
    wide = [[0.0] * i + list(TAPS[kind]) + [0.0] * (size - 1 - i) for i in range(size)]
    if boundary == "exact":
        return wide
    rows = [row[1:-1] for row in wide]
    if boundary == "reflect":
        for row, full in zip(rows, wide, strict=True):
            row[0] += full[0]
            row[-1] += full[-1]
    return rows


def _check_difference(kind: str, boundary: str) -> None:
    if kind not in TAPS:
        raise ConfigError(f"kind: expected one of {', '.join(TAPS)}, got {kind!r}")
    if boundary not in ("reflect", "zero", "exact"):
        raise ConfigError(f"boundary: expected reflect, zero or exact, got {boundary!r}")


def _difference(values: Tensor, kind: Difference, size: int, boundary: Boundary) -> Tensor:
    """`difference_matrix` applied along the last axis, without the matrix, which a device would wait for."""
    if boundary == "reflect":
        values = torch.cat([values[..., :1], values, values[..., -1:]], -1)
    elif boundary == "zero":
        values = torch.nn.functional.pad(values, (1, 1))
    taps = [tap * values[..., at : at + size] for at, tap in enumerate(TAPS[kind]) if tap]
    return functools.reduce(torch.add, taps)


def smoothed_difference(
    sigma: float | Tensor, kind: Difference, size: int = 7, boundary: Boundary = "reflect", points: int | None = None
) -> Tensor:
    """A difference operator applied to the discrete Gaussian, cut to `size` taps.

    The order of the two is arXiv 2509.12746's (docs/master_key.md, "The mathematics, with its conventions").

    Args:
        sigma: standard deviations in pixels, (...).
        kind: as in `difference_matrix`.
        size: odd number of taps.
        boundary: `reflect` and `zero` cut T to the window first; `exact` differences the uncut T.
        points: as in `discrete_gaussian`.

    Returns:
        (..., size), of sigma's dtype.

    Raises:
        ConfigError: an even size, or what `discrete_gaussian` and `difference_matrix` refuse.
    """
    check_odd(size)
    _check_difference(kind, boundary)
    smooth = discrete_gaussian(sigma, size // 2 + (boundary == "exact"), points)
    return _difference(smooth, kind, size, boundary)


def sharpened_delta(
    sigma: float | Tensor,
    alpha: float | Tensor,
    size: int = 7,
    boundary: Boundary = "zero",
    points: int | None = None,
) -> Tensor:
    """delta - alpha Lap5 T: a unit impulse less a share of the smoothed five-point Laplacian (filter 7).

    Args:
        sigma: standard deviation in pixels, the same along both axes, (...).
        alpha: factor of the Laplacian, (...).
        size: odd side of the array.
        boundary: of the Laplacian.
        points: as in `discrete_gaussian`.

    Returns:
        (..., size, size), of sigma's dtype.
    """
    smooth = smoothed_difference(sigma, "none", size, "reflect", points)
    second = smoothed_difference(sigma, "second", size, boundary, points)
    laplacian = outer(second, smooth) + outer(smooth, second)
    delta = torch.zeros(size, size, dtype=smooth.dtype, device=smooth.device)
    delta[size // 2, size // 2] = 1.0
    return delta - torch.as_tensor(alpha, dtype=smooth.dtype, device=smooth.device)[..., None, None] * laplacian


def outer(column: Tensor, row: Tensor) -> Tensor:
    """(..., h) along y and (..., w) along x -> (..., h, w)."""
    return column.unsqueeze(-1) * row.unsqueeze(-2)


def grid(size: int, y_up: bool = True, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates of a centred array as (x (1, size), y (size, 1)): x to the right, y upwards, or downwards."""
    dtype, device = (torch.float64, None) if like is None else (like.dtype, like.device)
    line = torch.arange(size, dtype=dtype, device=device) - (size - 1) / 2
    return line.view(1, -1), (line.flip(0) if y_up else line).view(-1, 1)


def spread(weights: Tensor, template: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean position M and covariance V of a filter's absolute values, weighted by a template's (M_g, V_g) if given.

    M = sum p |h| |g| / sum |h| |g| and V = sum p p^T |h| |g| / sum |h| |g| - M M^T (the spread measures of
    arXiv 2509.12746).

    Args:
        weights: the filter h, (..., k, k).
        template: g, broadcastable to it.

    Returns:
        M (..., 2) as (x, y) with y upwards, and V (..., 2, 2), in pixels and square pixels.
    """
    mass = weights.abs() if template is None else weights.abs() * template.abs()
    x, y = grid(weights.shape[-1], like=mass)
    total = mass.sum((-2, -1))
    mean_x, mean_y = ((mass * axis).sum((-2, -1)) / total for axis in (x, y))
    dx, dy = x - mean_x[..., None, None], y - mean_y[..., None, None]
    moments = [(mass * product).sum((-2, -1)) / total for product in (dx * dx, dx * dy, dx * dy, dy * dy)]
    return torch.stack([mean_x, mean_y], -1), torch.stack(moments, -1).unflatten(-1, (2, 2))


def remove_mean(filters: Tensor) -> Tensor:
    """Filters (..., k, k) less their mean, with unit l2 norm; a constant filter becomes zero."""
    centred = filters - filters.mean((-2, -1), keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)
    # rounding leaves a constant filter with a tiny remainder, which must not be blown up
    size = torch.linalg.vector_norm(filters, dim=(-2, -1), keepdim=True)
    tiny = norm <= 4 * torch.finfo(filters.dtype).eps * size
    return torch.where(tiny, 0.0, centred / torch.where(tiny, 1.0, norm))


def check_odd(size: int, name: str = "size") -> None:
    """Raises ConfigError unless `size` is odd and positive."""
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"{name}: expected an odd number of taps, so that there is a centre, got {size}")
