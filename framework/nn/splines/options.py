"""What all spline layers can be told about their splines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, get_args

from framework.errors import ConfigError
from framework.nn.splines.bspline import SplineGrid, Tail, is_whole, two_numbers
from framework.nn.splines.expansion import Base, Implementation
from framework.nn.splines.low_rank import check_rank


@dataclass(frozen=True)
class SplineOptions:
    """The keyword arguments that spline layers share; see `KANConv2d`.

    Args:
        grid_size: G, cells on `grid_range`.
        max_grid_size: cells to allocate room for; None: no room to grow.
        spline_order: p, 1, 2 or 3.
        grid_range: (a, b) in units of the input.
        base: None, `silu` or `linear`.
        tail: `linear`, `clamp` or `zero`.
        implementation: `auto`, `dense`, `scatter`, `recompute` or `operator`.
        rank: R shapes that all edges of an input channel share; None: every edge has its own.

    Raises:
        ConfigError: a value out of its range.
    """

    grid_size: int = 5
    max_grid_size: int | None = None
    spline_order: int = 3
    grid_range: Sequence[float] = (-3.0, 3.0)
    base: Base | None = None
    tail: Tail = "linear"
    implementation: Implementation = "auto"
    rank: int | None = None

    def __post_init__(self) -> None:
        size = self.grid.size
        if not is_whole(self.room, 0):
            raise ConfigError(f"max_grid_size: expected a whole number of cells, got {self.max_grid_size!r}")
        if self.room < size:
            raise ConfigError(
                f"max_grid_size: expected at least grid_size = {self.grid_size}, got {self.max_grid_size}"
            )
        if self.base is not None and self.base not in get_args(Base):
            raise ConfigError(f"base: expected null, silu or linear, got {self.base!r}")
        if self.implementation not in get_args(Implementation):
            raise ConfigError(
                f"implementation: expected {', '.join(get_args(Implementation))}, got {self.implementation!r}"
            )
        if self.rank is not None:
            check_rank(self.rank)
            if self.rank > self.grid.basis:
                raise ConfigError(
                    f"rank: expected at most the {self.grid.basis} basis functions of the grid, got {self.rank}; give "
                    "null for edges of their own"
                )

    @property
    def grid(self) -> SplineGrid:
        """The spline space to start with."""
        low, high = two_numbers(self.grid_range)
        return SplineGrid(self.grid_size, self.spline_order, low, high, self.tail)

    @property
    def room(self) -> int:
        """Cells to allocate."""
        return self.grid_size if self.max_grid_size is None else self.max_grid_size


class SplineArguments(TypedDict, total=False):
    """The fields of `SplineOptions` as `**keywords`, for type checkers and editors."""

    grid_size: int
    max_grid_size: int | None
    spline_order: int
    grid_range: Sequence[float]
    base: Base | None
    tail: Tail
    implementation: Implementation
    rank: int | None
