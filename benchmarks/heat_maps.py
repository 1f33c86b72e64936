"""The heat maps of K-Origins' experiment E3: what every network reaches, beside how hard the classes are to tell."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from framework.figures.style import new_figure

#: repetitions of the bootstrap over the cells of the grid
DRAWS = 2000


def grid(frame: pd.DataFrame, column: str) -> tuple[NDArray[np.float64], list[float], list[float]]:
    """The mean over seeds of a column: (noises, distances) float64, NaN where a cell is missing, and both axes."""
    table = frame.assign(
        value=pd.to_numeric(frame[column]),
        x=pd.to_numeric(frame["distance"]),
        y=pd.to_numeric(frame["noise"]),
    ).pivot_table(index="y", columns="x", values="value", aggfunc="mean")
    return table.to_numpy(dtype=np.float64), list(table.columns), list(table.index)


def correlation(frame: pd.DataFrame, measured: str, explained_by: str, seed: int = 0) -> tuple[float, float, float]:
    """Pearson's correlation over the cells of the grid, and its 95 % interval.

    Seeds are averaged first; the interval is the percentile bootstrap over cells, which are what the grid chose.

    Returns:
        Correlation, lower and upper end.
    """
    cells = frame.assign(
        a=pd.to_numeric(frame[measured]), b=pd.to_numeric(frame[explained_by])
    ).groupby(["distance", "noise"])[["a", "b"]].mean().to_numpy()  # fmt: skip
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(cells), size=(DRAWS, len(cells)))
    values = [np.corrcoef(cells[draw].T)[0, 1] for draw in draws if np.ptp(cells[draw], axis=0).min() > 0]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(np.corrcoef(cells.T)[0, 1]), float(low), float(high)


def panels(frame: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.float64], str]]:
    """Title, values and kind (`share` in [0, 1] or `difference`) of every map, in the order they are drawn."""
    layer, plain, control = (frame[frame["network"] == name] for name in ("KRFL14", "RFL14", "RFL14 BatchNorm"))
    yield "KRFL14: IoU", grid(layer, "iou")[0], "share"
    yield "RFL14: IoU", grid(plain, "iou")[0], "share"
    yield "RFL14, BatchNorm: IoU", grid(control, "iou")[0], "share"
    yield "Hellinger distance H", grid(layer, "hellinger")[0], "share"
    yield "KRFL14 - RFL14", grid(layer, "iou")[0] - grid(plain, "iou")[0], "difference"
    yield "KRFL14 - BatchNorm", grid(layer, "iou")[0] - grid(control, "iou")[0], "difference"


def heat_maps(frame: pd.DataFrame) -> Figure:
    """Six maps over distance of the means and noise of the objects, each cell with its number."""
    _, distances, noises = grid(frame, "iou")
    figure, axes = new_figure(2, 3, 11.0, 6.2)
    for axis, (title, values, kind) in zip(axes.flat, panels(frame), strict=True):
        share = kind == "share"
        image = axis.imshow(
            values, origin="lower", aspect="auto",
            cmap="viridis" if share else "RdBu_r", vmin=0 if share else -1, vmax=1,
        )  # fmt: skip
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.2f}" if share else f"{value:+.2f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(distances)), [f"{d:g}" for d in distances])
        axis.set_yticks(range(len(noises)), [f"{n:g}" for n in noises])
    for axis in axes[-1]:
        axis.set_xlabel("distance of the means")
    for axis in axes[:, 0]:
        axis.set_ylabel("std of the objects")
    return figure
