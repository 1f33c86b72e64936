"""Tables of docs/korigins.md from real nuclei, and of the number of origins."""

from collections.abc import Callable

import pandas as pd

from benchmarks.exposure_curves import AXES, chosen
from benchmarks.microscopy import EXPOSURES
from benchmarks.tables.common import markdown, provenance, read, spread, table

HEADER = ["network", "input", "trained", "rate", *(f"F1, x {e:g}" for e in EXPOSURES), "AP, x 1", "Dice, x 1",
          "parameters"]  # fmt: skip


def measured(group: pd.DataFrame) -> list[str]:
    """F1 at every exposure, then AP and Dice of the pictures as they are."""
    columns = [*(f"f1_x{e:g}" for e in EXPOSURES), "ap_x1", "dice_x1"]
    return [spread(group[column]) for column in columns]


def of_nuclei(name: str, floor: str) -> str:
    """One row per network, input and training exposure, at the rate that all seeds ran; below it the floor."""
    frame, below = read(name), read("korigins_microscopy_floor")
    rows = []
    for (network, normalisation, exposure), group in chosen(frame).groupby(AXES, sort=False):
        title = str(network).removesuffix(" normalised")
        cells = [title, str(normalisation), str(exposure), group["rate"].iloc[0]]
        rows.append([*cells, *measured(group), group["parameters"].iloc[0]])
    for classes, group in below[below["data"] == floor].groupby("classes", sort=False):
        rows.append([f"Multi-Otsu, {classes} classes, watershed", "percentile", "", "", *measured(group), ""])
    return markdown(HEADER, rows) + provenance(frame) + provenance(below)


@table
def korigins_microscopy() -> str:
    """BitDepth_NucSeg, 16 bits."""
    return of_nuclei("korigins_microscopy", "BitDepth_NucSeg")


@table
def korigins_microscopy_dsb() -> str:
    """DSB 2018, 8 bits."""
    return of_nuclei("korigins_microscopy_dsb", "DSB 2018")


def by_count(name: str, title: str, reached: Callable[[pd.DataFrame], str]) -> str:
    """One row per number of origins: parameters, IoU, one more figure of its own, time."""
    frame = read(name)
    rows = []
    for (count, deeper), group in frame.groupby(["model.first_origins", "deeper"], sort=False):
        seconds = spread(pd.to_numeric(group["cpu_s"]), 0)
        row = [str(count), str(deeper), group["parameters"].iloc[0]]
        rows.append([*row, spread(group["iou"]), reached(group), seconds])
    header = ["K, first level", "K, deeper levels", "parameters", "test IoU", title, "processor seconds"]
    return markdown(header, rows) + provenance(frame)


@table
def korigins_how_many_real() -> str:
    """By number of origins on 16-bit nuclei."""
    return by_count("korigins_how_many_real", "F1 at IoU 0.5", lambda group: spread(group["f1"]))


@table
def korigins_how_many() -> str:
    """By number of origins on squares."""

    def epochs(group: pd.DataFrame) -> str:
        return ", ".join(group.sort_values("seed")["epochs_to_goal"])

    return by_count("korigins_how_many", "epochs to 0.99 IoU, one per seed", epochs)
