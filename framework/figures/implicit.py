"""What coordinate networks made of their images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, class_colors, new_figure


def reconstruction_panel(
    originals: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], names: Sequence[str]
) -> Figure:
    """One row per image: original, reconstruction, and the same detail of both enlarged.

    Args:
        originals: (H, W, 3) uint8 each.
        reconstructions: (H, W, 3) uint8 each.
        names: of the images.

    Raises:
        DataError: sequences of different lengths.
    """
    _check_lengths(originals, reconstructions, names)
    aspect = max(o.shape[1] / o.shape[0] for o in originals)
    figure, axes = new_figure(len(names), 4, 2.4 * (2 * aspect + 2) + 0.6, 2.4 * len(names) + 0.4)
    axes[0, 0].get_gridspec().set_width_ratios([aspect, aspect, 1, 1])
    for row, (original, said, name) in enumerate(zip(originals, reconstructions, names, strict=True)):
        height, width = original.shape[:2]
        side = max(4, min(height, width) // 4)
        top, left = _busiest(original, side)
        detail = (slice(top, top + side), slice(left, left + side))
        for axis, shown in zip(axes[row], (original, said, original[detail], said[detail]), strict=True):
            axis.imshow(shown, interpolation="nearest")
            bare(axis)
        axes[row, 0].set_ylabel(name)
        for axis in axes[row, :2]:
            # a pixel reaches half a pixel to each side of its centre
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec=PALETTE[2], linewidth=0.8))
        axes[row, 1].set_xlabel(f"{_psnr(original, said):.2f} dB")
    for axis, title in zip(axes[0], ("original", "reconstruction", "detail", "its reconstruction"), strict=True):
        axis.set_title(title)
    return figure


def error_panel(originals: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """Absolute error of every pixel, the largest of its channels, in 8-bit levels, on one scale for all images.

    Args:
        originals: (H, W, 3) uint8 each.
        reconstructions: (H, W, 3) uint8 each.
        names: of the images.

    Raises:
        DataError: sequences of different lengths.
    """
    _check_lengths(originals, reconstructions, names)
    errors = [np.abs(a.astype(int) - b.astype(int)).max(2) for a, b in zip(originals, reconstructions, strict=True)]
    top = max(1.0, max(float(np.percentile(e, 99.5)) for e in errors))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(rows, columns, 5.5 * columns, 3.4 * rows)
    for axis, error, name in zip(axes.flat, errors, names, strict=False):
        drawn = axis.imshow(error, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
        axis.set_title(f"{name}: mean {error.mean():.2f}, 99th percentile {np.percentile(error, 99):.0f}")
        bare(axis)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.colorbar(drawn, ax=axes, label="absolute error, 8-bit levels", shrink=0.8, extend="max")
    return figure


def derivative_panel(
    given: Sequence[np.ndarray],
    reconstructions: Sequence[np.ndarray],
    originals: Sequence[np.ndarray],
    names: Sequence[str],
    title: str,
) -> Figure:
    """One row per image: the derivative that a network was fitted to, what it makes of it, and the original.

    Args:
        given: (H, W) float each.
        reconstructions: (H, W, 3) uint8 each.
        originals: (H, W, 3) uint8 each.
        names: of the images.
        title: what was given.

    Raises:
        DataError: sequences of different lengths.
    """
    _check_lengths(given, reconstructions, originals, names)
    aspect = max(o.shape[1] / o.shape[0] for o in originals)
    figure, axes = new_figure(len(names), 3, 2.2 * 3 * aspect + 0.6, 2.2 * len(names) + 0.4)
    for row, (shown, said, original) in enumerate(zip(given, reconstructions, originals, strict=True)):
        low, high = np.percentile(shown, (0.5, 99.5))
        axes[row, 0].imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
        axes[row, 1].imshow(said, interpolation="nearest")
        axes[row, 2].imshow(original, interpolation="nearest")
        for axis in axes[row]:
            bare(axis)
        axes[row, 0].set_ylabel(names[row])
        axes[row, 1].set_xlabel(f"{_psnr(original, said):.2f} dB")
    for axis, text in zip(axes[0], (title, "what the network says", "original"), strict=True):
        axis.set_title(text)
    return figure


def segmentation_map_panel(
    images: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    classes: int,
    names: Sequence[str],
    notes: Sequence[str] | None = None,
) -> Figure:
    """One row per image: the image, its class map and the shares of the classes.

    Args:
        images: (H, W, 3) uint8 each.
        maps: (H, W) integers in [0, classes) each.
        classes: number of classes.
        names: of the images.
        notes: a line below every map, its cost for example.

    Raises:
        DataError: sequences of different lengths.
    """
    _check_lengths(images, maps, names)
    figure, axes = new_figure(len(names), 3, 10, 2.4 * len(names) + 0.4)
    colors = class_colors(classes + 1)
    for row, (image, labels, name) in enumerate(zip(images, maps, names, strict=True)):
        axes[row, 0].imshow(image, interpolation="nearest")
        axes[row, 0].set_ylabel(name)
        axes[row, 1].imshow(labels + 1, cmap=colors, vmin=-0.5, vmax=classes + 0.5, interpolation="nearest")
        if notes is not None:
            axes[row, 1].set_xlabel(notes[row])
        for axis in axes[row, :2]:
            bare(axis)
        shares = np.bincount(labels.ravel(), minlength=classes) / labels.size
        axes[row, 2].bar(range(classes), shares, color=[colors(c + 1) for c in range(classes)])
        axes[row, 2].set_xticks(range(classes))
        axes[row, 2].set_ylim(0, max(0.5, 1.1 * shares.max()))
    for axis, title in zip(axes[0], ("image", "class map", "share of the pixels by class"), strict=True):
        axis.set_title(title)
    return figure


def psnr_over_time(steps: Sequence[int], values: np.ndarray, names: Sequence[str]) -> Figure:
    """PSNR of every image over the training steps, with their mean.

    Args:
        steps: (T,) training steps.
        values: (T, images) dB; NaN where an image was not evaluated.
        names: of the images.

    Raises:
        DataError: shapes that do not belong together.
    """
    if values.shape != (len(steps), len(names)):
        raise DataError(f"psnr_over_time: got {values.shape} values for {len(steps)} steps and {len(names)} images")
    figure, axes = new_figure(1, 1, 7, 4)
    axis = axes[0, 0]
    many = len(names) > 6
    for i, name in enumerate(names):
        color = "0.75" if many else PALETTE[1 + i % 8]
        axis.plot(steps, values[:, i], color=color, linewidth=1, label=None if many else name)
    known = ~np.isnan(values)
    mean = np.array([row[there].mean() if there.any() else np.nan for row, there in zip(values, known, strict=True)])
    axis.plot(steps, mean, color="black", linewidth=2, label=f"mean of {len(names)}")
    if many and known.any():
        last = values[known.any(1)][-1]
        lowest, highest = int(np.nanargmin(last)), int(np.nanargmax(last))
        for i, color in ((lowest, PALETTE[6]), (highest, PALETTE[3])):
            axis.plot(steps, values[:, i], color=color, linewidth=1.5, label=names[i])
    axis.set_xlabel("training step")
    axis.set_ylabel("PSNR, dB")
    axis.grid(alpha=0.25)
    axis.legend()
    return figure


def _busiest(image: np.ndarray, side: int) -> tuple[int, int]:
    """Corner of the grid cell with the largest standard deviation, where errors are easiest to see."""
    grey = image.mean(2)
    corners = [
        (y, x)
        for y in range(0, image.shape[0] - side + 1, max(1, side // 2))
        for x in range(0, image.shape[1] - side + 1, max(1, side // 2))
    ]
    return max(corners, key=lambda c: float(grey[c[0] : c[0] + side, c[1] : c[1] + side].std()))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _check_lengths(*parts: Sequence) -> None:
    if not parts[0] or len({len(part) for part in parts}) > 1:
        raise DataError(
            f"reconstruction: expected equally many images, pictures and names, got {[len(part) for part in parts]}"
        )
