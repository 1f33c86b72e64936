"""Tables of docs/korigins.md for its studies of colours (E4) and of the number of origins, for when both are run."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, spread, table
from benchmarks.tables.korigins_studies import NETWORKS


@table
def korigins_colours() -> str:
    """IoU on several intensities and colours, squares and circles."""
    frame = read("korigins_colours")
    rows = []
    for (data, shape), group in frame.groupby(["data", "data.shape_kind"], sort=False):
        row = [str(data), str(shape), group["hellinger"].iloc[0]]
        rows.append([*row, *(spread(group[group["network"] == name]["iou"], 2) for name in NETWORKS)])
    header = ["data", "shapes", "H of the closest pair", *(f"{name}: IoU" for name in NETWORKS)]
    return markdown(header, rows) + provenance(frame)


@table
def korigins_how_many() -> str:
    """IoU, parameters and time by number of origins."""
    frame = read("korigins_how_many")
    rows = []
    for (count, deeper), group in frame.groupby(["model.first_origins", "deeper"], sort=False):
        seconds = spread(pd.to_numeric(group["cpu_s"]), 0)
        rows.append([str(count), str(deeper), group["parameters"].iloc[0], spread(group["iou"]),
                     ", ".join(group.sort_values("seed")["epochs_to_goal"]), seconds])  # fmt: skip
    header = ["K, first level", "K, deeper levels", "parameters", "test IoU", "epochs to 0.99 IoU, one per seed",
              "processor seconds"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)
