"""What a table of KM-UNet has beside the figures of its tests; a study names `figures`."""

import time

import torch
from torch import nn

from datamodules import SegmentationDataModule
from framework.nn import spline_layers
from models import KMUNet

#: side of the image in pixels whose time is taken
SIDE = 128


def figures(model: KMUNet, data: SegmentationDataModule) -> dict[str, object]:
    """Live parameters, the share of edges removed, and the CPU time of one image in milliseconds, the best of 5.

    A network that lost channels is counted and timed as what is left of it, `model.shrunk()`.
    """
    masks = [layer.mask for layer in spline_layers(model).values()]
    removed = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) if masks else 0.0
    left = model
    if masks and any(not bool(m.flatten(2).any(2).any(0).all()) for m in masks):
        left = model.shrunk()
    return {
        "live_parameters": left.network.live_parameters(),
        "edges_removed": round(removed, 4),
        "inference_ms": round(1000 * seconds_of_an_image(left), 2),
    }


@torch.no_grad()
def seconds_of_an_image(model: nn.Module, side: int = SIDE) -> float:
    """CPU seconds of one pass over a (1, 1, side, side) image."""
    model.eval()
    x = torch.randn(1, 1, side, side)
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        model(x)
        best = min(best, time.process_time() - start)
    return best
