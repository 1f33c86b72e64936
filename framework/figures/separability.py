"""How well intensities alone tell the classes apart."""

import numpy as np
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import new_figure
from framework.nn import bayes_accuracy, hellinger


def separability(means: np.ndarray, stds: np.ndarray, shares: np.ndarray | None = None) -> Figure:
    """Hellinger distances between all classes, H and H^2 in each cell, and the Bayes limit of a single pixel.

    The channels are independent, so that their Bhattacharyya coefficients 1 - H^2 multiply. The author of K-Origins
    prints H^2 and the paper does not say which it means (docs/korigins.md, "Metrics"): both are
    shown.

    Args:
        means: (C, N) class means in intensity units, background first.
        stds: (C, N) standard deviations, at least 0.
        shares: (C,) share of every class among the pixels; None: equal.

    Raises:
        DataError: shapes that do not belong together.
    """
    if means.ndim != 2 or means.shape != stds.shape:
        raise DataError(f"separability: expected means and stds (C, N), got {means.shape} and {stds.shape}")
    classes, channels = means.shape
    overlap = np.ones((classes, classes))
    for c in range(channels):
        squared = hellinger(means[:, None, c], stds[:, None, c], means[None, :, c], stds[None, :, c], squared=True)
        overlap *= 1 - np.asarray(squared)
    squared = np.clip(1 - overlap, 0, 1)
    side = 1.1 * classes + 1.6
    figure, axes = new_figure(1, 1, max(4.2, side + 1), max(3.4, side))
    axis = axes[0, 0]
    image = axis.imshow(np.sqrt(squared), cmap="viridis", vmin=0, vmax=1)
    for i in range(classes):
        for j in range(classes):
            distance = float(np.sqrt(squared[i, j]))
            axis.text(j, i, f"H {distance:.3f}\n$H^2$ {squared[i, j]:.3f}", ha="center", va="center", fontsize=8,
                      color="white" if distance < 0.6 else "black")  # fmt: skip
    names = ["background", *(f"class {c}" for c in range(1, classes))]
    axis.set_xticks(range(classes), names)
    axis.set_yticks(range(classes), names)
    figure.colorbar(image, ax=axis, label="Hellinger distance H", shrink=0.85)
    if channels == 1:
        limit = bayes_accuracy(means[:, 0], stds[:, 0], shares)
        weights = "equal class shares" if shares is None else "these images' class shares"
        axis.set_title(f"Bayes limit of one pixel: accuracy {limit:.4f}\n({weights})")
    return figure
