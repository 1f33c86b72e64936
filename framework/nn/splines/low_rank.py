"""Edge functions that share R shapes per input channel: phi_ocij = sum_r mix_(r,o,c,i,j) shape_(r,c).

The coefficients of a channel are an (n, outputs x positions) matrix; R shapes are a factorisation of it of rank R (a CP
form over the edges of a channel, a Tucker form with its n axis compressed), exact where R is the matrix's rank. A
spline layer then lifts every channel to R values instead of n.
"""

import math

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.splines.bspline import SplineGrid, greville, is_whole, uniform_moments


def compose(shapes: Tensor, mix: Tensor, groups: int) -> Tensor:
    """Coefficients of all edges: shapes (n, R, C), mix (R, O, C / groups, *kernel) -> (n, O, C / groups, *kernel)."""
    split = mix.reshape(len(mix), groups, -1, mix.shape[2], math.prod(mix.shape[3:]))
    by_group = shapes.unflatten(2, (groups, -1))
    return torch.einsum("nrgc,rgock->ngock", by_group, split).reshape(len(shapes), *mix.shape[1:])


def factorise(coefficients: Tensor, rank: int, groups: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The best R shapes per input channel, in the norm that the inputs' distribution gives every edge.

    With L L^T the Gram matrix E[B B^T] of a channel, the mean squared error of its edges is |L^T (W - S M)|^2, which a
    truncated singular value decomposition of L^T W makes least (Eckart and Young 1936).

    Args:
        coefficients: W (n, O, C / groups, *kernel).
        rank: R, at least 1; more than the matrices have is cut to that.
        groups: of the layer.
        gram: (C or 1, n, n) float64, positive definite.

    Returns:
        shapes (n, R, C) and mix (R, O, C / groups, *kernel), float64. Shapes have a largest coefficient of 1.

    Raises:
        ConfigError: a rank below 1 or not whole.
    """
    check_rank(rank)
    n, out, inner, *kernel = coefficients.shape
    area = math.prod(kernel)
    split = coefficients.double().reshape(n, groups, out // groups, inner, area)
    matrices = split.permute(1, 3, 0, 2, 4).reshape(groups * inner, n, -1)  # (C, n, O / groups * positions)
    rank = min(rank, *matrices.shape[1:])
    factor = torch.linalg.cholesky(gram.to(matrices))
    left, values, right = torch.linalg.svd(factor.mT @ matrices, full_matrices=False)
    shapes = torch.linalg.solve_triangular(factor.mT, left[:, :, :rank], upper=True)
    mix = values[:, :rank, None] * right[:, :rank]
    size = shapes.abs().amax(1, keepdim=True).clamp_min(1e-300)
    shapes, mix = shapes / size, mix * size.mT
    mix = mix.reshape(groups, inner, rank, out // groups, area).permute(2, 0, 3, 1, 4)
    return shapes.permute(1, 2, 0).contiguous(), mix.reshape(rank, out, inner, *kernel).contiguous()


def first_shapes(grid: SplineGrid, rank: int) -> Tensor:
    """Shapes to start with, (n, R): x itself, then Legendre polynomials of degree 2, 3, ... of the grid's range.

    Coefficients are the functions' values at the Greville abscissae, which gives x exactly and the others nearly.
    """
    xi = greville(grid)
    unit = (2 * xi - grid.low - grid.high) / (grid.high - grid.low)
    before, last, shapes = torch.ones_like(unit), unit, [xi]
    for degree in range(2, rank + 1):
        before, last = last, ((2 * degree - 1) * unit * last - (degree - 1) * before) / degree
        shapes.append(last)
    return torch.stack(shapes, 1)


def check_rank(rank: int) -> None:
    """Raises ConfigError for a rank that is no whole number from 1."""
    if not is_whole(rank, 1):
        raise ConfigError(f"rank: expected a whole number of shapes per input channel, at least 1, got {rank!r}")


def weighted_gram(grid: SplineGrid, gram: Tensor | None = None, even: float = 1e-6) -> Tensor:
    """E[B B^T] of an input spread evenly over the grid, or of data with a little of that, so that it can be factorised.

    Args:
        grid: the spline space.
        gram: (C, n, n) float64 of the data.
        even: weight of the even spread beside data.
    """
    spread = uniform_moments(grid)[1]
    if gram is None:
        return spread[None]
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] / spread.trace()
    return gram + even * size.clamp_min(1) * spread.to(gram)
