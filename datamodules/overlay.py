"""Predictions drawn over their picture."""

import numpy as np
from matplotlib.colors import to_rgb
from skimage.segmentation import find_boundaries

from framework.figures.style import PALETTE

#: longest side of an overlay; larger pictures are drawn at every second, third, ... pixel
SIDE = 2048

#: how much of the colour there is inside of an object
FILL = 0.35


def step_of(size: tuple[int, int]) -> int:
    """Every which pixel is drawn."""
    return -(-max(size) // SIDE)


def overlay(image: np.ndarray, labels: np.ndarray, background: int = 0) -> np.ndarray:
    """The picture in grey or colour, every object or class filled lightly, with a line along its edge.

    Args:
        image: (N, h, w) intensities; three are shown in colour, else the first, from its 0.5th to its 99.5th
            percentile.
        labels: (h, w) integers.
        background: the label that is not drawn.

    Returns:
        (h, w, 3) uint8.
    """
    shown = image if len(image) == 3 else image[:1].repeat(3, 0)
    low, high = (np.percentile(shown, p, axis=(1, 2), keepdims=True) for p in (0.5, 99.5))
    base = np.clip((shown - low) / np.maximum(high - low, 1e-6), 0, 1).transpose(1, 2, 0)
    colours = np.array([to_rgb(colour) for colour in PALETTE[1:-1]])
    values = labels.astype(np.int64)
    colour = colours[np.where(values > background, values - background - 1, values) % len(colours)]
    drawn = values != background
    base[drawn] = (1 - FILL) * base[drawn] + FILL * colour[drawn]
    line = find_boundaries(values, mode="inner", background=background) & drawn
    base[line] = colour[line]
    return np.rint(base * 255).astype(np.uint8)
