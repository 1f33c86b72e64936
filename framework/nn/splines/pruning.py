"""Which edges go: scores from Gram matrices, the choice across layers, and the group lasso that prepares it."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.splines.layer import SplineLayer
from framework.nn.splines.moments import SplineMoments

Granularity = Literal["edge", "kernel", "channel"]
Score = Literal["share", "strength"]
ChannelGroup = Sequence[tuple[SplineLayer, int]]


def edge_scores(
    layers: Mapping[str, SplineLayer], moments: Mapping[str, SplineMoments], score: Score = "share"
) -> dict[str, Tensor]:
    """How much every edge matters.

    Args:
        layers: by name.
        moments: of their inputs, by the same names.
        score: `strength`: the standard deviation of the edge's output, comparable within a layer; `share`: its variance
            as a share of the sum over all edges of the same output, comparable across layers because a normalisation
            follows.

    Returns:
        (out, in / groups, *kernel) float64 by name; 0 for pruned edges.
    """
    scores = {}
    for name, layer in layers.items():
        strength = layer.edge_strength(moments[name]).cpu()
        if score == "share":
            energy = strength.square()
            strength = energy / energy.flatten(1).sum(1).clamp_min(1e-300).view(-1, *[1] * (energy.ndim - 1))
        scores[name] = strength
    return scores


def choose_edges(
    layers: Mapping[str, SplineLayer],
    scores: Mapping[str, Tensor],
    fraction: float,
    granularity: Granularity = "edge",
    groups: Sequence[ChannelGroup] | None = None,
) -> dict[str, Tensor]:
    """Keep-masks that bring the pruned share of all edges to `fraction`, weakest first, across all layers at once.

    The strongest edge of every output (`edge`), position (`kernel`) or input channel (`channel`) of every layer stays.

    Args:
        layers: by name.
        scores: from `edge_scores`.
        fraction: share of all edges, those pruned before included, in [0, 1).
        granularity: single edges, kernel positions (i, j) of a layer, or input channels of a layer.
        groups: channels that must go together, as (layer, input channel); None: each on its own.

    Returns:
        (out, in / groups, *kernel) bool by name.

    Raises:
        ConfigError: a fraction out of its range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"fraction: expected a share in [0, 1), got {fraction}; 1 would remove everything")
    masks = {name: layer.live.cpu() for name, layer in layers.items()}
    total = sum(mask.numel() for mask in masks.values())
    excess = round(fraction * total) - sum(int((~mask).sum()) for mask in masks.values())
    if granularity == "edge":
        return _weakest_edges(masks, scores, excess)
    units = _kernel_units(layers, scores) if granularity == "kernel" else _channel_units(layers, scores, groups)
    for _, members in sorted(units, key=lambda unit: unit[0]):
        removed = sum(int((masks[name] & ~keep).sum()) for name, keep in members)
        # a unit that would overshoot by more than it helps stays
        if removed and removed <= 2 * excess:
            for name, keep in members:
                masks[name] &= keep
            excess -= removed
    return masks


def _weakest_edges(masks: dict[str, Tensor], scores: Mapping[str, Tensor], excess: int) -> dict[str, Tensor]:
    flat = []
    for name, mask in masks.items():
        score = scores[name].clone()
        rows = score.flatten(1)
        rows[torch.arange(len(rows)), rows.argmax(1)] = torch.inf
        flat.append(rows.flatten().masked_fill(~mask.flatten(), torch.inf))
    joined = torch.cat(flat)
    excess = min(excess, int(joined.isfinite().sum()))
    if excess > 0:
        gone = joined.argsort(stable=True)[:excess]
        keep = torch.ones_like(joined, dtype=torch.bool)
        keep[gone] = False
        for mask, part in zip(masks.values(), keep.split([m.numel() for m in masks.values()]), strict=True):
            mask &= part.view(mask.shape)
    return masks


Unit = tuple[float, list[tuple[str, Tensor]]]


def _kernel_units(layers: Mapping[str, SplineLayer], scores: Mapping[str, Tensor]) -> list[Unit]:
    units: list[Unit] = []
    for name, layer in layers.items():
        by_position = scores[name].flatten(2).mean((0, 1)) if layer.mask.ndim > 2 else torch.zeros(1)
        for position in range(len(by_position)):
            if position == int(by_position.argmax()):
                continue
            keep = torch.ones(layer.mask.shape, dtype=torch.bool)
            keep.flatten(2)[..., position] = False
            units.append((float(by_position[position]), [(name, keep)]))
    return units


def _channel_units(
    layers: Mapping[str, SplineLayer], scores: Mapping[str, Tensor], groups: Sequence[ChannelGroup] | None
) -> list[Unit]:
    names = {id(layer): name for name, layer in layers.items()}
    grouped = {name for name, layer in layers.items() if layer.groups > 1}
    by_channel = {name: _per_channel(scores[name]) for name in layers if name not in grouped}
    protected = {(name, int(values.argmax())) for name, values in by_channel.items()}
    if groups is None:
        groups = [[(layers[name], c)] for name, values in by_channel.items() for c in range(len(values))]
    units: list[Unit] = []
    for group in groups:
        members = [(names[id(layer)], channel) for layer, channel in group]
        if any(member in protected or member[0] in grouped for member in members):
            continue
        keeps = []
        for name, channel in members:
            keep = torch.ones(layers[name].mask.shape, dtype=torch.bool)
            keep[:, channel] = False
            keeps.append((name, keep))
        units.append((max(float(by_channel[name][c]) for name, c in members), keeps))
    return units


def _per_channel(scores: Tensor) -> Tensor:
    return scores.transpose(0, 1).flatten(1).mean(1)


def add_group_lasso_gradient(layer: SplineLayer, covariance: Tensor, weight: float, epsilon: float = 1e-8) -> None:
    """Adds the gradient of weight * sum over edges of sqrt(w^T S w + epsilon) to the layer's gradients, in place.

    The gradient is weight * S w / sqrt(w^T S w + epsilon): a group lasso in the norm that the data give every edge.

    Args:
        layer: whose parameters have gradients already.
        covariance: S (in, n (+ 1), n (+ 1)).
        weight: of the penalty, in units of the loss per unit of output.
        epsilon: smooths the corner at zero.
    """
    with torch.no_grad():
        w = layer.edge_coefficients()
        product = layer.times_covariance(covariance.to(w), w)
        gradient = weight * layer.live * product / ((w * product).sum(0).clamp_min(0) + epsilon).sqrt()
        if layer.coefficients.grad is not None:
            layer.coefficients.grad[: layer.basis] += gradient[: layer.basis]
        if layer.base_weight is not None and layer.base_weight.grad is not None:
            layer.base_weight.grad += gradient[-1]


def group_lasso(layer: SplineLayer, covariance: Tensor, epsilon: float = 1e-8) -> Tensor:
    """The penalty itself, sum over live edges of sqrt(w^T S w + epsilon), differentiable; scalar."""
    energy = layer.edge_energy(covariance.to(layer.coefficients))
    return ((energy.clamp_min(0) + epsilon).sqrt() * layer.live).sum()
