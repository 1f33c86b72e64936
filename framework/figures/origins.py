"""Where the intensity origins go in training, against what the images hold."""

import numpy as np
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, new_figure


def origin_paths(
    paths: np.ndarray, epochs: np.ndarray, histograms: np.ndarray, edges: np.ndarray, title: str = ""
) -> Figure:
    """Paths of a layer's origins over training beside the class histograms, on one intensity axis.

    Args:
        paths: (T, K) origins (intensity units) at T moments, the first of them before training. A path has the colour
            of the class whose mean was nearest to its origin then.
        epochs: (T,) the moments, in epochs.
        histograms: (C, bins) counts of the intensities of every class, background first.
        edges: (bins + 1,) the bins' edges, intensity units.
        title: of the figure.

    Raises:
        DataError: shapes that do not belong together.
    """
    if paths.ndim != 2 or len(paths) != len(epochs) or histograms.shape[1] + 1 != len(edges):
        raise DataError(
            f"origin_paths: got paths {paths.shape}, epochs {epochs.shape}, "
            f"histograms {histograms.shape}, edges {edges.shape}"
        )
    figure, axes = new_figure(1, 2, 9, 4)
    left, right = axes[0]
    widths = np.diff(edges)
    colors = ["0.55", *(PALETTE[c % len(PALETTE)] for c in range(1, len(histograms)))]
    for c, counts in enumerate(histograms):
        density = counts / max(1, counts.sum())
        label = "background" if c == 0 else f"class {c}"
        left.barh(edges[:-1], density, height=widths, align="edge", color=colors[c], alpha=0.6, label=label)
    left.set_xlabel("share of the class's pixels")
    left.set_ylabel("intensity")
    left.set_title("class histograms")
    left.legend()
    for path, c in zip(paths.T, nearest_class(paths[0], histograms, edges), strict=True):
        right.plot(epochs, path, color=colors[c], linewidth=1.2)
        right.plot(epochs[-1], path[-1], "o", color=colors[c], markersize=4)
    right.set_xlabel("epoch; colour: nearest class at the start")
    right.set_title("origins over training")
    right.grid(alpha=0.25)
    low = min(float(edges[0]), float(paths.min()))
    high = max(float(edges[-1]), float(paths.max()))
    margin = 0.03 * (high - low) or 1.0
    for axis in (left, right):
        axis.set_ylim(low - margin, high + margin)
    if title:
        figure.suptitle(title)
    return figure


def nearest_class(origins: np.ndarray, histograms: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The class whose mean intensity is nearest to every origin.

    Args:
        origins: (K,) intensity units.
        histograms: (C, bins) counts of the intensities of every class.
        edges: (bins + 1,) the bins' edges, intensity units.

    Returns:
        (K,) int64; a class without pixels is nearest to none.
    """
    centres = (edges[:-1] + edges[1:]) / 2
    counts = histograms.sum(1)
    means = np.where(counts > 0, histograms @ centres / np.maximum(counts, 1), np.inf)
    return np.abs(origins[:, None] - means).argmin(1)
