"""The README's picture: one column for each method, what it sees above, what is explicit in it below."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from framework.figures.style import PALETTE, bare
from framework.nn import KOrigins, key_filter, luminance, multi_otsu, observe, spline_layers, wave_speeds

#: the bank of the README's headline
HEADLINE = "Method B"
#: points further out than this are counted, not drawn
REACH = 3.0
#: a run that `framework test` has just evaluated: `.model`, `.datamodule`
Runs = Mapping[str, Any]


def overview(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Five columns, one a method, from the quickstarts' runs and the CSV files of the filters.

    Args:
        runs: method's folder -> the command line after `test`.
        tables: name in `results/` -> its rows as text.
    """
    columns: dict[str, Callable[[SubFigure], None]] = {
        "K-Origins": lambda part: _korigins(part, runs["korigins"]),
        "KM-UNet": lambda part: _kmunet(part, runs["kmunet"]),
        "Levels-of-Experts": lambda part: _levels_of_experts(part, runs["levels_of_experts"]),
        "Master key filters": lambda part: _master_key(part, tables),
        "FINOLA": lambda part: _finola(part, runs["finola"]),
    }
    look: Any = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9}
    with rc_context(look), torch.no_grad():
        figure = Figure(figsize=(15, 6.2), layout="constrained", facecolor="white")
        parts: Any = figure.subfigures(1, 5, wspace=0.03)
        for part, (name, draw) in zip(np.atleast_1d(parts), columns.items(), strict=True):
            part.suptitle(name, fontsize=13, fontweight="bold")
            draw(part)
    return figure


def _rows(part: SubFigure) -> tuple[Axes, Axes]:
    above, below = part.subplots(2, 1, height_ratios=(1, 1))
    return above, below


def _batch(run: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    run.datamodule.setup("test")
    return run.model.cpu().eval(), next(iter(run.datamodule.test_dataloader()))


def _segmented(axis: Axes, image: torch.Tensor, classes: torch.Tensor, title: str) -> None:
    grey = image.float().mean(0).numpy()
    axis.imshow(grey, cmap="gray", interpolation="nearest")
    overlay = np.zeros((*grey.shape, 4))
    for c in range(1, int(classes.max()) + 1):
        red, green, blue = (int(PALETTE[c][i : i + 2], 16) / 255 for i in (1, 3, 5))
        overlay[classes.numpy() == c] = (red, green, blue, 0.6)
    axis.imshow(overlay, interpolation="nearest")
    axis.set_title(title)
    bare(axis)


def _korigins(part: SubFigure, run: Any) -> None:
    above, below = _rows(part)
    model, batch = _batch(run)
    _segmented(above, batch["image"][0], model(batch["image"][:1]).argmax(1)[0], "16-bit squares, segmented")
    values, labels = batch["image"].numpy().ravel(), batch["mask"].numpy().ravel()
    edges = np.linspace(values.min(), values.max(), 121)
    for c in range(int(labels.max()) + 1):
        counts = np.histogram(values[labels == c], edges)[0]
        color = "0.6" if c == 0 else PALETTE[c]
        below.stairs(counts / counts.max(), edges / 1000, fill=True, color=color, alpha=0.7)
    layer = next(m for m in model.modules() if isinstance(m, KOrigins))
    for origin in layer.weight.mean(1).tolist():
        below.axvline(origin / 1000, color="black", linewidth=1)
    below.set_title("class histograms; lines: trained origins")
    below.set_xlabel("intensity / 1000")
    below.set_yticks([])


def _kmunet(part: SubFigure, run: Any) -> None:
    above, below = _rows(part)
    model, batch = _batch(run)
    layers = spline_layers(model.network)
    with observe(layers) as moments:
        classes = model(batch["image"]).argmax(1)
    _segmented(above, batch["image"][0], classes[0], "generated cells, segmented")
    name, layer = max(layers.items(), key=lambda item: _bend(item[1]))
    points = torch.linspace(1.5 * layer.grid.low, 1.5 * layer.grid.high, 301, dtype=torch.float64)
    values = layer.edge_values(points).flatten(1).double()
    strongest = layer.edge_strength(moments[name]).flatten().argsort(descending=True)[:6]
    for place, edge in enumerate(strongest.tolist()):
        below.plot(points, values[:, edge], color=PALETTE[1 + place], linewidth=1.5)
    for knot in np.linspace(layer.grid.low, layer.grid.high, layer.grid_size + 1):
        below.axvline(knot, color="0.85", linewidth=0.6, zorder=0)
    below.set_title("kernel elements: six splines of a layer")
    below.set_xlabel("input; lines: the grid's knots")


def _bend(layer: Any) -> float:
    """Mean second difference of a layer's functions over their spread: how far they are from straight lines."""
    points = torch.linspace(layer.grid.low, layer.grid.high, 61, dtype=torch.float64)
    values = layer.edge_values(points).flatten(1).double()
    return float(values.diff(n=2, dim=0).abs().mean() / values.std().clamp_min(1e-9))


def _levels_of_experts(part: SubFigure, run: Any) -> None:
    above, below = _rows(part)
    model, batch = _batch(run)
    made = model.predict_step(batch, 0)["reconstruction"]
    number = model.names.index("chelsea") if "chelsea" in model.names else 0
    place = batch["index"].tolist().index(number)
    picture = made[place].permute(1, 2, 0)
    above.imshow(picture.numpy(), interpolation="nearest")
    above.set_title("a photograph, out of one small network")
    classes, _ = multi_otsu(luminance(picture))
    colors = np.array([[int(PALETTE[c][i : i + 2], 16) for i in (1, 3, 5)] for c in range(1, 5)], np.uint8)
    below.imshow(colors[np.asarray(classes)], interpolation="nearest")
    below.set_title("its Multi-Otsu map: the expert of each pixel")
    for axis in (above, below):
        bare(axis)


def _master_key(part: SubFigure, tables: Mapping[str, pd.DataFrame]) -> None:
    halves: Any = part.subfigures(2, 1)
    upper, lower = halves
    axis = upper.subplots()
    table = tables["key_filters_replacement"].query("network == 'mobilenetv2'")
    table = table.assign(top1=pd.to_numeric(table["top1"]), bank=table["bank"].str.replace(r"-\d+$", "", regex=True))
    top1 = table.groupby(["bank", "recalibrated"])["top1"].mean()
    # the banks of the README's table, recalibrated like there; the network itself needs no recalibration
    bars = {
        "untouched": top1["original", "False"],
        "scales per filter": top1["sigma-filter", "True"],
        "scales per layer": top1["sigma-layer", "True"],
        HEADLINE: top1[HEADLINE.removeprefix("Method "), "True"],
        "random filters": top1["random", "True"],
    }
    axis.barh(list(bars), list(bars.values()), color=["0.6", *[PALETTE[1]] * 3, PALETTE[6]])
    for place, value in enumerate(bars.values()):
        axis.text(value + 1, place, f"{value:.0f}", va="center")
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    upper.suptitle("MobileNetV2 with filters replaced,\nrecalibrated, untrained: top-1", fontsize=9)
    fits = tables["key_filters_fits"].query(f"method == '{HEADLINE[-1]}'").sort_values("filter", key=pd.to_numeric)
    cells = lower.subplots(3, 3)
    cells[2, 2].set_visible(False)
    for cell, (_, row) in zip(cells.flat, fits.iterrows(), strict=False):
        alpha = float(row["alpha"]) if row["alpha"] else None
        values = key_filter(int(row["filter"]), float(row["sigma_x"]), float(row["sigma_y"]), alpha).numpy()
        limit = abs(values).max()
        cell.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bare(cell)
    lower.suptitle(f"the eight operators, {HEADLINE}", fontsize=9)


def _finola(part: SubFigure, run: Any) -> None:
    halves: Any = part.subfigures(2, 1)
    upper, lower = halves
    model, batch = _batch(run)
    made = model.predict_step(batch, 0)["reconstruction"]
    cells = upper.subplots(2, 2)
    for column in range(2):
        pictures = (batch["image"][column + 1].permute(1, 2, 0).clamp(0, 1), made[column + 1].permute(1, 2, 0))
        for row, picture in enumerate(pictures):
            cells[row, column].imshow(picture.numpy(), interpolation="nearest")
            bare(cells[row, column])
    floats = model.network.channels * model.network.paths
    upper.suptitle(f"crops, and {floats} floats rolled out", fontsize=9)
    axis = lower.subplots()
    growth = model.network.growth
    right, left, down, up = growth.directional().cpu()
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 181))
    axis.plot(circle.real, circle.imag, color="0.7", linewidth=1)
    moduli = []
    for pair, color in (((right, down), PALETTE[1]), ((left, up), PALETTE[2])):
        speeds = wave_speeds(*pair, growth.normalize).numpy()
        moduli += np.maximum(abs(speeds.real), abs(speeds.imag)).tolist()
        axis.plot(speeds.real, speeds.imag, "o", color=color, markersize=3, alpha=0.8)
    axis.set_xlim(-REACH, REACH)
    axis.set_ylim(-REACH, REACH)
    axis.set_aspect("equal")
    outside = np.mean(np.array(moduli) > REACH)
    axis.set_title(f"wave speeds; {outside:.0%} lie outside")
    axis.set_xlabel("real part; circle: modulus 1")
