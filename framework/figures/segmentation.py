"""What a segmenter saw, should have said, and said."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from framework.errors import DataError
from framework.figures.style import bare, class_colors, new_figure


def segmentation_panel(
    images: np.ndarray,
    target: np.ndarray,
    preds: np.ndarray,
    num_classes: int,
    names: Sequence[str] | None = None,
    ignore: int | None = None,
) -> Figure:
    """One row per image: input, truth, prediction, error, and the IoU of every class.

    Args:
        images: (B, N, H, W), any range; N = 1 is shown in grey between the 1st and 99th percentile, N = 3 in colour.
        target: (B, H, W) integer class map.
        preds: (B, H, W) integer class map.
        num_classes: number of classes, background (0) included.
        names: of the classes; by default "background", "class 1", ...
        ignore: truth of pixels without a label: blank, and neither error nor part of an IoU.

    Raises:
        DataError: shapes that do not belong together.
    """
    if images.ndim != 4 or target.shape != preds.shape or target.shape != (len(images), *images.shape[2:]):
        raise DataError(
            f"segmentation_panel: expected images (B, N, H, W) and maps (B, H, W), got {images.shape}, {target.shape}, "
            f"{preds.shape}"
        )
    names = names or ["background", *(f"class {c}" for c in range(1, num_classes))]
    rows = len(images)
    figure, axes = new_figure(rows, 5, 12.5, 2.5 * rows + 0.5)
    colors = class_colors(num_classes)
    for row, (image, truth, said) in enumerate(zip(images, target, preds, strict=True)):
        shown = _displayable(image)
        axes[row, 0].imshow(shown, cmap="gray" if shown.ndim == 2 else None, interpolation="nearest")
        labelled = np.ones(truth.shape, dtype=bool) if ignore is None else truth != ignore
        for column, labels in ((1, np.ma.masked_where(~labelled, truth)), (2, said)):
            axes[row, column].imshow(labels, cmap=colors, vmin=-0.5, vmax=num_classes - 0.5, interpolation="nearest")
        wrong = (truth != said) & labelled
        axes[row, 3].imshow(wrong, cmap="Reds", vmin=0, vmax=1.25, interpolation="nearest")
        axes[row, 3].set_xlabel(f"{wrong.sum() / max(1, labelled.sum()):.2%} of the pixels")
        for axis in axes[row, :4]:
            bare(axis)
        _class_bars(axes[row, 4], truth[labelled], said[labelled], num_classes, names)
    for axis, title in zip(axes[0], ("input", "truth", "prediction", "error", "IoU per class"), strict=True):
        axis.set_title(title)
    handles = [Patch(facecolor=colors(c), edgecolor="0.4", linewidth=0.5, label=names[c]) for c in range(num_classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(num_classes, 6))
    return figure


def _displayable(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [1, 99])
    if high <= low:
        low, high = float(image.min()), float(image.max()) + 1e-6
    scaled = np.clip((image - low) / (high - low), 0, 1)
    return scaled.transpose(1, 2, 0) if len(image) == 3 else scaled[0]


def _class_bars(axis, truth: np.ndarray, said: np.ndarray, num_classes: int, names: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    colors = class_colors(num_classes)
    for c in range(num_classes):
        union = np.count_nonzero((truth == c) | (said == c))
        if union:
            iou = np.count_nonzero((truth == c) & (said == c)) / union
            axis.barh(c, iou, color=colors(c), edgecolor="0.4", linewidth=0.5)
            axis.text(1.02, c, f"{iou:.3f}", va="center", fontsize=8)
        else:
            axis.text(0.02, c, "absent", va="center", fontsize=8, color="0.4")
    axis.set_xlim(0, 1)
    axis.set_yticks(range(num_classes), names)
    axis.invert_yaxis()
