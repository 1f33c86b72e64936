"""Spline coefficients in a state_dict: the grid goes with them, and files of other grids load."""

import functools
import warnings
import weakref
import zlib
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from framework.errors import CheckpointError, ConfigError
from framework.nn.modes import Layer, followed, has_values
from framework.nn.splines.bspline import SplineGrid, projection_error, projection_matrix, refinement_matrix
from framework.nn.splines.expansion import Base
from framework.nn.splines.low_rank import compose, factorise, first_shapes, weighted_gram

# where parametrisations, torch's pruning and its older weight norm keep what the coefficients are computed from
_COMPUTED = tuple(
    name
    for part in ("coefficients", "shapes", "mix")
    for name in (f"parametrizations.{part}.", f"{part}_orig", f"{part}_g", f"{part}_v")
)

#: the grid code that a layer was last found right with, where looking at it waits for an accelerator
_FOUND_RIGHT: weakref.WeakKeyDictionary[nn.Module, tuple[Any, ...]] = weakref.WeakKeyDictionary()


class StoredCoefficients(Layer):
    """How coefficients, their grid and its code are stored and loaded; see `SplineCoefficients`."""

    coefficients: Tensor
    grid_code: Tensor
    _grid: SplineGrid
    _first_grid_size: int
    max_grid_size: int
    rank: int | None
    base: Base | None
    groups: int

    def __getattr__(self, name: str) -> Any:
        if name == "coefficients" and self.__dict__.get("rank") is not None:
            return compose(cast(Tensor, self.shapes), cast(Tensor, self.mix), self.groups)
        return super().__getattr__(name)

    @property
    def grid(self) -> SplineGrid:
        """The spline space in use."""
        return self._grid

    def map_coefficients(self, matrix: Tensor, values: Tensor) -> Tensor:
        """The linear map of a grid change on anything shaped like the coefficients."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The coefficients, by the name that torch's layers give theirs."""
        return self.coefficients

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's; raises ConfigError where torch's pruning takes `weight`, an alias, for a parameter."""
        if name == "weight_orig":
            raise ConfigError(
                "name: expected `coefficients` (with a rank `shapes` or `mix`), the parameter to prune, got its alias "
                "`weight`; give the parameter's name, or use prune_edges"
            )
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # coefficients of a convolution have five dimensions, which `.to(memory_format=torch.channels_last)` takes for a
        # volume's; their order in memory is the grid's
        def flat(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(2)).unflatten(2, tensor.shape[2:]) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(flat, recurse)

    def own_parameters(self) -> None:
        """Checks that the coefficients are plain parameters, which alone can be changed in place.

        Raises:
            ConfigError: they are parametrised, pruned by torch, or of a low rank.
        """
        if self.rank is not None:
            raise ConfigError(
                f"rank: the edges of an input channel share {self.rank} shapes, so that neither the grid nor single "
                "edges can be changed; load the state_dict into a layer with rank: null, which takes it over exactly"
            )
        if "coefficients" not in self._parameters or (self.base is not None and "base_weight" not in self._parameters):
            raise ConfigError(
                "coefficients: they are computed from other parameters (torch.nn.utils.parametrize or prune), so that "
                "neither the grid nor the edges can be changed; take that off first (remove_parametrizations, "
                "prune.remove) and use prune_edges"
            )

    def check_grid(self) -> None:
        """Raises ConfigError where the tensors are not of this layer's grid any more."""
        code = self.grid_code
        if followed() or not has_values(code):
            return
        # reading a value waits for an accelerator, which training cannot afford; a copy is there to be evaluated
        if code.device.type != "cpu" and (self.training or capturing(code) or self._found_right(code)):
            return
        if self._is_of_another_grid(code):
            _FOUND_RIGHT.pop(self, None)
            raise ConfigError(
                f"grid: this layer is on {self.grid.size} cells, but its tensors were averaged with or copied from "
                "those of a layer on another grid; extend the copy's grid in the same step (GridExtension does), or "
                "load the layer's whole state_dict into it"
            )

    def check_spare_rows(self) -> None:
        """Raises ConfigError in training where a weight norm divides by the norms of spare rows, which are 0."""
        if "coefficients" in self._parameters or self.rank is not None or self.max_grid_size == self.grid.size:
            return
        if not (self.training and torch.is_grad_enabled()):
            return
        chains = cast(Any, self._modules.get("parametrizations", {}))
        of_torch = list(chains["coefficients"]) if "coefficients" in chains else []
        older = [hook for hook in self._forward_pre_hooks.values() if getattr(hook, "name", "") == "coefficients"]
        if any(isinstance(norm, _WeightNorm | WeightNorm) and norm.dim == 0 for norm in [*of_torch, *older]):
            raise ConfigError(
                f"max_grid_size: expected {self.grid.size}, the cells in use, under a weight norm of every row, got "
                f"{self.max_grid_size}: a spare row's norm is 0 and its gradient NaN; leave max_grid_size out (a "
                "normed layer cannot grow), or give weight_norm another dim"
            )

    def _found_right(self, code: Tensor) -> bool:
        """Whether the code is what it was when this was asked last; what is asked about anew must be looked at."""
        if code.is_inference():  # such a tensor does not count its changes
            return False
        now = (code.data_ptr(), code._version, self.grid)
        if _FOUND_RIGHT.get(self) == now:
            return True
        _FOUND_RIGHT[self] = now
        return False

    def get_extra_state(self) -> Tensor:
        """(G, p, a, b) as float64; an extra state is neither cast nor moved with the module."""
        numbers = [self.grid.size, self.grid.order, self.grid.low, self.grid.high]
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """The grid is taken over while loading, where the coefficients are at hand."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        stored = state_dict.get(f"{prefix}_extra_state")
        self._take_edges(state_dict, prefix, stored)
        coefficients = state_dict.get(f"{prefix}coefficients")
        fits = coefficients is not None and coefficients.shape[1:] == self.coefficients.shape[1:]
        own = "coefficients" in self._parameters or self.rank is not None
        if stored is not None and coefficients is not None and fits and own:
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
            self._grid = target
            if self.rank is not None:
                self._share_shapes(state_dict, prefix)
        elif stored is not None and _holds_computed(state_dict, prefix):
            self._refuse_another_grid(self.stored_grid(stored, prefix), prefix, errors)
        elif stored is None and self._is_of_another_grid(state_dict.get(f"{prefix}grid_code")):
            errors.append(
                f"{prefix}grid_code: expected that of the layer's grid, {self.grid.size} cells of ({self.grid.low}, "
                f"{self.grid.high}), got another one's without its numbers ({prefix}_extra_state); load a whole "
                "state_dict"
            )
        elif stored is None and fits and self.max_grid_size > self._first_grid_size:
            errors.append(
                f"{prefix}coefficients come without their grid ({prefix}_extra_state), and the layer has room for "
                f"{self._first_grid_size} to {self.max_grid_size} cells; load a whole state_dict"
            )
        # the code of the grid that is taken; files of before it have none
        place = state_dict.get(f"{prefix}mask", self.mask).device
        state_dict[f"{prefix}grid_code"] = torch.tensor(grid_code(self._grid), dtype=torch.float32, device=place)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _is_of_another_grid(self, code: Tensor | None) -> bool:
        """Whether a grid code is not this layer's; an average of equal codes is off by rounding only."""
        if code is None or not has_values(code):
            return False
        own = grid_code(self.grid)
        return code.shape != (len(own),) or any(abs(a - b) > 0.05 for a, b in zip(code.tolist(), own, strict=True))

    def _take_edges(self, state_dict: dict[str, Any], prefix: str, stored: Tensor | None) -> None:
        """Shapes of another rank or grid, or of any where this layer has none, become the edges' coefficients."""
        shapes, mix = state_dict.get(f"{prefix}shapes"), state_dict.get(f"{prefix}mix")
        if shapes is None or mix is None:
            return
        own = self._parameters.get("shapes")
        alike = own is not None and own.shape == shapes.shape
        if alike and (stored is None or self.stored_grid(stored, prefix) == self.grid):
            return
        groups = shapes.shape[2] // mix.shape[2]
        state_dict[f"{prefix}coefficients"] = compose(shapes, mix, groups)
        del state_dict[f"{prefix}shapes"], state_dict[f"{prefix}mix"]

    def _share_shapes(self, state_dict: dict[str, Any], prefix: str) -> None:
        """The loaded coefficients as shapes and mixtures of this layer's rank, and a warning of what is lost."""
        coefficients = state_dict.pop(f"{prefix}coefficients")
        wanted = coefficients[: self.grid.basis].double()
        gram = weighted_gram(self.grid)
        parts = factorise(wanted, cast(int, self.rank), self.groups, gram)
        lost = wanted - compose(*parts, self.groups)
        size, off = (torch.einsum("n...,nm,m...->", w, gram[0].to(w), w) for w in (wanted, lost))
        if (share := float(off / size.clamp_min(1e-300)) ** 0.5) > 1e-5:
            warnings.warn(
                f"{prefix.rstrip('.')}: edges of their own become mixtures of {self.rank} shapes per input channel, "
                f"which changes them by {share:.2%} of their size (root mean square, evenly spread inputs); train on, "
                "or give a larger rank",
                stacklevel=4,
            )
        for name, value in zip(("shapes", "mix"), parts, strict=True):
            own = self._parameters[name]
            room = coefficients.new_zeros(cast(Tensor, own).shape)
            if name == "shapes":  # shapes that are not needed stay what a layer starts with, or they could not learn
                first = first_shapes(self.grid, cast(int, self.rank)).to(room)
                room[: self.grid.basis] = first.unsqueeze(-1)
            room[tuple(map(slice, value.shape))] = value.to(room)
            state_dict[f"{prefix}{name}"] = room

    def _refuse_another_grid(self, source: SplineGrid, prefix: str, errors: list[str]) -> None:
        if source != self.grid:
            errors.append(
                f"{prefix}coefficients are computed from other parameters, stored on {source.size} cells of "
                f"({source.low}, {source.high}), and the layer is on {self.grid.size} of ({self.grid.low}, "
                f"{self.grid.high}); build it with grid_size: {source.size} before it is parametrised"
            )

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


def _holds_computed(state_dict: dict[str, Any], prefix: str) -> bool:
    """Whether a state has what coefficients are computed from in their place."""
    return any(key.startswith(tuple(prefix + name for name in _COMPUTED)) for key in state_dict)


def capturing(code: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which nothing may be read."""
    return code.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.lru_cache(maxsize=256)  # asked in every forward pass
def grid_code(grid: SplineGrid) -> tuple[float, ...]:
    """Four bytes, which 16-bit floats hold exactly."""
    return tuple(float(byte) for byte in zlib.crc32(repr(grid).encode()).to_bytes(4))


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
