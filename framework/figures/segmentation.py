"""What a segmenter saw, should have said, and said: pictures, objects and confusions."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from skimage.segmentation import find_boundaries

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, class_colors, new_figure
from framework.metrics.instances import matched_objects

#: outlines of objects: matched, missed, false
HIT, MISSED, FALSE = "#00c853", "#d55e00", "#f0e442"

Stack = np.ndarray | Sequence[np.ndarray]


def segmentation_panel(
    images: Stack,
    target: Stack,
    preds: Stack,
    num_classes: int,
    names: Sequence[str] | None = None,
    ignore: int | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """One row per image: input, truth, prediction, error, and the IoU of every class.

    Args:
        images: (B, N, H, W), or B arrays (N, H, W), any range; N = 3 is shown in colour, else the first channel in grey
            between its 1st and 99th percentile.
        target: (B, H, W) integer class map, or B of them.
        preds: (B, H, W) integer class map, or B of them.
        num_classes: number of classes, background (0) included.
        names: of the classes; by default "background", "class 1", ...
        ignore: truth of pixels without a label: blank, and neither error nor part of an IoU.
        titles: one for each image, written beside its row.

    Raises:
        DataError: shapes that do not belong together, or another number of names than of classes.
    """
    _check_shapes("segmentation_panel", images, target, preds)
    names = _class_names("segmentation_panel", names, num_classes)
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
        if titles is not None:
            axes[row, 0].set_ylabel(titles[row])
        _class_bars(axes[row, 4], truth[labelled], said[labelled], num_classes, names)
    for axis, title in zip(axes[0], ("input", "truth", "prediction", "error", "IoU per class"), strict=True):
        axis.set_title(title)
    handles = [Patch(facecolor=colors(c), edgecolor="0.4", linewidth=0.5, label=names[c]) for c in range(num_classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(num_classes, 6))
    return figure


def instance_panel(
    images: Sequence[np.ndarray], truth: Sequence[np.ndarray], found: Sequence[np.ndarray], titles: Sequence[str]
) -> Figure:
    """One row per image: input, and the outlines of true and of predicted objects, matched or not at IoU 0.5.

    Args:
        images: B arrays (N, H, W), shown as by `segmentation_panel`.
        truth: B label images (H, W): 0 ground, above it objects, below it no label.
        found: B label images (H, W).
        titles: one for each image, written beside its row.

    Raises:
        DataError: shapes that do not belong together.
    """
    _check_shapes("instance_panel", images, truth, found)
    rows = len(images)
    figure, axes = new_figure(rows, 3, 10.5, 3.4 * rows + 0.5)
    for row, (image, true, said) in enumerate(zip(images, truth, found, strict=True)):
        shown = _displayable(image)
        for axis in axes[row]:
            axis.imshow(shown, cmap="gray" if shown.ndim == 2 else None, interpolation="nearest")
            bare(axis)
        true_pairs, said_pairs = matched_objects(true, said)
        for axis, labels, pairs, alone in (
            (axes[row, 1], true, true_pairs, MISSED),
            (axes[row, 2], said, said_pairs, FALSE),
        ):
            lines = _edges(np.maximum(labels, 0))
            hit = lines & np.isin(labels, pairs)
            axis.imshow(_painted([(hit, HIT), (lines & ~hit, alone)]), interpolation="nearest")
            count = len(np.unique(labels[labels > 0]))
            axis.set_xlabel(f"{count} objects, {len(pairs)} matched")
        axes[row, 0].set_ylabel(titles[row])
    for axis, title in zip(axes[0], ("input", "true objects", "predicted objects"), strict=True):
        axis.set_title(title)
    shades = (("matched at IoU 0.5", HIT), ("missed", MISSED), ("false", FALSE))
    handles = [Patch(facecolor=color, label=name) for name, color in shades]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _edges(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: the objects' edges inside of them, as thick as it takes to be seen in a picture of that size."""
    lines = find_boundaries(labels, mode="inner")
    thick = round(max(labels.shape) / 250)
    return ndimage.binary_dilation(lines, iterations=thick - 1) & (labels > 0) if thick > 1 else lines


def _painted(parts: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """(H, W, 4): every mask in its colour, the rest transparent."""
    canvas = np.zeros((*parts[0][0].shape, 4))
    for where, color in parts:
        canvas[where] = to_rgba(color)
    return canvas


def confusion_matrix(confusion: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """Which classes are taken for which: the share of every true class, and the pixels.

    Args:
        confusion: (C, C) counts, rows truth, columns prediction.
        names: of the classes; by default "background", "class 1", ...

    Raises:
        DataError: another number of names than of classes.
    """
    classes = len(confusion)
    names = _class_names("confusion_matrix", names, classes)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = 1.6 + 0.95 * classes
    figure, ((axis,),) = new_figure(1, 1, side + 0.8, side)
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(classes):
        for column in range(classes) if totals[row] else ():
            text = f"{shares[row, column]:.1%}\n{_short(int(confusion[row, column]))}"
            axis.text(
                column, row, text, ha="center", va="center", fontsize=8, color="w" if shares[row, column] > 0.6 else "k"
            )
    axis.set_xticks(range(classes), names, rotation=30, ha="right")
    axis.set_yticks(range(classes), names)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="share of the true class")
    return figure


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
    return str(count)


def instance_curves(thresholds: Sequence[float], figures: Mapping[str, Sequence[float]]) -> Figure:
    """Figures of objects over the threshold of IoU.

    Args:
        thresholds: T of them.
        figures: name -> T values in [0, 1].
    """
    figure, ((axis,),) = new_figure(1, 1, 4.6, 3.4)
    for color, (name, values) in zip(PALETTE[1:], figures.items(), strict=False):
        axis.plot(thresholds, values, "-o", color=color, markersize=3, label=name)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("IoU from which objects match")
    axis.grid(alpha=0.25)
    axis.legend()
    return figure


def _class_names(figure: str, names: Sequence[str] | None, classes: int) -> Sequence[str]:
    names = names or ["background", *(f"class {c}" for c in range(1, classes))]
    if len(names) != classes:
        raise DataError(f"{figure}: expected names of {classes} classes, got {len(names)}")
    return names


def _check_shapes(name: str, images: Stack, target: Stack, preds: Stack) -> None:
    shapes = [(np.shape(i), np.shape(t), np.shape(p)) for i, t, p in zip(images, target, preds, strict=False)]
    if not len(images) == len(target) == len(preds) or any(len(i) != 3 or i[1:] != t or t != p for i, t, p in shapes):
        raise DataError(
            f"{name}: expected images (B, N, H, W) and maps (B, H, W), got {np.shape(images)}, {np.shape(target)}, "
            f"{np.shape(preds)}"
        )


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
