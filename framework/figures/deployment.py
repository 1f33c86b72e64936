"""What an exported form costs and loses: the picture that people decide by."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from framework.errors import DataError
from framework.figures.style import PALETTE, new_figure

_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
_COLORS = {"eager": PALETTE[8], "pt2": PALETTE[1], "torchscript": PALETTE[3], "onnx": PALETTE[2]}


def deployment(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What is lost against time and against bytes, a point for every file.

    Args:
        rows: with `form`, `format`, `precision`, `cpu_ms`, `bytes`, `share` (largest difference as a share of the
            largest value) and, where the data were at hand, `score` (accuracy or Dice), as text or numbers; values that
            are not known are empty.

    Raises:
        DataError: no row.
    """
    if not rows:
        raise DataError("deployment: no row")
    scored = all(row.get("score", "") != "" for row in rows)
    figure, axes = new_figure(1, 2, 8.5, 3.6)
    for axis, (column, label) in zip(
        axes.flat, (("cpu_ms", "one sample, processors' ms"), ("bytes", "bytes of the file")), strict=True
    ):
        for row in rows:
            value = row.get(column, "")
            if value == "":
                continue
            height = float(row["score"] if scored else row["share"]) if row["format"] != "eager" or scored else 0.0
            label_of = f"{row['form']}, {row['format']} {row['precision']}"
            axis.plot(
                float(value),
                height if scored else max(height, 1e-9),
                _MARKERS.get(str(row["precision"]), "x"),
                color=_COLORS.get(str(row["format"]), PALETTE[4]),
                label=label_of,
            )
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        if not scored:
            axis.set_yscale("log")
    axes.flat[0].set_ylabel("accuracy or Dice on the test split" if scored else "largest difference, of largest value")
    axes.flat[0].legend(fontsize=7)
    return figure
