"""KM-UNet's weights from elsewhere: a plain U-Net's, and optimizer moments of another grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import KANConvTranspose2d, spline_layers
from framework.nn.splines.optimizer import map_moments
from framework.nn.splines.stored import transfer_matrix
from models.kmunet.network import SplineUnit


def as_lines(method: nn.Module, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which the convolutions of a plain U-Net are splines that are lines, by the Greville abscissae.

    Args:
        method: a KMUNet, whose spline layers are to have them.
        stored: a state dict of KM-UNet or of the plain U-Net; changed in place.

    Raises:
        ConfigError: a U-Net of another width, or a plain one for units that are not those of the plain U-Net.
    """
    layers, first = spline_layers(method), "network.units.down_0_a.conv"
    found = stored.get(f"{first}.weight")
    own = layers[first].out_channels if first in layers else None
    if found is not None and own is not None and len(found) != own:
        raise ConfigError(
            f"model.width: the first stage of initial_weights has {len(found)} channels, got {own}; give model.width: "
            f"{len(found)}"
        )
    for name, layer in layers.items():
        weight = stored.pop(f"{name}.weight", None)
        if weight is None:
            continue
        if isinstance(method.get_submodule(name.rpartition(".")[0]), SplineUnit):
            raise ConfigError(
                "initial_weights: the checkpoint holds a plain U-Net, whose units are convolution, normalisation, "
                "ReLU; give model.activation: relu, which makes these of splines"
            )
        slopes = weight.transpose(0, 1) if isinstance(layer, KANConvTranspose2d) else weight
        stored[f"{name}.coefficients"] = layer.lines(slopes)
        stored[f"{name}._extra_state"] = layer.get_extra_state()
        stored[f"{name}.mask"], stored[f"{name}.grid_code"] = torch.ones_like(slopes), layer.grid_code.clone()
        if layer.base_weight is not None:
            stored[f"{name}.base_weight"] = torch.zeros_like(slopes)
    return stored


def convert_moments(
    method: nn.Module, order: Sequence[nn.Parameter], weights: Mapping[str, Tensor], optimizer: dict[str, Any]
) -> None:
    """Converts an optimizer's stored moments to the grids that the coefficients are loaded on; in place.

    Args:
        method: a KMUNet.
        order: its parameters in the optimizer's order.
        weights: the state dict that goes with the moments.
        optimizer: its state.
    """
    indices = [i for group in optimizer["param_groups"] for i in group["params"]]
    if len(order) != len(indices):
        return
    place = {id(p): i for p, i in zip(order, indices, strict=True)}
    for name, layer in spline_layers(method).items():
        stored = weights.get(f"{name}._extra_state")
        moments = optimizer["state"].get(place[id(layer.coefficients)]) if layer.rank is None else None
        if stored is None or not moments:
            continue
        source = layer.stored_grid(stored, name)
        target = layer.loading_grid(source)
        matrix = transfer_matrix(source, target, name)
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1:] == layer.coefficients.shape[1:]:
                room = value.new_zeros((max(len(value), len(layer.coefficients)), *value.shape[1:]))
                room[: source.basis] = value[: source.basis]
                if matrix is not None:
                    room = map_moments({key: room}, layer, matrix, target.size / source.size)[key]
                moments[key] = room[: len(layer.coefficients)]
