"""Filters, the operators they are, and what replacing them costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, new_figure

# ColorBrewer's RdBu with a centre that is white and not light grey
_BLUES, _REDS = "#053061 #2166ac #4393c3 #92c5de #d1e5f0", "#fddbc7 #f4a582 #d6604d #b2182b #67001f"
_DIVERGING = LinearSegmentedColormap.from_list("zero_white", [*_BLUES.split(), "#ffffff", *_REDS.split()])
# the two half-step operators of an axis share a hue; 7 and 8, which have no direction, are greys
_OPERATOR_COLORS = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#555555", "#d9d9d9")
# without yellow, which is too light for a line
_LINE_COLORS = (PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[5], PALETTE[6], PALETTE[8])


def operator_label(name: str) -> str:
    """An operator's name, e.g. `d_y^+ T` or `delta - alpha Lap T`, as matplotlib's mathematics."""
    for word, symbol in {"delta": r"\delta", "alpha": r"\alpha\,", "Lap": r"\nabla^2", " T": r"\,T"}.items():
        name = name.replace(word, symbol)
    return f"${name}$"


def filter_panel(
    filters: np.ndarray, names: Sequence[str] | None = None, rows: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Filters as pictures, red positive, blue negative, white zero, each on its own symmetric scale.

    Args:
        filters: (n, k, k) in one row after the other, or (r, n, k, k) with a row per bank.
        names: n titles of the columns (of the single filters for (n, k, k)).
        rows: r labels.
        title: of the figure.

    Raises:
        DataError: another shape, or labels that do not fit.
    """
    if filters.ndim == 3:
        width = min(8, len(filters))
        count = -(-len(filters) // width)
        blank = np.full((count * width - len(filters), *filters.shape[1:]), np.nan)
        grid = np.concatenate([filters, blank]).reshape(count, width, *filters.shape[1:])
    else:
        grid = filters
    if grid.ndim != 4 or (rows is not None and len(rows) != len(grid)):
        raise DataError(f"filter_panel: expected filters (n, k, k) or (rows, n, k, k), got {filters.shape}")
    if names is not None and len(names) != (len(filters) if filters.ndim == 3 else grid.shape[1]):
        raise DataError(f"filter_panel: got {len(names)} names for filters {filters.shape}")
    figure, axes = new_figure(len(grid), grid.shape[1], 1.25 * grid.shape[1] + 0.8, 1.35 * len(grid) + 0.4)
    for r, line in enumerate(grid):
        for c, filter_ in enumerate(line):
            axis = axes[r, c]
            bare(axis)
            for spine in axis.spines.values():
                spine.set(visible=True, color="0.8", linewidth=0.6)
            if np.isnan(filter_).all():
                axis.set_visible(False)
                continue
            limit = float(np.abs(filter_).max()) or 1.0
            axis.imshow(filter_, cmap=_DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
            number = r * grid.shape[1] + c if filters.ndim == 3 else c
            if names is not None and (filters.ndim == 3 or r == 0):
                axis.set_title(names[number], fontsize=8)
        if rows is not None:
            axes[r, 0].set_ylabel(rows[r], rotation=0, ha="right", va="center")
    if title:
        figure.suptitle(title)
    return figure


def operator_histograms(counts: np.ndarray, layers: Sequence[str], names: Sequence[str]) -> Figure:
    """How often each layer uses each operator.

    Args:
        counts: (L, m) integer counts.
        layers: L names, in the order of the network.
        names: of the m operators.

    Raises:
        DataError: shapes that do not belong together.
    """
    if counts.shape != (len(layers), len(names)):
        raise DataError(f"operator_histograms: counts {counts.shape}, {len(layers)} layers, {len(names)} operators")
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure, axes = new_figure(1, 1, 8, 0.28 * len(layers) + 1.6)
    axis = axes[0, 0]
    left = np.zeros(len(layers))
    for c, name in enumerate(names):
        color, label = _OPERATOR_COLORS[c % len(_OPERATOR_COLORS)], f"{c + 1} {operator_label(name)}"
        axis.barh(range(len(layers)), share[:, c], left=left, color=color, label=label, height=0.8)
        left += share[:, c]
    axis.set_yticks(range(len(layers)), [f"{name} ({n})" for name, n in zip(layers, counts.sum(1), strict=True)])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the layer's filters")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def sigma_distributions(sigmas: Mapping[str, np.ndarray], grid: np.ndarray, title: str = "") -> Figure:
    """How often each operator takes each scale.

    Args:
        sigmas: operator (`framework.nn.filters.key_filters.NAMES`) -> (n, 2) sigma_x and sigma_y in pixels; n may be 0.
            Equal columns are drawn once.
        grid: (g,) the scales that were tried, increasing; each gets a bar with the values nearest to it.
        title: of the figure.
    """
    figure, axes = new_figure(-(-len(sigmas) // 4), 4, 11, 2.5 * -(-len(sigmas) // 4) + 0.4)
    edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    at = np.arange(len(grid))
    marked = at[:: max(1, len(grid) // 5)]
    handles: dict[str, Artist] = {}
    for index, (axis, (name, values)) in enumerate(zip(axes.flat, sigmas.items(), strict=False), start=1):
        parts = {r"$\sigma_x$": (values[:, 0], PALETTE[1]), r"$\sigma_y$": (values[:, 1], PALETTE[2])}
        if np.array_equal(values[:, 0], values[:, 1]) and len(values):
            parts = {"one scale": (values[:, 0], "0.4")}
        for number, (label, (column, color)) in enumerate(parts.items()):
            width = 0.9 / len(parts)
            centres = at + (number - (len(parts) - 1) / 2) * width
            handles[label] = axis.bar(centres, np.histogram(column, edges)[0], width, color=color)[0]
        axis.set_title(f"{index}   {operator_label(name)}   ({len(values)})")
        axis.set_xticks(marked, [f"{grid[i]:.2g}" for i in marked])
    for axis in axes.flat[len(sigmas) :]:
        axis.set_visible(False)
    figure.supxlabel("scale in pixels; the last bar stands for everything flatter", fontsize=9)
    figure.legend(list(handles.values()), list(handles), loc="outside upper right", ncols=3, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def explained_energy(energy: Mapping[str, np.ndarray], layers: Sequence[str]) -> Figure:
    """Explained energy of every bank, layer by layer.

    Args:
        energy: bank -> (L,) shares in [0, 1], NaN where a layer has no energy.
        layers: L names in the order of the network.
    """
    figure, axes = new_figure(1, 1, max(6.0, 0.45 * len(layers) + 2), 4)
    axis = axes[0, 0]
    others = [name for name in energy if not name.startswith("random")]
    controls = len(energy) - len(others)
    control = f"random ({controls})" if controls > 1 else "random"
    for name, values in energy.items():
        if name in others:
            turn, colour = divmod(others.index(name), len(_LINE_COLORS))
            style, color, label = ("-", "-.", ":")[turn % 3], _LINE_COLORS[colour], name
        else:
            # one entry in the legend for all of them
            style, color, label, control = "--", "0.6", control, "_random"
        axis.plot(range(len(layers)), values, style, color=color, marker="o", ms=3, label=label)
    axis.set_xticks(range(len(layers)), _without_common_end(layers), rotation=60, ha="right", fontsize=7)
    axis.set_ylim(0, 1)
    axis.set_ylabel("explained energy")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _without_common_end(layers: Sequence[str]) -> list[str]:
    """`blocks.3.0.conv_dw` as `blocks.3.0` where all names end in the same word."""
    ends = {name.rpartition(".")[2] for name in layers}
    shorter = len(ends) == 1 and not next(iter(ends)).isdigit()
    return [name.rpartition(".")[0] or name if shorter else name for name in layers]


def replacement_figure(table: pd.DataFrame) -> Figure:
    """Accuracy with every bank as bars, plain and recalibrated, the untouched network as a line.

    Args:
        table: columns `bank`, `recalibrated` (bool), `top1` (percent); the row `original` is the untouched network.

    Raises:
        DataError: no row `original`.
    """
    original = table[table["bank"] == "original"]
    if original.empty:
        raise DataError("replacement_figure: the table has no row 'original'")
    rest = table[table["bank"] != "original"]
    banks = list(dict.fromkeys(rest["bank"]))
    figure, axes = new_figure(1, 1, 7, 0.38 * len(banks) + 1.4)
    axis = axes[0, 0]
    groups = [(False, "as replaced", PALETTE[5]), (True, "recalibrated", PALETTE[1])]
    groups = [g for g in groups if (rest["recalibrated"] == g[0]).any()]
    height = 0.8 / max(1, len(groups))
    for number, (kind, label, color) in enumerate(groups):
        rows = rest[rest["recalibrated"] == kind].set_index("bank")["top1"]
        at = [banks.index(bank) + (number - (len(groups) - 1) / 2) * height for bank in rows.index]
        axis.barh(at, rows, height=height, color=color, label=label)
        for y, value in zip(at, rows, strict=True):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            axis.text(value + 0.8, y, f"{value:.1f}", va="center", fontsize=7, bbox=box)
    untouched = float(original["top1"].iloc[0])
    axis.axvline(untouched, color=PALETTE[6], linestyle="--", label=f"untouched, {untouched:.1f}")
    axis.set_yticks(range(len(banks)), banks)
    axis.invert_yaxis()
    axis.set_xlim(0, 105)
    axis.set_xlabel("top-1, percent")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
