"""Coefficients of splines: allocated once, mapped linearly when the grid changes, stored with their grid."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from framework.errors import CheckpointError, ConfigError
from framework.nn.modes import followed
from framework.nn.splines.bspline import (
    SplineGrid,
    Tail,
    greville,
    projection_error,
    projection_matrix,
    refinement_matrix,
)
from framework.nn.splines.expansion import Base, Implementation, expand


class SplineCoefficients(nn.Module):
    """What every edge's spline is made of: edge (o, c, i, j) is phi(x) = sum_k w[k, o, c, i, j] B_k(x) (+ base).

    The coefficients are allocated once for `max_grid_size`; a grid is their prefix, and everything that changes a grid
    is one linear map of that prefix. A parameter never changes its shape or identity.

    Attributes:
        coefficients: parameter (max_grid_size + p, out, in / groups, *kernel) float, in units of the output.
        base_weight: parameter (out, in / groups, *kernel), or None without a base branch.
        bias: parameter (out,), or None.
        mask: buffer (out, in / groups, *kernel) bool; False marks a pruned edge.
        grid: the spline space in use.
        max_grid_size: the most cells there is room for.
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        groups: int,
        bias: bool,
        device: Any,
        dtype: Any,
        *,
        grid_size: int,
        max_grid_size: int | None,
        spline_order: int,
        grid_range: Sequence[float],
        base: Base | None,
        tail: Tail,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        if len(tuple(grid_range)) != 2:
            raise ConfigError(f"grid_range: expected two numbers (low, high), got {grid_range!r}")
        self.grid = SplineGrid(grid_size, spline_order, float(grid_range[0]), float(grid_range[1]), tail)
        self.max_grid_size = grid_size if max_grid_size is None else max_grid_size
        if self.max_grid_size < grid_size:
            raise ConfigError(f"max_grid_size: expected at least grid_size = {grid_size}, got {max_grid_size}")
        if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"in_channels, out_channels, groups: expected positive numbers, both channel numbers divisible by "
                f"groups; got {in_channels}, {out_channels}, {groups}"
            )
        if base is not None and base not in get_args(Base):
            raise ConfigError(f"base: expected null, silu or linear, got {base!r}")
        if implementation not in get_args(Implementation):
            raise ConfigError(f"implementation: expected auto, dense, scatter or recompute, got {implementation!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.base, self.implementation = base, implementation
        self._first_grid_size = grid_size
        kwargs = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *kernel)
        self.coefficients = nn.Parameter(torch.empty((self.max_grid_size + spline_order, *shape), **kwargs))
        self.base_weight = nn.Parameter(torch.empty(shape, **kwargs)) if base is not None else None
        self.bias = nn.Parameter(torch.empty(out_channels, **kwargs)) if bias else None
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as a plain layer: w = V xi with Greville abscissae xi gives phi(x) = V x exactly, on any grid.

        V is normal with variance 1 / fan-in (He et al. 2015, without a nodal activation); base and bias start at zero.
        Independent noise would make gradients grow like 1 / h from layer to layer.
        """
        with torch.no_grad():
            edges = self.coefficients.new_empty(self.mask.shape)
            edges.normal_(std=1 / math.sqrt(self.mask[0].numel()))
            xi = greville(self.grid).to(edges)
            self.coefficients.zero_()
            self.coefficients[: self.basis] = xi.view(-1, *[1] * edges.ndim) * edges
            for rest in (self.base_weight, self.bias):
                if rest is not None:
                    rest.zero_()

    # ------------------------------------------------------------------ the grid

    @property
    def grid_size(self) -> int:
        """G, cells in use."""
        return self.grid.size

    @property
    def basis(self) -> int:
        """n = G + p, coefficients in use per edge."""
        return self.grid.basis

    def extend_grid(self, factor: int = 2) -> Tensor:
        """Cuts every cell into `factor` by exact knot insertion; the layer's function stays the same.

        Args:
            factor: at least 2.

        Returns:
            M (n', n) float64 with c' = M c, for the optimizer's moments.

        Raises:
            ConfigError: a factor below 2, or no room for the new grid.
        """
        if factor < 2:
            raise ConfigError(f"factor: expected a whole number, at least 2, got {factor!r}")
        target = self.grid.resized(self.grid_size * factor)
        self._check_room(target)
        matrix = refinement_matrix(self.grid, factor)
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
        low, high = (self.grid.low, self.grid.high) if grid_range is None else map(float, grid_range)
        target = SplineGrid(grid_size or self.grid_size, self.grid.order, low, high, self.grid.tail)
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
        route = self.implementation
        if followed():
            route = "dense"  # what compilers fuse; their own partitioner decides what to keep for the backward pass
        return expand(x, self.grid, self.base, "dense" if route == "dense" else "scatter", self.coefficients.dtype)

    def edge_coefficients(self) -> Tensor:
        """Coefficients, zero for pruned edges, the base weight last: (n (+ 1), out, in / groups, *kernel)."""
        return joined(self.coefficients, self.base_weight, self.mask, self.basis)

    def edge_values(self, points: Tensor) -> Tensor:
        """phi at some points: (Q,) -> (Q, out, in / groups, *kernel), at least float32, under autocast too."""
        with torch.autocast(self.coefficients.device.type, enabled=False):
            points = points.to(self.coefficients.device, torch.promote_types(points.dtype, self.coefficients.dtype))
            values = expand(points, self.grid, self.base, "dense")
            return torch.tensordot(values, self.edge_coefficients().to(values), dims=([-1], [0]))

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> Tensor:
        """(G, p, a, b) as float64; an extra state is neither cast nor moved with the module."""
        return torch.tensor([self.grid.size, self.grid.order, self.grid.low, self.grid.high], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """The grid is taken over while loading, where the coefficients are at hand."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        stored = state_dict.get(f"{prefix}_extra_state")
        coefficients = state_dict.get(f"{prefix}coefficients")
        if stored is not None and coefficients is not None and coefficients.shape[1:] == self.coefficients.shape[1:]:
            source = self.stored_grid(stored, prefix)
            target = self.loading_grid(source)
            matrix = transfer_matrix(source, target, prefix)
            room = coefficients.new_zeros(self.coefficients.shape)
            if matrix is None:
                room[: source.basis] = coefficients[: source.basis]
            else:
                padded = torch.cat([coefficients[: source.basis], room])[: max(len(room), source.basis)]
                room = self.map_coefficients(matrix, padded)[: len(room)]
            state_dict[f"{prefix}coefficients"] = room
            self.grid = target
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def stored_grid(self, stored: Tensor, name: str) -> SplineGrid:
        """The grid of a state dict's entry.

        Raises:
            CheckpointError: it has another spline order.
        """
        size, order, low, high = stored.tolist()
        if int(order) != self.grid.order:
            raise CheckpointError(
                f"spline_order: the checkpoint's {name.rstrip('.')} has degree {int(order)}, the layer has "
                f"{self.grid.order}; degrees cannot be converted, give model.spline_order: {int(order)}"
            )
        return SplineGrid(int(size), int(order), low, high, self.grid.tail)

    def loading_grid(self, source: SplineGrid) -> SplineGrid:
        """The grid that the layer takes for a stored one: the stored one, within what it was built for."""
        return source.resized(max(self._first_grid_size, min(source.size, self.max_grid_size)))


def joined(coefficients: Tensor, base_weight: Tensor | None, mask: Tensor, basis: int) -> Tensor:
    """The coefficients in use, zero for pruned edges, the base weight last: (n (+ 1), out, in / groups, *kernel)."""
    live = coefficients[:basis] * mask
    return live if base_weight is None else torch.cat([live, (base_weight * mask).unsqueeze(0)])


def transfer_matrix(source: SplineGrid, target: SplineGrid, name: str) -> Tensor | None:
    """The map between two grids of one range: exact where the target's knots hold the source's, else least squares.

    Returns:
        (n', n) float64, or None for equal grids. A map that is not exact is a warning that states its error.
    """
    if source.size == target.size:
        return None
    if target.size % source.size == 0:
        return refinement_matrix(source, target.size // source.size)
    matrix = projection_matrix(source, target)
    warnings.warn(
        f"{name.rstrip('.')}: {source.size} grid cells do not fit into {target.size}; the least-squares projection "
        f"changes a spline by at most {projection_error(source, target, matrix):.2%} of its size (root mean square). "
        f"Give max_grid_size: {source.size} or more to keep it",
        stacklevel=3,
    )
    return matrix
