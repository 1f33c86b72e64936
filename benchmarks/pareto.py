"""Dice against time and against bytes for every form of the spline layers: what is worth its cost, and what is not."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from framework.figures.style import PALETTE, new_figure

#: form -> marker, colour and name; a rank stands beside its point
STYLES = {
    "exact": ("*", PALETTE[8], "exact"),
    "table": ("s", PALETTE[4], "table"),
    "low_rank": ("o", PALETTE[1], "low rank"),
    "int8": ("D", PALETTE[6], "int8"),
    "low_rank_int8": ("^", PALETTE[3], "low rank, int8"),
}
COSTS = {"ratio_to_conv": "time of a layer / a plain convolution's", "kib": "KiB of a layer"}
#: forms that lose more Dice than this stand at the lower edge, with their Dice
LOST = 0.03


def front(costs: list[float], scores: list[float]) -> list[tuple[float, float]]:
    """The points that no other beats: by cost, each with a higher score than all before it."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(zip(costs, scores, strict=True), key=lambda pair: (pair[0], -pair[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def spline_pareto(forms: pd.DataFrame) -> Figure:
    """Two panels from `results/spline_forms.csv`, the forms in float32: the line joins what no other form beats."""
    table = forms[(forms["dice"] != "") & (forms["dtype"] == "float32")]
    exact = float(table.loc[table["form"] == "exact", "dice"].iloc[0])
    figure, axes = new_figure(1, 2, 8.5, 3.6)
    for axis, (column, label) in zip(axes.flat, COSTS.items(), strict=True):
        _panel(axis, table, column, exact)
        axis.set_xlabel(label)
    axes.flat[0].set_ylabel("Dice on the test pictures")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))
    figure.legend(list(kept.values()), list(kept), loc="outside upper center", ncols=len(kept), fontsize=8)
    return figure


def _panel(axis: Axes, table: pd.DataFrame, column: str, exact: float) -> None:
    floor = exact - LOST
    costs, scores = ([float(v) for v in table[name]] for name in (column, "dice"))
    line = [point for point in front(costs, scores) if point[1] > floor]
    axis.step(*zip(*line, strict=True), where="post", color=PALETTE[0], zorder=0)
    for form, rank, cost, score in zip(table["form"], table["rank"], costs, scores, strict=True):
        marker, color, name = STYLES[form]
        axis.plot(cost, max(score, floor), marker, color=color, label=name, clip_on=False)
        words = (f"R = {rank}" if rank else "") + (f": {score:.2f}" if score < floor else "")
        below = 5 if score < floor else -11
        axis.annotate(words, (cost, max(score, floor)), (5, below), textcoords="offset points", fontsize=7, color=color)
    axis.axhline(exact - 0.005, color=PALETTE[8], linewidth=0.6, linestyle=":")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(floor, exact + 0.004)
    axis.margins(x=0.15)
    axis.grid(alpha=0.25)
