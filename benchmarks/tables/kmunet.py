"""Tables of docs/kmunet.md."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, spread, table


def headline() -> str:
    """The README's figure: every network at its own best rate by validation Dice."""
    study = read("kmunet_study")
    study["val_dice"] = pd.to_numeric(study["val_dice"])
    study["mean_val"] = study.groupby(["variant", "rate"])["val_dice"].transform("mean")
    chosen = study[study["mean_val"] == study.groupby("variant")["mean_val"].transform("max")]
    units = chosen.groupby("variant")["dice"].agg(spread)
    return f"Dice on nuclei, three seeds: {units['kmunet']}; U-Net of equal parameters {units['unet equal parameters']}"


@table
def kmunet_study() -> str:
    """KM-UNet and its baselines over seeds, on nuclei."""
    return _kmunet("kmunet_study")


@table
def kmunet_isbi() -> str:
    """The same on the membranes of ISBI 2012."""
    return _kmunet("kmunet_isbi")


@table
def kmunet_16bit() -> str:
    """Raw 16-bit nuclei, with and without K-Origins."""
    return _kmunet("kmunet_16bit")


@table
def kmunet_rates() -> str:
    """Validation Dice of both families at every learning rate."""
    frame = read("kmunet_rates")
    rates = sorted(frame["rate"].unique(), key=float)
    rows = []
    for variant, group in frame.groupby("variant", sort=False):
        dice = group.set_index("rate")["val_dice"].reindex(rates)
        rows.append([str(variant), *dice.map(lambda value: f"{float(value):.4f}")])
    return markdown(["network, validation Dice at the rate", *rates], rows) + provenance(frame)


@table
def spline_forms() -> str:
    """Forms for inference: time, bytes, bound, error, Dice."""
    frame = read("spline_forms")
    names = {"low_rank": "low rank", "low_rank_int8": "low rank, int8"}
    rows = []
    for row in frame.to_dict("records"):
        name = names.get(row["form"], row["form"]) + (f", R = {row['rank']}" if row["rank"] else "")
        name += "" if row["dtype"] == "float32" else f", {row['dtype']}"
        rows.append([name, row["cpu_ms"], row["ratio_to_conv"], row["kib"], row["bound"], row["largest_error"],
                     row["relative_error"], row["dice"], row["dice_change"]])  # fmt: skip
    header = ["form", "ms", "/ convolution", "KiB", "bound", "largest error", "relative error", "Dice", "change"]
    return markdown(header, rows) + provenance(frame)


@table
def spline_rank() -> str:
    """Edges that share shapes from the start of training."""
    frame = read("spline_rank")
    names = {"low_rank": "low rank", "low_rank_int8": "low rank, int8"}
    rows = [
        [
            f"{names.get(row['form'], row['form'])}, R = {row['rank']}",
            row["spline_parameters"],
            row["dice"],
            row["dice_change"],
        ]
        for row in frame.to_dict("records")
    ]
    return markdown(["trained with sharing", "numbers in splines", "Dice", "change"], rows) + provenance(frame)


def _kmunet(name: str) -> str:
    frame = read(name)
    rows = []
    for (variant, rate), group in frame.groupby(["variant", "rate"], sort=False):
        live = pd.to_numeric(group["live_parameters"])
        removed, fastest = (pd.to_numeric(group[c]) for c in ("edges_removed", "inference_ms"))
        rows.append([str(variant), f"{live.mean():,.0f}", f"{removed.mean():.0%}", spread(group["dice"]),
                     spread(group["iou"]), str(len(group)), str(rate),
                     spread(group["cpu_s"], 0), f"{fastest.min():.1f}"])  # fmt: skip
    header = ["network", "live parameters", "edges removed", "Dice", "IoU", "seeds", "rate", "run, CPU s",
              "inference, ms"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def kan_conv() -> str:
    """Spline convolutions beside the plain convolution they become."""
    frame = read("kan_conv_cpu")
    columns = {
        "threads": "threads",
        "layer": "layer",
        "grid": "G",
        "parameters": "parameters",
        "wall_ms": "ms",
        "ratio_to_floor": "/ floor",
        "ratio_to_conv": "/ convolution",
        "held_mb": "held, MiB",
    }
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)
