"""Pictures of any size for networks that halve them: padded by reflection, and cut back."""

from collections.abc import Callable

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
            f"the poolings need images of at least {stride} x {stride}, got {height} x {width}; use fewer poolings or "
            "larger images"
        )
    below, right = -height % stride, -width % stride
    return F.pad(x, (0, right, 0, below), mode="reflect") if below or right else x


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
    return network(x) if padded is x else network(padded)[..., :height, :width]
