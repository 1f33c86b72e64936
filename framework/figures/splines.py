"""What spline layers have learned: functions over the data, strength of edges, what lies off the grid."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, bare, new_figure
from framework.nn.splines.layer import SplineLayer
from framework.nn.splines.moments import SplineMoments, histogram_range

Shown = Mapping[str, tuple[SplineLayer, SplineMoments]]


def spline_curves(layers: Shown, edges: int = 6) -> Figure:
    """The strongest learned functions of every layer, with the histogram of the layer's inputs under them.

    Args:
        layers: name -> (layer, moments of its inputs).
        edges: functions per layer.

    Raises:
        DataError: no layers.
    """
    figure, axes = _panels(layers, 3.1, 2.3)
    for axis, (name, (layer, moments)) in zip(axes, layers.items(), strict=False):
        low, high = histogram_range(layer)
        points = torch.linspace(low, high, 201, dtype=torch.float64)
        with torch.no_grad():
            values = layer.edge_values(points).flatten(1).double().cpu()
            strongest = layer.edge_strength(moments).flatten().cpu().argsort(descending=True)[:edges]
        for place, edge in enumerate(strongest.tolist()):
            axis.plot(points, values[:, edge], color=PALETTE[1 + place % (len(PALETTE) - 1)], linewidth=1)
        bottom, top = axis.get_ylim()
        share = moments.histogram.numpy() / max(1.0, float(moments.histogram.max()))
        bins = np.linspace(low, high, len(share) + 1)
        heights = bottom + 0.35 * (top - bottom) * share
        axis.stairs(heights, bins, baseline=bottom, fill=True, color="0.88", zorder=0)
        axis.set_ylim(bottom, top)
        for end in (layer.grid.low, layer.grid.high):
            axis.axvline(end, color="0.5", linewidth=0.6, linestyle=":")
        axis.set_title(f"{name}, G = {layer.grid_size}")
        axis.tick_params(labelsize=7)
    figure.suptitle("strongest splines of every layer over the histogram of its inputs (dotted: the grid's ends)")
    return figure


def edge_strength_maps(layers: Shown) -> Figure:
    """The standard deviation of every edge's output: rows are outputs, columns inputs and kernel positions.

    Pruned edges are grey. Raises DataError without layers.
    """
    figure, axes = _panels(layers, 3.1, 2.3)
    for axis, (name, (layer, moments)) in zip(axes, layers.items(), strict=False):
        strength = layer.edge_strength(moments).flatten(1).cpu().numpy()
        alive = layer.live.flatten(1).cpu().numpy()
        shown = np.ma.masked_where(~alive, strength)
        axis.set_facecolor("0.8")
        axis.imshow(shown, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
        bare(axis)
        axis.set_title(name)
        axis.set_xlabel(f"{alive.mean():.0%} live, strongest {strength.max():.2g}", fontsize=8)
    figure.suptitle(
        "edge strength from 0 (dark) to the strongest: outputs down, inputs and positions across; grey: pruned"
    )
    return figure


def outside_fractions(fractions: Mapping[str, float]) -> Figure:
    """Share of every layer's inputs that lies outside its grid.

    Args:
        fractions: name -> share in [0, 1].

    Raises:
        DataError: no layers.
    """
    if not fractions:
        raise DataError("outside_fractions: no layers to draw")
    figure, axes = new_figure(1, 1, 6, 1 + 0.25 * len(fractions))
    axis = axes[0, 0]
    values = [100 * v for v in fractions.values()]
    axis.barh(range(len(values)), values, color=PALETTE[5])
    axis.set_yticks(range(len(values)), list(fractions))
    axis.invert_yaxis()
    axis.set_xlabel("inputs outside the grid, %")
    return figure


def _panels(layers: Shown, width: float, height: float) -> tuple[Figure, list[Axes]]:
    if not layers:
        raise DataError("layers: there are no spline layers to draw")
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = new_figure(rows, columns, width * columns, height * rows + 0.4)
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    return figure, list(axes.flat)
