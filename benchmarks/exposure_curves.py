"""F1 of nuclei over the exposure of the test pictures, for every network, input and training exposure."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.microscopy import EXPOSURES
from framework.figures.style import PALETTE, new_figure

AXES = ["network", "normalisation", "exposure"]
#: network -> colour and name
NETWORKS = {
    "KRFL38": (PALETTE[6], "with origins"),
    "RFL38": (PALETTE[5], "without"),
    "RFL38 BatchNorm": (PALETTE[3], "without, BatchNorm"),
    "KM-UNet": (PALETTE[1], "KM-UNet"),
    "U-Net": (PALETTE[8], "U-Net"),
}
#: input, training exposure -> panel, line
LINES = {
    ("raw", "as recorded"): (0, "-"),
    ("raw", "varied tenfold"): (0, "--"),
    ("zscore", "as recorded"): (1, "-"),
    ("percentile", "as recorded"): (1, "--"),
}
TITLES = ("raw; dashed: trained on varied exposure", "z-scores; dashed: percentiles")


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every network's better rate, which alone has every seed."""
    counts = frame.groupby([*AXES, "rate"], sort=False)["seed"].nunique()
    best = counts.groupby(level=[0, 1, 2]).idxmax()
    keys = pd.MultiIndex.from_frame(frame[[*AXES, "rate"]])
    return frame[keys.isin(list(best))]


def _panel(axis: Axes, frame: pd.DataFrame, panel: int) -> None:
    for (network, given, exposure), group in frame.groupby(AXES, sort=False):
        place, line = LINES[str(given), str(exposure)]
        if place != panel:
            continue
        color, _ = NETWORKS[str(network).removesuffix(" normalised")]
        values = group[[f"f1_x{e:g}" for e in EXPOSURES]].apply(pd.to_numeric)
        axis.plot(EXPOSURES, values.mean(), line, color=color, linewidth=1.2, marker=".")
        axis.fill_between(EXPOSURES, values.min(), values.max(), color=color, alpha=0.12, linewidth=0)


def exposure_curves(frames: dict[str, pd.DataFrame], floor: pd.DataFrame) -> Figure:
    """A row of two panels for every data set; bands are the seeds' least and largest.

    Args:
        frames: data set, as the floor names it -> its study.
        floor: `results/korigins_microscopy_floor.csv`, of which the better number of classes is drawn.
    """
    figure, axes = new_figure(len(frames), 2, 8.5, 3.0 * len(frames) + 0.5)
    for row, (data, frame) in zip(axes, frames.items(), strict=True):
        below = floor[floor["data"] == data]
        best = below.loc[pd.to_numeric(below["f1_x1"]).idxmax()]
        for panel, axis in enumerate(row):
            _panel(axis, chosen(frame), panel)
            axis.plot(EXPOSURES, [float(best[f"f1_x{e:g}"]) for e in EXPOSURES], ":", color="0.5")
            axis.set_xscale("log")
            axis.set_xticks(EXPOSURES, [f"{e:g}" for e in EXPOSURES])
            axis.minorticks_off()
            axis.set_ylim(0, 1)
        row[0].set_ylabel(f"{data}\nF1 at IoU 0.5")
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("exposure of the test pictures")
    handles = [Line2D([], [], color=color, marker=".", label=name) for color, name in NETWORKS.values()]
    handles.append(Line2D([], [], color="0.5", linestyle=":", label="Multi-Otsu"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    return figure
