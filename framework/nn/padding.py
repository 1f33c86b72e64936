"""Pictures of any size for networks that halve them: padded by reflection, and cut back."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError


def pad_to_stride(x: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'): reflected below and to the right, to multiples of `stride`; `x` if they are.

    Raises:
        ConfigError: a side below `stride`, of which nothing would be left.
    """
    height, width = x.shape[-2:]
    if min(height, width) < stride:
        raise ConfigError(
            f"image: the poolings need images of at least {stride} x {stride}, got {height} x {width}; use fewer "
            "poolings or larger images"
        )
    if not is_known(height, width):
        return _mirrored(_mirrored(x, 2, stride), 3, stride)
    below, right = -height % stride, -width % stride
    return F.pad(x, (0, right, 0, below), mode="reflect") if below or right else x


def cut_back(y: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H', W') -> (B, C, height, width), the first rows and columns."""
    if is_known(height, width):
        return y[..., :height, :width]
    rows, columns = (torch.arange(n, device=y.device) for n in (height, width))
    return y.index_select(2, rows).index_select(3, columns)


def in_strides(network: Callable[[Tensor], Tensor], x: Tensor, stride: int) -> Tensor:
    """What a network that needs sides divisible by `stride` makes of a picture of any size.

    Args:
        network: (B, N, H, W) -> (B, C, H, W).
        x: (B, N, H, W), sides at least `stride`.
        stride: of the network, 2 to the number of its poolings.

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[-2:]
    padded = pad_to_stride(x, stride)
    return network(x) if padded is x else cut_back(network(padded), height, width)


def is_known(*sizes: int) -> bool:
    """Whether sizes are numbers: not where an exporter follows a network for any size, or a tracer for this one."""
    return all(type(size) is int for size in sizes)


def _mirrored(x: Tensor, axis: int, stride: int) -> Tensor:
    """One axis to a multiple of `stride` without looking at its length: a choice by length would be kept in a file."""
    length = x.shape[axis]
    places = torch.arange((length + stride - 1) // stride * stride, device=x.device)
    return x.index_select(axis, torch.where(places < length, places, 2 * (length - 1) - places))
