"""Training curves from a run's CSV log."""

import pandas as pd
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, new_figure

_SPLIT_STYLE = {"train": (PALETTE[1], "-"), "val": (PALETTE[2], "-"), "test": (PALETTE[3], "--")}


def training_curves(log: pd.DataFrame) -> Figure:
    """One panel per figure logged, its splits together, over epochs.

    Args:
        log: a CSVLogger's table: a column `epoch`, columns named `split/name`, one row per logging event.

    Raises:
        DataError: no column is named `split/name`.
    """
    columns = [c for c in log.columns if c.split("/")[0] in _SPLIT_STYLE and not c.endswith("_step")]
    if not columns:
        raise DataError(f"training_curves: no 'split/name' column among {list(log.columns)}")
    names = list(dict.fromkeys(c.split("/", 1)[1] for c in columns))
    width = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // width)
    figure, axes = new_figure(rows, width, 4.0 * width, 2.8 * rows)
    for axis, name in zip(axes.flat, names, strict=False):
        for split, (color, line) in _SPLIT_STYLE.items():
            column = f"{split}/{name}"
            if column in columns:
                curve = log[["epoch", column]].dropna().groupby("epoch").last()
                marker = "o" if len(curve) < 30 else None
                axis.plot(curve.index, curve[column], line, color=color, label=split, marker=marker, markersize=3)
        axis.set_title(name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        values = log[[c for c in columns if c.split("/", 1)[1] == name]].stack()
        if len(values) and values.min() > 0 and values.max() / values.min() > 100:
            axis.set_yscale("log")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    axes.flat[0].legend()
    return figure
