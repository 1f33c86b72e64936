"""Coefficients of splines: allocated once, mapped linearly when the grid changes, stored with their grid."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn.modes import followed
from framework.nn.precision import without_autocast
from framework.nn.splines.bspline import (
    SplineGrid,
    greville,
    is_whole,
    projection_matrix,
    refinement_matrix,
    two_numbers,
)
from framework.nn.splines.expansion import Route, expand
from framework.nn.splines.low_rank import first_shapes
from framework.nn.splines.options import SplineOptions
from framework.nn.splines.stored import StoredCoefficients, grid_code


class SplineCoefficients(StoredCoefficients):
    """What every edge's spline is made of: edge (o, c, i, j) is phi(x) = sum_k w[k, o, c, i, j] B_k(x) (+ base).

    The coefficients are allocated once for `max_grid_size`; a grid is their prefix, and everything that changes a grid
    is one linear map of that prefix. A parameter never changes its shape or identity.

    Attributes:
        coefficients: parameter (max_grid_size + p, out, in / groups, *kernel) float, in units of the output. With a
            `rank` they are computed from two parameters, `shapes` (max_grid_size + p, R, in) and `mix` (R, out,
            in / groups, *kernel).
        base_weight: parameter (out, in / groups, *kernel), or None without a base branch.
        bias: parameter (out,), or None.
        mask: buffer (out, in / groups, *kernel) of the parameters' dtype: 1 for a live edge, anything less for a pruned
            one, so that an average of masks (AveragedModel) has no edge that one of them lacks. `live` is it as bool.
        grid: the spline space in use.
        grid_code: buffer (4,), four bytes that stand for `grid`. A copy of the layer whose tensors were averaged with
            or copied from those of a layer on another grid finds them changed, and refuses to run.
        max_grid_size: the most cells there is room for.
    """

    mask: Tensor
    grid_code: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        groups: int,
        bias: bool,
        options: SplineOptions,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        numbers = (in_channels, out_channels, groups)
        if not all(is_whole(n, 1) for n in numbers) or in_channels % groups or out_channels % groups:
            raise ConfigError(
                "in_channels, out_channels, groups: expected positive numbers, both channel numbers divisible by "
                f"groups, got {in_channels}, {out_channels}, {groups}"
            )
        self.max_grid_size = options.room
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.base, self.implementation = options.base, options.implementation
        self._first_grid_size = options.grid_size
        kwargs = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *kernel)
        rows, self.rank = self.max_grid_size + options.spline_order, options.rank
        if self.rank is None:
            self.coefficients = nn.Parameter(torch.empty((rows, *shape), **kwargs))
        else:
            self.shapes = nn.Parameter(torch.empty((rows, self.rank, in_channels), **kwargs))
            self.mix = nn.Parameter(torch.empty((self.rank, *shape), **kwargs))
        self.base_weight = nn.Parameter(torch.empty(shape, **kwargs)) if self.base is not None else None
        self.bias = nn.Parameter(torch.empty(out_channels, **kwargs)) if bias else None
        self.register_buffer("mask", torch.empty(shape, **kwargs))
        self.register_buffer("grid_code", torch.empty(4, dtype=torch.float32, device=device))
        self.grid = options.grid
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as a plain layer: w = V xi with Greville abscissae xi gives phi(x) = V x exactly, on any grid.

        V is normal with variance 1 / fan-in (He et al. 2015, without a nodal activation); base and bias start at zero.
        Independent noise would make gradients grow like 1 / h from layer to layer.
        """
        with torch.no_grad():
            self.mask.fill_(1)
            self.grid = self.grid  # after to_empty the code of it is lost
            edges = torch.empty_like(self.mask)
            edges.normal_(std=1 / math.sqrt(self.mask[0].numel()))
            if self.rank is not None:
                self.shapes.zero_()
                self.shapes[: self.basis] = first_shapes(self.grid, self.rank).to(self.shapes).unsqueeze(-1)
                self.mix.zero_()
                self.mix[0] = edges
            else:
                self.coefficients.zero_()
                self.coefficients[: self.basis] = self.lines(edges)
            for rest in (self.base_weight, self.bias):
                if rest is not None:
                    rest.zero_()

    def lines(self, slopes: Tensor) -> Tensor:
        """Coefficients of phi(x) = V x, exact on any grid: w = V xi with the Greville abscissae xi.

        Args:
            slopes: V (out, in / groups, *kernel), the weight of a plain layer.

        Returns:
            (n, out, in / groups, *kernel).
        """
        return greville(self.grid).to(slopes).view(-1, *[1] * slopes.ndim) * slopes

    @property
    def grid(self) -> SplineGrid:
        """The spline space in use."""
        return self._grid

    @grid.setter
    def grid(self, grid: SplineGrid) -> None:
        self._grid = grid
        with torch.no_grad():
            self.grid_code.copy_(torch.tensor(grid_code(grid), dtype=torch.float32, device="cpu"))

    @property
    def live(self) -> Tensor:
        """(out, in / groups, *kernel) bool; False marks a pruned edge."""
        return self.mask == 1

    @property
    def grid_size(self) -> int:
        """G, cells in use."""
        return self.grid.size

    @property
    def basis(self) -> int:
        """n = G + p, coefficients in use per edge."""
        return self.grid.basis

    def extend_grid(self, factor: int = 2) -> Tensor:
        """Cuts every cell into `factor` by exact knot insertion; the layer's function on [a, b] stays the same.

        Outside it stays with the tails `linear` and `clamp`. With `zero` it does not, which is a warning: the basis
        fades over p cells, and these are shorter now.

        Args:
            factor: at least 2.

        Returns:
            M (n', n) float64 with c' = M c, for the optimizer's moments.

        Raises:
            ConfigError: a factor below 2, or no room for the new grid.
        """
        if not isinstance(factor, int) or factor < 2:
            raise ConfigError(f"factor: expected a whole number, at least 2, got {factor!r}")
        target = self.grid.resized(self.grid_size * factor)
        self._check_room(target)
        matrix = refinement_matrix(self.grid, factor)
        if self.grid.tail == "zero":
            warnings.warn(
                f"tail: with zero a layer fades over {self.grid.order} cells outside ({self.grid.low}, "
                f"{self.grid.high}), which a finer grid makes shorter: its function changes there; with linear and "
                "clamp it stays the same",
                stacklevel=2,
            )
        self._apply_map(matrix, target)
        return matrix

    def refit_grid(
        self,
        grid_size: int | None = None,
        grid_range: Sequence[float] | None = None,
        gram: Tensor | None = None,
        cross: Tensor | None = None,
    ) -> Tensor:
        """Moves to any other grid by least squares: another range, a size that is no multiple, a coarser grid.

        Args:
            grid_size: new G; None keeps it.
            grid_range: new (a, b); None keeps it.
            gram: E[B' B'^T] of the new basis over the layer's inputs, (in, n', n') float64; None: evenly spread input.
            cross: E[B' B^T] of the new basis with the old, (in, n', n) float64. `CrossMoments` accumulates both.

        Returns:
            P (n', n), or (in, n', n) when the data decide, float64.

        Raises:
            ConfigError: a grid that cannot be, or no room for it.
        """
        low, high = (self.grid.low, self.grid.high) if grid_range is None else two_numbers(grid_range)
        size = self.grid_size if grid_size is None else grid_size
        target = SplineGrid(size, self.grid.order, low, high, self.grid.tail)
        self._check_room(target)
        matrix = projection_matrix(self.grid, target, gram, cross)
        self._apply_map(matrix, target)
        return matrix

    def map_coefficients(self, matrix: Tensor, values: Tensor) -> Tensor:
        """The linear map of a grid change on anything shaped like the coefficients.

        Args:
            matrix: (n', n), or (in, n', n) for a map per input channel.
            values: (n or more, out, in / groups, *kernel), of which the first n are mapped.

        Returns:
            like `values`; zeros behind the first n'.
        """
        rows, columns = matrix.shape[-2:]
        flat = values.new_zeros(values.shape)
        old = values[:columns].double().reshape(columns, self.groups, -1, self.in_channels // self.groups, self._area)
        matrix = matrix.to(old)
        if matrix.ndim == 2:
            new = torch.einsum("mn,ngock->mgock", matrix, old)
        else:
            new = torch.einsum("gcmn,ngock->mgock", matrix.unflatten(0, (self.groups, -1)), old)
        flat[:rows] = new.reshape(rows, *values.shape[1:]).to(values.dtype)
        return flat

    @property
    def _area(self) -> int:
        return math.prod(self.mask.shape[2:])

    def _apply_map(self, matrix: Tensor, target: SplineGrid) -> None:
        self.own_parameters()
        with torch.no_grad():
            self.coefficients.copy_(self.map_coefficients(matrix, self.coefficients))
        self.grid = target

    def _check_room(self, target: SplineGrid) -> None:
        if target.size > self.max_grid_size:
            raise ConfigError(
                f"grid_size: there is room for {self.max_grid_size} cells, {target.size} were asked for; "
                f"build the layer with max_grid_size: {target.size} or more"
            )

    # ------------------------------------------------------------------ what the edges see and hold

    def channels_last(self, x: Tensor) -> Tensor:
        """The layer's input as (..., in), a view."""
        raise NotImplementedError

    def lift(self, x: Tensor) -> Tensor:
        """Basis (and base) values of every input, (...) -> (..., n) or (..., n + 1), see `expand`."""
        self.check_grid()
        self.check_spare_rows()
        stored = self.coefficients if self.rank is None else self.shapes  # with a rank all edges would be composed
        return expand(x, self.grid, self.base, self._route(x), stored.dtype)

    def _route(self, x: Tensor) -> Route:
        if followed():
            # what compilers fuse and exporters take; the operator stands in a compiled graph where it is asked for
            compiled = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
            return "operator" if self.implementation == "operator" and compiled else "dense"
        if self.implementation == "auto" or self.implementation == "recompute":
            return "scatter" if x.device.type == "cpu" else "operator"
        return self.implementation

    def edge_coefficients(self) -> Tensor:
        """Coefficients, zero for pruned edges, the base weight last: (n (+ 1), out, in / groups, *kernel)."""
        return joined(self.coefficients, self.base_weight, self.mask, self.basis)

    def edge_values(self, points: Tensor) -> Tensor:
        """phi at some points: (Q,) -> (Q, out, in / groups, *kernel), at least float32, under autocast too."""
        with without_autocast(self.mask.device.type):
            edges = self.edge_coefficients()
            points = points.to(edges.device, torch.promote_types(points.dtype, edges.dtype))
            values = expand(points, self.grid, self.base, "dense")
            return torch.tensordot(values, edges.to(values), dims=([-1], [0]))


def joined(coefficients: Tensor, base_weight: Tensor | None, mask: Tensor, basis: int) -> Tensor:
    """The coefficients in use, zero for pruned edges, the base weight last: (n (+ 1), out, in / groups, *kernel)."""
    alive = (mask == 1).to(coefficients.dtype)  # numbers by numbers is the quicker product, there and back
    live = coefficients[:basis] * alive
    return live if base_weight is None else torch.cat([live, (base_weight * alive).unsqueeze(0)])
