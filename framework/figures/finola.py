"""Reconstructions, wave speeds and the PDE's residual of FINOLA's maps."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, new_figure


def reconstruction_grid(images: np.ndarray, reconstructions: np.ndarray, title: str = "") -> Figure:
    """One column per image: the image, its reconstruction with the PSNR, and the absolute error.

    Args:
        images: (B, 3, H, W) in [0, 1].
        reconstructions: the same shape, clipped to [0, 1].
        title: of the figure.

    Raises:
        DataError: shapes that do not belong together.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != reconstructions.shape:
        raise DataError(
            f"reconstruction_grid: expected two (B, 3, H, W) of the same shape, got {images.shape} and "
            f"{reconstructions.shape}"
        )
    columns = len(images)
    figure, axes = new_figure(3, columns, max(4.0, 2.2 * columns), 7.0)
    for column, (image, said) in enumerate(zip(images, reconstructions, strict=True)):
        mse = float(((image - said) ** 2).mean())
        axes[0, column].imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
        axes[1, column].imshow(said.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
        axes[1, column].set_xlabel("identical" if mse == 0 else f"{-10 * np.log10(mse):.2f} dB")
        shown = axes[2, column].imshow(np.abs(image - said).mean(0), cmap="magma", vmin=0, vmax=0.5)
        for axis in axes[:, column]:
            bare(axis)
    for row, name in enumerate(("image", "reconstruction", "absolute error")):
        axes[row, 0].set_ylabel(name)
    figure.colorbar(shown, ax=list(axes[2]), shrink=0.8)
    if title:
        figure.suptitle(title)
    return figure


def speed_spectrum(speeds: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Wave speeds in the complex plane with the unit circle, and the distribution of their moduli.

    Args:
        speeds: name -> (C - 1,) complex speeds, cells per cell.
        title: of the figure.

    Raises:
        DataError: nothing to draw.
    """
    if not speeds:
        raise DataError("speed_spectrum: expected at least one named array of speeds, got none")
    figure, axes = new_figure(1, 2, 9.5, 4.4)
    plane, histogram = axes[0]
    moduli = np.concatenate([np.abs(s) for s in speeds.values()])
    low, high = np.log10(max(moduli.min(), 1e-6)), np.log10(moduli.max())
    edges = np.logspace(low - 0.05, high + 0.05, 25)
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 181))
    plane.plot(circle.real, circle.imag, color="0.7", linewidth=1)
    for i, (name, values) in enumerate(speeds.items()):
        color = PALETTE[1 + i % (len(PALETTE) - 1)]
        real = float((np.abs(values.imag) <= 1e-9 * np.abs(values)).mean())
        plane.plot(values.real, values.imag, "o", color=color, markersize=3, alpha=0.7, label=name)
        histogram.hist(
            np.abs(values),
            edges,
            color=color,
            alpha=0.6,
            label=f"{name}: median {np.median(np.abs(values)):.2f}, {real:.0%} real",
        )
    # a few speeds are far out; the plane shows nine tenths of them, the histogram all
    reach = 1.1 * max(1.0, float(np.quantile(moduli, 0.9)))
    outside = float((moduli > reach).mean())
    plane.set_xlim(-reach, reach)
    plane.set_ylim(-reach, reach)
    plane.set_aspect("equal")
    plane.set_xlabel("real part of the speed (cells per cell)")
    plane.set_ylabel("imaginary part")
    plane.set_title(f"wave speeds; {outside:.0%} lie outside")
    histogram.set_xscale("log")
    histogram.set_xlabel("modulus of the speed")
    histogram.set_ylabel("number")
    # below the axes, where they hide nothing
    plane.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    histogram.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def residual_map(residual: np.ndarray, title: str = "") -> Figure:
    """The residual ||z_x - Q z_y|| / ||z_x|| over the map, and its cumulative distribution.

    Args:
        residual: (H, W), NaN where a cell has no outward neighbours.
        title: of the figure.

    Raises:
        DataError: not a map.
    """
    if residual.ndim != 2:
        raise DataError(f"residual_map: expected (H, W), got {residual.shape}")
    figure, axes = new_figure(1, 2, 9.5, 4.2)
    shown = axes[0, 0].imshow(residual, cmap="viridis", interpolation="nearest", vmin=0)
    axes[0, 0].set_xlabel("column")
    axes[0, 0].set_ylabel("row")
    axes[0, 0].set_title("PDE residual, mean over images")
    figure.colorbar(shown, ax=axes[0, 0])
    values = np.sort(residual[np.isfinite(residual)])
    axes[0, 1].plot(values, np.linspace(0, 1, len(values)), color=PALETTE[1])
    axes[0, 1].axvline(1.0, color="0.7", linewidth=1)
    axes[0, 1].set_xlim(left=0)
    axes[0, 1].set_xlabel("residual (0: the PDE holds)")
    axes[0, 1].set_ylabel("share of cells below")
    axes[0, 1].grid(alpha=0.25)
    if title:
        figure.suptitle(title)
    return figure
