"""What an optimizer must know when spline coefficients change: moments through a grid change, rates, removed edges.

A grid change c' = M c turns gradients into g = M^T g'. A fine basis function carries about 1 / r of the mass, so that
g' is about M g / r: first moments become M m / r, second moments M v / r^2, which keeps the step m / sqrt(v).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from framework.errors import ConfigError
from framework.nn.splines.layer import SplineLayer

KNOWN_OPTIMIZERS = (Adam, AdamW, NAdam, RAdam, Adamax, SGD, RMSprop, Adagrad)
# state shaped like its parameter -> its degree in the gradient
DEGREES = {
    "exp_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "exp_inf": 1,
    "momentum_buffer": 1,
    "square_avg": 2,
    "grad_avg": 1,
    "sum": 2,
}
# everything else is a magnitude, never negative: a square, or Adamax's largest absolute value
SIGNED = {"exp_avg", "momentum_buffer", "grad_avg"}


#: what schedulers keep in a group beside its rate, as OneCycleLR and SWALR
RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")


def trained_by(optimizer: Optimizer) -> set[int]:
    """Ids of the parameters that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def check_optimizers(optimizers: Iterable[Optimizer], layers: Iterable[SplineLayer]) -> None:
    """Refuses an optimizer of some layer's coefficients whose state is not known here.

    Raises:
        ConfigError: names the optimizer and those that are known.
    """
    coefficients = {id(layer.coefficients) for layer in layers}
    for optimizer in optimizers:
        if type(optimizer) not in KNOWN_OPTIMIZERS and coefficients & trained_by(optimizer):
            known = ", ".join(cls.__name__ for cls in KNOWN_OPTIMIZERS)
            raise ConfigError(
                f"optimizer: the moments of {type(optimizer).__name__} cannot be carried over a grid change; use one "
                f"of {known}"
            )


def map_moments(state: Mapping[str, Any], layer: SplineLayer, matrix: Tensor, factor: float) -> dict[str, Tensor]:
    """The state of the coefficients after a grid change.

    Args:
        state: of one parameter, e.g. {"step", "exp_avg", "exp_avg_sq"}; other entries are left alone.
        layer: its layer.
        matrix: M (n', n) or (in, n', n).
        factor: r, new cells per old cell.

    Returns:
        new tensors for the entries that change.

    Raises:
        ConfigError: an entry shaped like the coefficients that is not known.
    """
    changed = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim < 2:
            continue
        if key not in DEGREES:
            raise ConfigError(f"optimizer: its state {key!r} cannot be carried over a grid change")
        # a projection may have negative entries, a magnitude may not; knot insertion has none
        used = matrix if key in SIGNED else matrix.abs()
        changed[key] = layer.map_coefficients(used, value) / factor ** DEGREES[key]
    return changed


def carry_moments(optimizer: Optimizer, layer: SplineLayer, matrix: Tensor, factor: float) -> None:
    """Carries the moments of a layer's coefficients over a grid change, in place."""
    state = optimizer.state.get(layer.coefficients)
    if state:
        for key, value in map_moments(state, layer, matrix, factor).items():
            state[key].copy_(value)


def rescale_groups(optimizer: Optimizer, layers: Iterable[SplineLayer], factor: float) -> list[str]:
    """Adapts weight decay and SGD's learning rate of groups that hold nothing but coefficients.

    The squared norm of the coefficients grows with r, so weight decay is divided by r; SGD's rate is multiplied by r to
    keep its step in function space, Adam's needs nothing.

    Returns:
        a line for every group that would need it but holds other parameters too.
    """
    coefficients = {id(layer.coefficients) for layer in layers}
    notes = []
    rated = isinstance(optimizer, SGD)
    for number, group in enumerate(optimizer.param_groups):
        inside = [id(p) in coefficients for p in group["params"]]
        if not any(inside) or not (rated or group.get("weight_decay")):
            continue
        if not all(inside):
            notes.append(
                f"parameter group {number} holds coefficients and other parameters; its weight decay"
                f"{' and learning rate' if rated else ''} stay as they are"
            )
            continue
        if group.get("weight_decay"):
            group["weight_decay"] /= factor
        for key in RATES if rated else ():
            if key in group:
                group[key] *= factor
    return notes


def rescale_scheduler(scheduler: Any, layers: Iterable[SplineLayer], factor: float) -> None:
    """Lets a scheduler follow `rescale_groups`: it computes rates from copies of its own of the groups' first ones.

    Args:
        scheduler: of torch, or a chain of them; what has no such copies is left alone.
        layers: whose grids have grown.
        factor: r, new cells per old cell.
    """
    layers = list(layers)
    for part in getattr(scheduler, "_schedulers", ()):
        rescale_scheduler(part, layers, factor)
    optimizer = getattr(scheduler, "optimizer", None)
    if not isinstance(optimizer, SGD):
        return
    coefficients = {id(layer.coefficients) for layer in layers}
    insides = [[id(p) in coefficients for p in group["params"]] for group in optimizer.param_groups]
    rescaled = [bool(inside) and all(inside) for inside in insides]
    for name in ("base_lrs", "max_lrs"):
        rates = getattr(scheduler, name, None)
        if rates is not None:
            setattr(scheduler, name, [r * factor if s else r for r, s in zip(rates, rescaled, strict=True)])


def stop_momentum(optimizer: Optimizer, layer: SplineLayer) -> None:
    """Zeroes the moments of pruned edges, so that nothing moves their coefficients again."""
    with torch.no_grad():
        for parameter in (layer.coefficients, layer.base_weight):
            for value in (optimizer.state.get(parameter) or {}).values() if parameter is not None else ():
                if isinstance(value, Tensor) and value.ndim >= 2:
                    value *= layer.live
