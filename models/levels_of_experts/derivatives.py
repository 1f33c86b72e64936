"""A picture fitted through its derivatives: a Poisson problem, whose network is told no colour inside the border.

Gradient and Laplacian supervision are SIREN's (Sitzmann et al., NeurIPS 2020, section 4.1). What derivatives leave open
(a constant, or every harmonic function) the picture's outermost pixels settle, as Dirichlet values do. A network has no
derivative across a border between experts, whose pieces could each be shifted on their own: there the differences of
its values at neighbouring pixels stand for the derivative, as they do for the picture's.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError, DataError

Supervision = Literal["value", "gradient", "laplacian"]


class Derivatives(NamedTuple):
    """What stands in for the colours of a batch; rows in nested order like the inputs'."""

    kind: Supervision
    target: Tensor  # (B, N, D, 3): D = 2 first derivatives by row and column, or the Laplacian, per pixel
    inside: Tensor  # (B, N) bool, all but the picture's outermost pixels
    seam: Tensor  # (B, N) bool, a neighbour has other experts
    steps: Tensor  # (B, 2, 2), the coordinates' change from a pixel to the one below and to the one on the right
    order: Tensor  # (B, N) int64, row i is pixel order[i]
    shape: tuple[int, int]


def check_supervision(kind: Supervision, rows_at_once: object) -> Supervision:
    """The kind, unless it is unknown or cannot be computed in parts (ConfigError)."""
    if kind not in ("value", "gradient", "laplacian"):
        raise ConfigError(f"model.supervision: expected value, gradient or laplacian, got {kind!r}")
    if kind != "value" and isinstance(rows_at_once, int):
        raise ConfigError(
            f"model.rows_at_once: {kind} supervision takes all pixels at once, got {rows_at_once}; give null, and "
            "fit smaller pictures (data.scale, data.crop) where memory is short"
        )
    return kind


def stencil(pictures: Tensor, kind: Supervision) -> Tensor:
    """Central differences, or the five-point Laplacian, per pixel; outermost pixels have their own values beyond.

    Args:
        pictures: (B, H, W, 3).
        kind: `gradient` or `laplacian`.

    Returns:
        (B, H, W, D, 3).
    """
    wide = F.pad(pictures.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    above, below = wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
    left, right = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
    if kind == "gradient":
        return torch.stack([(below - above) / 2, (right - left) / 2], -2)
    return (above + below + left + right - 4 * pictures).unsqueeze(-2)


def shown(picture: Tensor, kind: Supervision) -> Tensor:
    """(H, W, 3) uint8 -> (H, W) float32: the gradient's length or the Laplacian, mean over channels, on [0, 1]."""
    found = stencil(picture[None] / 255, kind)[0]
    return (found.square().sum(2).sqrt() if kind == "gradient" else found[:, :, 0]).mean(-1)


def derivatives_of(
    kind: Supervision, images: Tensor, coords: Tensor, experts: Sequence[Sequence[Tensor]], order: Tensor
) -> Derivatives:
    """What a batch's networks are to learn.

    Args:
        kind: `gradient` or `laplacian`.
        images: (B, 3, H, W) float32 in [0, 1].
        coords: (B, H, W, 2) float32, of the pixels.
        experts: per image and layer, (H W,) int64, who computes a pixel.
        order: (B, N) int64, row i is pixel order[i].

    Raises:
        DataError: pictures with fewer than three pixels along an axis.
    """
    shape = (images.shape[2], images.shape[3])
    if min(shape) < 3:
        raise DataError(f"image: {kind} supervision needs at least 3 x 3 pixels, got {shape[0]} x {shape[1]}")
    target = stencil((2 * images - 1).permute(0, 2, 3, 1), kind).flatten(1, 2)
    inside = torch.zeros(shape, dtype=torch.bool, device=images.device)
    inside[1:-1, 1:-1] = True
    seams = torch.stack([_seams(layers, shape) for layers in experts])
    steps = torch.stack([coords[:, 1, 0] - coords[:, 0, 0], coords[:, 0, 1] - coords[:, 0, 0]], 1)
    at = order[..., None, None].expand(-1, -1, *target.shape[2:])
    return Derivatives(
        kind, target.gather(1, at), inside.flatten()[order], seams.gather(1, order), steps, order, shape
    )  # fmt: skip


def _seams(layers: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """(H W,) bool: some layer has other experts at one of the four neighbours."""
    found = torch.zeros(shape, dtype=torch.bool, device=layers[0].device)
    for labels in layers:
        grid = labels.view(shape)
        down, right = grid[1:] != grid[:-1], grid[:, 1:] != grid[:, :-1]
        found[1:] |= down
        found[:-1] |= down
        found[:, 1:] |= right
        found[:, :-1] |= right
    return found.flatten()


def through_derivatives(network: Callable[[Tensor], Tensor], inputs: Tensor, kind: Supervision, steps: Tensor) -> tuple[
    Tensor, Tensor
]:  # fmt: skip
    """What a network says at its inputs, and its derivatives there, with a graph of both.

    Args:
        network: (B, N, in) -> (B, N, 3), every row by itself.
        inputs: (B, N, in) float32, coordinates first.
        kind: `gradient` or `laplacian`.
        steps: (B, 2, 2), see `Derivatives`.

    Returns:
        values (B, N, 3) and derivatives (B, N, D, 3) per pixel.
    """
    # an evaluation may be in inference mode, whose tensors have no graph
    with torch.inference_mode(False), torch.enable_grad():
        inputs, steps = inputs.clone().requires_grad_(), steps.clone()
        values = network(inputs)
        by_channel = [_along(channel.sum(), inputs, steps) for channel in values.unbind(-1)]
        if kind == "gradient":
            return values, torch.stack(by_channel, -1)
        twice = [
            sum(_along(slope.sum(), inputs, steps)[..., axis] for axis, slope in enumerate(slopes.unbind(-1)))
            for slopes in by_channel
        ]
        return values, torch.stack(twice, -1).unsqueeze(-2)  # type: ignore[arg-type]


def _along(total: Tensor, inputs: Tensor, steps: Tensor) -> Tensor:
    """(B, N, 2): the derivatives of a sum over rows by every row's place, along both axes of the pixels."""
    (slope,) = torch.autograd.grad(total, inputs, create_graph=True)
    return slope[..., :2] @ steps.transpose(1, 2)


def derivative_losses(
    network: Callable[[Tensor], Tensor], inputs: Tensor, target: Tensor, wanted: Derivatives
) -> tuple[Tensor, Tensor]:
    """The networks' values, and the losses of a Poisson fit.

    A loss is the mean squared error of the derivatives per pixel inside, summed over the axes, plus the mean squared
    error of the colours on the border, on [-1, 1].

    Args:
        network: (B, N, in) -> (B, N, 3).
        inputs: (B, N, in) float32 in nested order.
        target: (B, N, 3) colours in [-1, 1], of which the border's are used.
        wanted: of the same rows.

    Returns:
        values (B, N, 3) and losses (B,).
    """
    values, said = through_derivatives(network, inputs, wanted.kind, wanted.steps)
    pixels = torch.empty_like(values).scatter(1, wanted.order[..., None].expand_as(values), values)
    differences = stencil(pixels.unflatten(1, wanted.shape), wanted.kind).flatten(1, 2)
    at = wanted.order[..., None, None].expand_as(said)
    said = torch.where(wanted.seam[..., None, None], differences.gather(1, at), said)
    inside = wanted.inside
    errors = (said - wanted.target).square().sum(2).mean(2)
    border = (values - target).square().mean(2)
    losses = (errors * inside).sum(1) / inside.sum(1) + (border * ~inside).sum(1) / (~inside).sum(1)
    return values, losses
