"""Uniform B-splines of degree 1, 2 and 3 in closed form: values, slopes, exact refinement, Gram matrices, projection.

A grid of G cells on [a, b] with step h = (b - a) / G carries n = G + p basis functions of degree p on the knots
t_m = a + (m - p) h, m = 0 .. G + 2p. Inside [a, b] exactly p + 1 of them are not zero, and they sum to one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.precision import at_least_float32

Tail = Literal["linear", "clamp", "zero"]


def two_numbers(grid_range: Any) -> tuple[float, float]:
    """A range as (low, high).

    Raises:
        ConfigError: it is not two numbers.
    """
    try:
        low, high = map(float, grid_range)
    except (TypeError, ValueError):
        raise ConfigError(f"grid_range: expected two numbers (low, high), got {grid_range!r}") from None
    return low, high


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number, of Python or numpy, and at least that; 2.0 and True are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


@dataclass(frozen=True)
class SplineGrid:
    """A uniform spline space.

    Attributes:
        size: G, number of cells, at least 1.
        order: p, the degree: 1, 2 or 3.
        low: a, left end in units of the input.
        high: b, right end.
        tail: what a function does outside [a, b]: `linear` goes on with the slope at the end, `clamp` keeps the value,
            `zero` lets the basis fade over p cells and is zero beyond.

    Raises:
        ConfigError: a value out of its range.
    """

    size: int
    order: int = 3
    low: float = -3.0
    high: float = 3.0
    tail: Tail = "linear"

    def __post_init__(self) -> None:
        if not is_whole(self.size, 1):
            raise ConfigError(f"grid_size: expected a whole number of cells, at least 1, got {self.size!r}")
        if not is_whole(self.order, 1) or self.order > 3:
            raise ConfigError(f"spline_order: expected 1, 2 or 3, got {self.order!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"grid_range: expected two finite numbers low < high, got ({self.low}, {self.high})")
        if self.tail not in get_args(Tail):
            raise ConfigError(f"tail: expected linear, clamp or zero, got {self.tail!r}")

    @property
    def basis(self) -> int:
        """n = G + p, number of basis functions."""
        return self.size + self.order

    @property
    def step(self) -> float:
        """h = (b - a) / G."""
        return (self.high - self.low) / self.size

    def resized(self, size: int) -> "SplineGrid":
        """The same space on another number of cells."""
        return replace(self, size=size)


def bspline_basis(
    x: Tensor,
    grid_size: int,
    spline_order: int = 3,
    grid_range: Sequence[float] = (-3.0, 3.0),
    tail: Tail = "linear",
) -> Tensor:
    """Values of all basis functions, in closed form and without recursion; differentiable any number of times.

    Each basis function is the centred B-spline N_p of its offset z = t - (k - p) - (p + 1) / 2, t = (x - a) / h; N_3 is
    [(2 - |z|)_+^3 - 4 (1 - |z|)_+^3] / 6 (Unser, IEEE Signal Processing Magazine 16(6), 1999, eq. 4).

    Args:
        x: (...), any real dtype, in units of `grid_range`; evaluated in at least float32.
        grid_size: G, cells on `grid_range`.
        spline_order: p, 1, 2 or 3.
        grid_range: (a, b).
        tail: outside [a, b], see `SplineGrid`.

    Returns:
        (..., G + p) float32, or float64 for float64. NaN stays NaN.

    Raises:
        ConfigError: a value out of its range.
    """
    low, high = two_numbers(grid_range)
    return dense_basis(x, SplineGrid(grid_size, spline_order, low, high, tail))


def dense_basis(x: Tensor, grid: SplineGrid) -> Tensor:
    """`bspline_basis` for a `SplineGrid`: only choices, relu and products, so that it fuses and exports.

    Where a derivative jumps, at a knot or an end, it is that of the cell on the right, at b that of the last cell.

    Args:
        x: (...) real.

    Returns:
        (..., n) float32 or float64.
    """
    x = at_least_float32(x)
    inside = x if grid.tail == "zero" else within(x, grid)
    p = grid.order
    functions = torch.arange(grid.basis, device=x.device, dtype=x.dtype)
    t = (inside - grid.low) * (grid.size / (grid.high - grid.low))
    z = t.unsqueeze(-1) - (functions - (p - (p + 1) / 2))
    if p == 3:  # twice differentiable, whatever the derivative of relu at 0
        values = centred(torch.where(z < 0, -z, z), p)
    else:
        values = _by_piece(z, functions - _cell(t.detach(), grid).unsqueeze(-1), p)
    if grid.tail == "linear":
        ends = torch.tensor(end_slopes(grid), device=x.device, dtype=x.dtype)
        below, above = torch.relu(grid.low - x), torch.relu(x - grid.high)
        values = values + above.unsqueeze(-1) * ends[1] - below.unsqueeze(-1) * ends[0]
    return values


def within(x: Tensor, grid: SplineGrid) -> Tensor:
    """x on [a, b], NaN as it is; at the ends differentiable as inside, where `torch.clamp` has the derivative 0."""
    return torch.where((x >= grid.low) & (x <= grid.high), x, x.clamp(grid.low, grid.high))


def centred(distance: Tensor, order: int) -> Tensor:
    """N_p(z), the B-spline of degree p centred at 0, for knots one apart, of |z|."""
    if order == 1:
        return torch.relu(1 - distance)
    if order == 2:
        outer, inner = torch.relu(1.5 - distance), torch.relu(0.5 - distance)
        return (outer * outer - 3 * (inner * inner)) / 2
    outer, inner = torch.relu(2 - distance), torch.relu(1 - distance)
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6


def _by_piece(z: Tensor, ahead: Tensor, order: int) -> Tensor:
    """`centred` of degree 1 or 2 with the derivatives of the cell's own polynomials, at its left knot too.

    Args:
        z: (..., n) offsets from the functions' centres.
        ahead: like it, k - m: 0 .. p for the functions that live in cell m.
    """
    if order == 1:
        return _moving(1 - z.abs(), torch.where(ahead > 0, z, -z), (ahead == 0) | (ahead == 1))
    nearness = torch.where(z < 0, z, -z)
    outer = _moving(1.5 + nearness, nearness, (ahead >= 0) & (ahead <= 2))
    inner = _moving(0.5 + nearness, nearness, ahead == 1)
    return (outer * outer - 3 * (inner * inner)) / 2


def _moving(line: Tensor, way: Tensor, live: Tensor) -> Tensor:
    """relu(line), with the derivative of `way` where live, else none: t is rounded, and may leave its cell by a bit."""
    return torch.relu(line).detach() + torch.where(live, way - way.detach(), 0)


def end_slopes(grid: SplineGrid) -> list[list[float]]:
    """Slopes of all basis functions at a and at b, two lists of n numbers, per unit of the input."""
    at_zero = {1: [-1.0, 1.0], 2: [-1.0, 1.0, 0.0], 3: [-0.5, 0.0, 0.5, 0.0]}[grid.order]
    scaled = [s / grid.step for s in at_zero]
    rest = [0.0] * (grid.size - 1)
    return [scaled + rest, rest + [-s for s in reversed(scaled)]]


def locate(x: Tensor, grid: SplineGrid) -> tuple[Tensor, Tensor]:
    """The cell of every value and the place in it.

    Args:
        x: (...) float32 or float64, already clamped to the range unless the tail is `zero`.

    Returns:
        cell m int64 in [0, G - 1] (with tail `zero` in [-p - 1, G + p]) and u = t - m, in [0, 1] inside the cells. The
        functions m .. m + p are the ones that are not zero. NaN gives some cell and u = NaN.
    """
    t = (x - grid.low) * (grid.size / (grid.high - grid.low))
    cell = _cell(t, grid)
    return torch.nan_to_num(cell, nan=0.0).long(), t.sub_(cell)


def _cell(t: Tensor, grid: SplineGrid) -> Tensor:
    """The cell m of t = (x - a) / h, like t; NaN stays NaN."""
    margin = grid.order + 1 if grid.tail == "zero" else 0
    return t.floor().clamp_(-margin, grid.size - 1 + margin)


def local_values(u: Tensor, order: int, out: Tensor) -> None:
    """Writes the p + 1 values that are not zero into out (..., p + 1).

    Args:
        u: (...) place in the cell.
    """
    v = 1 - u
    if order == 1:
        out[..., 0], out[..., 1] = v, u
        return
    if order == 2:
        torch.mul(v, v, out=v)
        square = u * u
        out[..., 0], out[..., 2] = v.mul_(0.5), square.mul_(0.5)
        out[..., 1] = 1 - v - square
        return
    first, last = (v * v).mul_(v).div_(6), (u * u).mul_(u).div_(6)
    out[..., 0], out[..., 3] = first, last
    # (3u^3 - 6u^2 + 4) / 6 = 3 u^3/6 - u^2 + 2/3; the other by partition of unity would cost accuracy near u = 1
    out[..., 1] = (last * 3).addcmul_(u, u, value=-1).add_(2 / 3)
    out[..., 2] = (first * 3).addcmul_(v, v, value=-1).add_(2 / 3)


def local_slopes(u: Tensor, order: int, out: Tensor) -> None:
    """Writes the same functions' slopes, per cell (divide by h for the slope in x), into out (..., p + 1)."""
    v = 1 - u
    if order == 1:
        out[..., 0], out[..., 1] = torch.full_like(u, -1), torch.ones_like(u)
        return
    if order == 2:
        out[..., 0], out[..., 1], out[..., 2] = -v, v - u, u
        return
    out[..., 0], out[..., 3] = (v * v).mul_(-0.5), (u * u).mul_(0.5)
    out[..., 1] = u * (1.5 * u - 2)
    out[..., 2] = v * (2 - 1.5 * v)


# ---------------------------------------------------------------------- coefficients


def greville(grid: SplineGrid) -> Tensor:
    """Greville abscissae xi_k = a + (k - (p - 1) / 2) h, (n,) float64: as coefficients they give exactly f(x) = x."""
    k = torch.arange(grid.basis, dtype=torch.float64, device="cpu")
    return grid.low + (k - (grid.order - 1) / 2) * grid.step


def refinement_matrix(grid: SplineGrid, factor: int) -> Tensor:
    """The exact knot insertion that cuts every cell into `factor` parts: c' = M c (the two-scale relation for r = 2).

    N_p(t) = sum_j s_j N_p(r t - j), where s is p + 1 boxes of length r convolved and divided by r^p: 1, 4, 6, 4, 1 over
    8 for p = 3, r = 2 (de Boor, A Practical Guide to Splines, 2001, chapter 11).

    Args:
        grid: the coarse space.
        factor: r, at least 1.

    Returns:
        M (r G + p, G + p) float64, not negative, rows summing to 1.

    Raises:
        ConfigError: a factor below 1 or not whole.
    """
    if not is_whole(factor, 1):
        raise ConfigError(f"factor: expected a whole number, at least 1, got {factor!r}")
    mask = torch.ones(1, dtype=torch.float64, device="cpu")
    for _ in range(grid.order + 1):
        padded = torch.nn.functional.pad(mask, (factor - 1, factor - 1))
        mask = padded.unfold(0, factor, 1).sum(1)
    mask = mask / factor**grid.order
    matrix = mask.new_zeros(grid.size * factor + grid.order, grid.basis)
    for coarse in range(grid.basis):
        for j, weight in enumerate(mask):
            fine = factor * (coarse - grid.order) + j + grid.order
            if 0 <= fine < len(matrix):
                matrix[fine, coarse] = weight
    return matrix


def quadrature(grid: SplineGrid, *others: SplineGrid) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on the grid's range, exact for products of functions of the given grids.

    Returns:
        points (Q,) and weights (Q,) summing to 1, float64.
    """
    import numpy as np

    knots = [grid.low + grid.step * m for m in range(grid.size + 1)]
    for other in others:
        knots += [other.low + other.step * m for m in range(-other.order, other.size + other.order + 1)]
    edges = torch.tensor(sorted({min(max(k, grid.low), grid.high) for k in knots}), dtype=torch.float64, device="cpu")
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(grid.order + 1))
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    points = middle[:, None] + half[:, None] * nodes
    mass = half[:, None] * weights / (grid.high - grid.low)
    return points.reshape(-1), mass.reshape(-1)


def uniform_moments(grid: SplineGrid) -> tuple[Tensor, Tensor]:
    """E[B] (n,) and E[B B^T] (n, n), float64, for an input spread evenly over [a, b]; exact."""
    points, mass = quadrature(grid)
    values = dense_basis(points, grid)
    return mass @ values, (values * mass[:, None]).T @ values


def projection_matrix(
    source: SplineGrid, target: SplineGrid, gram: Tensor | None = None, cross: Tensor | None = None, ridge: float = 1e-6
) -> Tensor:
    """The least-squares map of coefficients between any two spline spaces: c' = P c minimises E[(B'^T c' - B^T c)^2].

    The expectation is over the data (`gram` and `cross`) plus `ridge` times an even spread over the target's range, so
    that cells without data follow the old function instead of an arbitrary one, and the solution is always finite.

    Args:
        source: space of c.
        target: space of c'.
        gram: E[B' B'^T], (..., n', n') float64; None: the even spread alone.
        cross: E[B' B^T], (..., n', n) float64.
        ridge: weight of the even spread beside data.

    Returns:
        P (..., n', n) float64.

    Raises:
        ConfigError: only one of `gram` and `cross` is given, or they are not finite.
    """
    if (gram is None) != (cross is None):
        raise ConfigError("projection_matrix: give both gram and cross, or neither")
    points, mass = quadrature(target, source)
    new, old = dense_basis(points, target), dense_basis(points, source)
    flat_gram = (new * mass[:, None]).T @ new
    flat_cross = (new * mass[:, None]).T @ old
    if gram is None or cross is None:
        return torch.cholesky_solve(flat_cross, torch.linalg.cholesky(flat_gram))
    gram, cross = gram.double(), cross.double()
    weight = torch.full_like(gram[..., :1, :1], ridge)
    # values far outside the grid are large, and nearly the same function: there the even spread must weigh more
    size = (_trace(gram) / _trace(flat_gram)).clamp_min(1)
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(gram + weight * flat_gram)
        if not failed.any():
            return torch.cholesky_solve(cross + weight * flat_cross, factor)
        weight = torch.where(failed[..., None, None] > 0, 10 * torch.maximum(weight, ridge * size / 10), weight)
    raise ConfigError("gram: expected the moments of finite inputs; look at the layer's input for NaN or infinity")


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def projection_error(source: SplineGrid, target: SplineGrid, projection: Tensor) -> float:
    """Worst relative root-mean-square error of a projection over the source's functions, even spread, in [0, 1].

    It is the largest generalised singular value of (B'^T P - B^T) against B.
    """
    points, mass = quadrature(target, source)
    new, old = dense_basis(points, target), dense_basis(points, source)
    residual = (new @ projection.to(new) - old) * mass.sqrt()[:, None]
    norm = (old * mass[:, None]).T @ old
    norm = norm + 1e-12 * norm.diagonal().mean() * torch.eye(len(norm), dtype=norm.dtype, device=norm.device)
    factor = torch.linalg.cholesky(norm)
    whitened = torch.linalg.solve_triangular(factor, residual.T, upper=False)
    return float(torch.linalg.matrix_norm(whitened, 2))
