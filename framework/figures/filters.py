"""Filters, the operators they are, and what replacing them costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, new_figure


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
            if np.isnan(filter_).all():
                axis.set_visible(False)
                continue
            limit = float(np.abs(filter_).max()) or 1.0
            axis.imshow(filter_, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
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
        axis.barh(range(len(layers)), share[:, c], left=left, color=PALETTE[c % len(PALETTE)], label=name, height=0.8)
        left += share[:, c]
    axis.set_yticks(range(len(layers)), [f"{name} ({n})" for name, n in zip(layers, counts.sum(1), strict=True)])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the layer's filters")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def sigma_distributions(sigmas: Mapping[str, np.ndarray]) -> Figure:
    """Histograms of the scales of each operator.

    Args:
        sigmas: operator -> (n, 2) sigma_x and sigma_y in pixels; n may be 0.
    """
    figure, axes = new_figure(-(-len(sigmas) // 4), 4, 11, 2.4 * -(-len(sigmas) // 4))
    top = max((float(v.max()) for v in sigmas.values() if len(v)), default=1.0)
    edges = np.linspace(0, top * 1.001, 25)
    for axis, (name, values) in zip(axes.flat, sigmas.items(), strict=False):
        for column, (label, color) in enumerate((("sigma_x", PALETTE[1]), ("sigma_y", PALETTE[2]))):
            if len(values):
                axis.hist(values[:, column], edges, color=color, alpha=0.6, label=label)
        axis.set_title(f"{name} ({len(values)})")
        axis.set_xlabel("pixels")
    for axis in axes.flat[len(sigmas) :]:
        axis.set_visible(False)
    axes.flat[0].legend()
    return figure


def explained_energy(energy: Mapping[str, np.ndarray], layers: Sequence[str]) -> Figure:
    """Explained energy of every bank, layer by layer.

    Args:
        energy: bank -> (L,) shares in [0, 1], NaN where a layer has no energy.
        layers: L names in the order of the network.
    """
    figure, axes = new_figure(1, 1, max(6.0, 0.45 * len(layers) + 2), 4)
    axis = axes[0, 0]
    for number, (name, values) in enumerate(energy.items(), start=1):
        random = name.startswith("random")
        color = "0.6" if random else PALETTE[(number - 1) % 8 + 1]
        axis.plot(range(len(layers)), values, "--" if random else "-", color=color, marker="o", ms=3, label=name)
    axis.set_xticks(range(len(layers)), list(layers), rotation=60, ha="right", fontsize=7)
    axis.set_ylim(0, 1)
    axis.set_ylabel("explained energy")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper")
    return figure


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
            axis.text(value + 0.8, y, f"{value:.1f}", va="center", fontsize=7)
    axis.axvline(float(original["top1"].iloc[0]), color=PALETTE[6], linestyle="--", label="untouched")
    axis.set_yticks(range(len(banks)), banks)
    axis.invert_yaxis()
    axis.set_xlim(0, 105)
    axis.set_xlabel("top-1, percent")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
