"""The look all figures share."""

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; class 0 (background) is light grey.
PALETTE = ("#d9d9d9", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def class_colors(num_classes: int) -> ListedColormap:
    """One colour per class; the palette starts again after its nine colours."""
    return ListedColormap([PALETTE[i % len(PALETTE)] for i in range(num_classes)])


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A constrained-layout figure of `width` x `height` inches and its (rows, columns) array of axes."""
    with rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = np.atleast_2d(np.asarray(figure.subplots(rows, columns, squeeze=False)))
    return figure, axes


def bare(axes: Axes) -> None:
    """Takes ticks and frame off an image's axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
