"""Writes the tables of the documentation from the CSV files in `results/`; no figure in a page is typed by hand.

    python -m benchmarks.tables          # rewrite the pages, redraw figures whose CSV has changed
    python -m benchmarks.tables --check  # exit 1 when a page does not match its CSV

A page holds `<!-- table NAME -->` and `<!-- end -->`; what stands between them is the rendering of NAME. Figures
(`<!-- figure NAME -->`) are those of `benchmarks.pictures`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks import pictures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
_BLOCK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.S)

# the order of a table's rows; random banks come last
_BANKS = ["original", "learned", "A", "B", "C1", "C2", "D1", "D2", "k-lines"]
_BANKS += ["sigma-network", "sigma-layer", "sigma-filter"]

Renderer = Callable[[], str]
RENDERERS: dict[str, Renderer] = {}


def table(render: Renderer) -> Renderer:
    """Registers a renderer under its function's name."""
    RENDERERS[render.__name__] = render
    return render


def read(name: str) -> pd.DataFrame:
    """A CSV of `results/`, every value as the text that the program wrote."""
    return pd.read_csv(RESULTS / f"{name}.csv", dtype=str, keep_default_na=False)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def spread(values: pd.Series, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds (one value: the value)."""
    numbers = pd.to_numeric(values)
    if len(numbers) == 1:
        return f"{numbers.iloc[0]:.{digits}f}"
    return f"{numbers.mean():.{digits}f} ± {numbers.std():.{digits}f}"


def provenance(frame: pd.DataFrame) -> str:
    """Command, hardware, versions and dates of a CSV's rows, and the time they took."""
    commands = "; ".join(f"`{c}`" for c in frame["command"].unique())
    parts = [commands, "; ".join(frame["hardware"].unique()), f"torch {', '.join(frame['torch'].unique())}"]
    if "seconds" in frame:
        parts.append(f"{pd.to_numeric(frame['seconds']).sum() / 60:.0f} minutes in all")
    return "\n" + ", ".join([*parts, ", ".join(sorted(frame["date"].unique()))]) + ".\n"


@table
def methods() -> str:
    """The README's table: one measured headline per method."""
    links = {
        "K-Origins": ("https://arxiv.org/abs/2409.02281", "trainable intensity origins", "korigins"),
        "KM-UNet": ("", "kernel elements are B-spline functions", "kmunet"),
        "Levels-of-Experts": (
            "https://ksbe-jbe.org/_PR/view/?aidx=43132&bidx=3901",
            "weights chosen by position or luminance class",
            "levels_of_experts",
        ),
        "Master key filters": (
            "https://arxiv.org/abs/2509.12746",
            "depthwise filters are discrete scale-space operators",
            "master_key",
        ),
        "FINOLA": ("https://arxiv.org/abs/2305.16319", "an image rolled out of one vector", "finola"),
    }
    headlines = dict(zip(links, _headlines(), strict=True))
    rows = [
        [f"[{name}]({url})" if url else name, part, headlines[name], f"[docs/{page}.md](docs/{page}.md)"]
        for name, (url, part, page) in links.items()
    ]
    return markdown(["method", "explicit part", "measured here, at a reduced size", "page"], rows)


def _headlines() -> list[str]:
    epochs = read("korigins_epochs").query("rfl == '18'").groupby("variant")["epochs_to_goal"].agg(", ".join)
    study = read("kmunet_study")
    study["val_dice"] = pd.to_numeric(study["val_dice"])
    study["mean_val"] = study.groupby(["variant", "learning_rate"])["val_dice"].transform("mean")
    chosen = study[study["mean_val"] == study.groupby("variant")["mean_val"].transform("max")]
    units = chosen.groupby("variant")["dice"].agg(spread)
    loe = _loe_study().set_index(["image", "seed", "variant"])["best_psnr"].unstack()
    filters = read("key_filters_replacement").query("network == 'mobilenetv2'")
    # random, random-1, ... are one bank with several seeds
    bank = filters["bank"].str.replace(r"-\d+$", "", regex=True)
    filters = pd.to_numeric(filters["top1"]).groupby([bank, filters["recalibrated"]]).mean()
    finola = read("finola_reconstruction").query("floats == '128' and M in ('', '1')")
    psnr = finola.groupby("method")["psnr"].agg(lambda values: pd.to_numeric(values).mean())
    steps = next(value for value in finola["steps"] if value)
    return [
        f"epochs to 0.99 IoU, three seeds: KRFL18 {epochs['K-Origins, first level only']}; plain {epochs['plain']}; "
        f"plain with BatchNorm {epochs['plain, BatchNorm']}",
        f"Dice on nuclei, three seeds: {units['kmunet']}; U-Net of equal parameters {units['unet equal parameters']}",
        f"PSNR on six Kodak images: tiles over SIREN {(loe['fine_to_coarse'] - loe['siren']).mean():+.1f} dB, "
        f"Multi-Otsu over tiles {(loe['otsu_4'] - loe['fine_to_coarse']).mean():+.1f} dB, "
        f"over a SIREN of equal parameters {(loe['otsu_4'] - loe['siren_wide']).mean():+.1f} dB",
        f"MobileNetV2's top-1 {filters['original', 'False']:.1f}; recalibrated, untrained: Method B "
        f"{filters['B', 'True']:.1f}, scales per layer {filters['sigma-layer', 'True']:.1f}, random banks "
        f"{filters['random', 'True']:.1f}",
        f"PSNR at 128 floats, 32 px, {steps} steps: {psnr['finola']:.1f} dB; repeated vector with positions "
        f"{psnr['repeat-q + positions']:.1f}; PCA {psnr['PCA']:.1f}; DCT {psnr['DCT, top-N']:.1f}",
    ]


@table
def korigins_summary() -> str:
    """One row per experiment: the paper's claim and our figure."""
    epochs, e5 = read("korigins_epochs"), read("korigins_e5")

    def ours(variant: str) -> str:
        group = epochs[epochs["variant"] == variant]
        parts = [
            f"{'K' if variant.startswith('K-') else ''}RFL{rfl}: {', '.join(g.sort_values('seed')['epochs_to_goal'])}"
            for rfl, g in group.groupby("rfl", sort=False)
        ]
        return "; ".join(parts)

    def seconds(variant: str) -> str:
        return spread(epochs[epochs["variant"] == variant]["seconds"], 0) + " s a run"

    best = {row["variant"]: f"{row['variant']} {float(row['best_iou']):.3f}" for _, row in e5.iterrows()}
    first, every = "K-Origins, first level only", "K-Origins, every level"
    not_run = "configuration, not run"
    plain_trend = "about 10 epochs, and only with a field above the object's size"
    rows = [
        ["E0, one origin", "ends between the two means", not_run, ""],
        ["E1, plain networks", plain_trend, ours("plain"), seconds("plain")],
        ["E2, K-networks, first level", "about 3 epochs at any field", ours(first), seconds(first)],
        ["E2, K-networks, every level", "the same", ours(every), seconds(every)],
        ["E3, low contrast", "accuracy follows the Hellinger distance", not_run, ""],
        ["E4, several colours", "near perfect; plain needs a larger field", not_run, ""],
        ["E5, parameters", "187 k with the layer = 1.4 M without", "best IoU: " + "; ".join(best.values()), ""],
    ]
    return markdown(["experiment", "the paper's trend", "ours: epochs to 0.99 IoU, one per seed", "time"], rows)


@table
def korigins_epochs() -> str:
    """Epochs to the goal per seed, and the best IoU, by variant and network."""
    frame = read("korigins_epochs")
    rows = []
    for (variant, rfl), group in frame.groupby(["variant", "rfl"], sort=False):
        group = group.sort_values("seed")
        name = f"{'K' if variant.startswith('K-') else ''}RFL{rfl}"
        rows.append([variant, name, group["parameters"].iloc[0], ", ".join(group["epochs_to_goal"]),
                     spread(group["best_iou"]), spread(group["seconds"], 0)])  # fmt: skip
    rows.sort(key=lambda row: (int(row[1].lstrip("KRFL")) != 18, 0))
    header = ["variant", "network", "parameters", "epochs to 0.99 IoU, one per seed", "best IoU", "seconds a run"]
    return markdown(header, rows) + provenance(frame)


@table
def korigins_e5() -> str:
    """Parameter efficiency at a reduced size."""
    frame = read("korigins_e5")
    rows = []
    for variant, group in frame.groupby("variant", sort=False):
        rows.append([str(variant), group["parameters"].iloc[0], ", ".join(group.sort_values("seed")["epochs_to_goal"]),
                     spread(group["best_iou"]), spread(group["last_iou"]), spread(group["seconds"], 0)])  # fmt: skip
    header = ["network", "parameters", "epochs to goal", "best IoU", "last IoU", "seconds a run"]
    return markdown(header, rows) + provenance(frame)


@table
def fold_korigins() -> str:
    """Folding: error and time against the plain network."""
    frame = read("fold_korigins")
    columns = {
        "network": "network",
        "error_of_largest_logit": "error / largest logit",
        "plain_ms": "plain, ms",
        "folded_ms": "folded, ms",
        "k_network_ms": "K-network, ms",
        "folded_over_plain": "folded / plain",
        "k_network_over_plain": "K-network / plain",
    }
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def squares_generation() -> str:
    """Images per second of generation beside the training step."""
    frame = read("squares_generation")
    works = list(frame["work"].unique())
    rows = []
    for (preset, side), group in frame.groupby(["preset", "side"], sort=False):
        by_work = dict(zip(group["work"], group["images_per_s_median"], strict=True))
        rows.append([str(preset), str(side), *(f"{float(by_work[w]):,.0f}" for w in works)])
    return markdown(["preset", "side", *(f"{w}, images/s" for w in works)], rows) + provenance(frame)


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
    rates = sorted(frame["learning_rate"].unique(), key=float)
    rows = [
        [str(variant), *(group.set_index("learning_rate")["val_dice"].reindex(rates).fillna(""))]
        for variant, group in frame.groupby("variant", sort=False)
    ]
    return markdown(["network, validation Dice at the rate", *rates], rows) + provenance(frame)


def _kmunet(name: str) -> str:
    frame = read(name)
    rows = []
    for (variant, rate), group in frame.groupby(["variant", "learning_rate"], sort=False):
        live = pd.to_numeric(group["live_parameters"])
        removed, fastest = (pd.to_numeric(group[c]) for c in ("edges_removed", "inference_ms"))
        rows.append([str(variant), f"{live.mean():,.0f}", f"{removed.mean():.0%}", spread(group["dice"]),
                     spread(group["iou"]), str(len(group)), str(rate),
                     spread(group["train_cpu_seconds"], 0), f"{fastest.min():.1f}"])  # fmt: skip
    header = ["network", "live parameters", "edges removed", "Dice", "IoU", "seeds", "rate", "training, s",
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


@table
def loe_step() -> str:
    """Step time of every formulation of an expert network, as multiples of plain SIREN's."""
    frame = read("loe_step")
    sizes = list(frame["coordinates"].unique())
    rows = []
    for formulation, group in frame.groupby("formulation", sort=False):
        by_size = group.set_index("coordinates")
        seconds, ratio = by_size["seconds_median"], by_size["ratio_to_siren_median"]
        cells = [f"{float(seconds[n]):.3f} s ({float(ratio[n]):.2f} x)" if n in by_size.index else "-" for n in sizes]
        rows.append([str(formulation), *cells])
    return markdown(["formulation", *(f"{n} coordinates" for n in sizes)], rows) + provenance(frame)


@table
def loe_memory() -> str:
    """Peak memory of a step."""
    frame = read("loe_memory")
    columns = {"formulation": "formulation", "coordinates": "coordinates", "peak_mib": "peak above the start, MiB"}
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def loe_variants() -> str:
    """PSNR of every variant over images and seeds."""
    frame = _loe_study()
    rows = []
    for variant, group in frame.groupby("variant", sort=False):
        best = group["best_psnr"]
        rows.append([str(variant), str(group["parameters"].iloc[0]), f"{group['lr'].iloc[0]:g}", f"{best.mean():.2f}",
                     f"{best.min():.2f}", f"{best.max():.2f}", f"{group['psnr'].mean():.2f}",
                     f"{group['map_bits_per_pixel'].mean():.3f}", f"{group['seed'].nunique()}"])  # fmt: skip
    header = [
        "variant",
        "parameters",
        "rate",
        "best PSNR, mean",
        "lowest",
        "highest",
        "last PSNR, mean",
        "map, bits per pixel",
    ]
    return markdown([*header, "seeds"], rows) + provenance(read("loe_study"))


@table
def loe_differences() -> str:
    """Paired differences: the paper's claims first, then the controls."""
    frame = _loe_study().set_index(["image", "seed"])
    pairs = [
        ("fine_to_coarse", "siren"),
        ("otsu_4", "fine_to_coarse"),
        ("otsu_4", "equal_4"),
        ("otsu_4", "kmeans_4"),
        ("otsu_4", "otsu_1"),
        ("otsu_4", "otsu_2"),
        ("otsu_4", "otsu_3"),
        ("quad_tree", "siren"),
        ("class_input", "siren"),
        ("fine_to_coarse", "siren_wide"),
        ("otsu_4", "siren_wide"),
    ]
    rows = []
    for a, b in pairs:
        ours, other = (frame[frame["variant"] == v] for v in (a, b))
        best = (ours["best_psnr"] - other["best_psnr"]).dropna()
        last = (ours["psnr"] - other["psnr"]).dropna()
        rows.append([f"{a} - {b}", f"{best.mean():+.2f} ± {best.std():.2f}", f"{(best > 0).sum()} of {len(best)}",
                     f"{last.mean():+.2f} ± {last.std():.2f}", f"{(last > 0).sum()} of {len(last)}"])  # fmt: skip
    return markdown(["difference", "best PSNR, dB", "above 0", "last PSNR, dB", "above 0"], rows)


@table
def loe_rates() -> str:
    """Mean best PSNR of every variant at every learning rate of the sweep, which has one seed."""
    frame = _loe_sweep()
    frame = frame[frame["seed"] == frame["seed"].min()]
    means = frame.pivot_table(index="variant", columns="lr", values="best_psnr", sort=False).sort_index(axis=1)
    rows = [[str(name), *(f"{value:.2f}" for value in row)] for name, row in means.iterrows()]
    return markdown(["variant", *(f"{rate:g}" for rate in means.columns)], rows)


def _loe_sweep() -> pd.DataFrame:
    frame = read("loe_study")
    numbers = ["seed", "lr", "psnr", "best_psnr", "map_bits_per_pixel"]
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in numbers})


def _loe_study() -> pd.DataFrame:
    """The rows of every variant at its own best rate, chosen by the first seed's mean of the best PSNR over images."""
    frame = _loe_sweep()
    means = frame[frame["seed"] == frame["seed"].min()].groupby(["variant", "lr"])["best_psnr"].mean()
    best = {variant: means[variant].idxmax() for variant in frame["variant"].unique()}
    return frame[frame["lr"] == frame["variant"].map(best)]


@table
def finola_speed() -> str:
    """The rollout as multiples of its bare matrix products."""
    frame = read("finola_speed")
    rows = []
    for (channels, method), group in frame.groupby(["C", "method"], sort=False):
        cells = {row["pass"]: row for _, row in group.iterrows()}
        row = [str(channels), str(method), cells["forward"]["M"]]
        for name in ("forward", "both"):
            found = cells.get(name)
            row += ["", "", ""] if found is None else [found["ms"], found["multiple"], found["peak_mib"]]
        rows.append(row)
    header = ["C", "method", "M", "forward, ms", "x products", "peak MiB",
              "forward + backward, ms", "x 3 products", "peak MiB"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def finola_reconstruction() -> str:
    """PSNR on held-out pictures by floats and method; learned methods over seeds."""
    return _finola("finola_reconstruction")


@table
def finola_long() -> str:
    """The same after longer training."""
    return _finola("finola_long")


def _finola(name: str) -> str:
    frame = read(name)
    rows = []
    for (floats, method, channels, paths), group in frame.groupby(["floats", "method", "C", "M"], sort=False):
        row = [str(floats), str(method), str(channels), str(paths)]
        row += [spread(group[column], 2) for column in ("psnr", "psnr_pooled", "ssim")]
        rows.append([*row, spread(group["kodak_psnr"], 2), group["parameters"].iloc[0], str(len(group))])
    rows.sort(key=lambda row: (int(row[0]), bool(row[2])))
    header = ["floats (C M)", "method", "C", "M", "PSNR", "PSNR of mean MSE", "SSIM", "Kodak PSNR", "parameters",
              "seeds"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def finola_masked() -> str:
    """Linear probe and masked PSNR by kind of pre-training."""
    frame = read("finola_masked")
    rows = []
    for mode, group in frame.groupby("pretraining", sort=False):
        name = "random encoder" if mode == "none" else f"{mode}-wise"
        rows.append([name, group["steps"].iloc[0], spread(group["probe_accuracy"]),
                     spread(group["masked_psnr"], 2), str(len(group))])  # fmt: skip
    header = ["pre-training", "steps", "probe accuracy", "PSNR of masked pixels", "seeds"]
    return markdown(header, rows) + provenance(frame)


@table
def key_filters_fits() -> str:
    """Our fits beside the published parameters, sigma_x sigma_y (filter 7: sigma, alpha)."""
    frame = read("key_filters_fits")
    rows = []
    for number, group in frame.groupby("filter", sort=False):
        cells = []
        for row in group.to_dict("records"):
            last = "alpha" if row["alpha"] else "sigma_y"
            ours = f"{float(row['sigma_x']):.4f} {float(row[last]):.4f}"
            known = f"{row['published_sigma_x']} {row[f'published_{last}']}"
            cells.append(ours if ours == known else f"{ours} ({known})")
        rows.append([str(number), *cells])
    return markdown(["#", *frame["method"].unique()], rows) + provenance(frame)


@table
def key_filters_energy() -> str:
    """Explained energy of every bank: median over filters / share of a layer's energy, mean over layers."""
    frame = read("key_filters_energy")
    groups = list(frame.groupby(["network", "size"], sort=False))
    indexed = [group.set_index("bank") for _, group in groups]
    rows = [
        [bank, *(f"{g.loc[bank, 'median']} / {g.loc[bank, 'layers']}" for g in indexed)]
        for bank in sorted(frame["bank"].unique(), key=lambda b: _BANKS.index(b) if b in _BANKS else len(_BANKS))
    ]
    header = ["bank", *(f"{network} {size}x{size}, {g['filters'].iloc[0]}" for (network, size), g in groups)]
    return markdown(header, rows) + provenance(frame)


@table
def key_filters_speed() -> str:
    """Fitting time, and the depthwise layers beside the plain one."""
    frame = read("key_filters_speed")
    columns = {"work": "work", "channels": "channels", "side": "side", "ms": "ms", "over_plain": "over plain"}
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def key_filters_replacement() -> str:
    """Accuracy with every bank in a trained network, plain and recalibrated, beside the mean of the random banks."""
    frame = read("key_filters_replacement")
    rows = []
    for network, group in frame.groupby("network", sort=False):
        group = group.assign(control=group["bank"].str.match("random"))
        kinds = ("False", "True")
        controls = {kind: group[group["control"] & (group["recalibrated"] == kind)] for kind in kinds}
        means = {kind: pd.to_numeric(controls[kind]["top1"]).mean() for kind in kinds}
        for bank in sorted(group[~group["control"]]["bank"].unique(), key=_BANKS.index):
            known = group[group["bank"] == bank].set_index("recalibrated")
            row = [str(network), bank, known["explained_energy"].iloc[0], known["parameters"].iloc[0]]
            for kind in kinds:
                if kind not in known.index:
                    row += ["", "", ""]
                    continue
                top1, top5, drop = known.loc[kind, ["top1", "top5", "drop"]]
                over = "" if bank == "original" else f"{float(top1) - means[kind]:+.2f}"
                row += [f"{top1} / {top5}", "" if bank == "original" else drop, over]
            rows.append(row)
        first = controls["False"]
        row = [str(network), f"random, {len(first)} seeds", spread(first["explained_energy"])]
        row.append(first["parameters"].iloc[0])
        for kind in kinds:
            row += [f"{spread(controls[kind]['top1'], 2)} / {spread(controls[kind]['top5'], 2)}"]
            row += [spread(controls[kind]["drop"], 2), ""]
        rows.append(row)
    header = ["network", "bank", "explained energy", "numbers", "top-1 / top-5", "drop", "over random",
              "recalibrated top-1 / top-5", "drop", "over random"]  # fmt: skip
    return markdown(header, rows) + provenance(frame.drop(columns="seconds"))


@table
def key_filters_gains() -> str:
    """Top-1 with scales refitted to the network, and how much that is above Method B on the same pictures."""
    frame = read("key_filters_replacement").set_index(["network", "recalibrated", "bank"])["top1"].sort_index()
    stated = read("key_filters_untouched").groupby("network", sort=False).first()
    rows = []
    for network in stated.index:
        for kind, column in (("False", "stated_B"), ("True", "stated_B_recalibrated")):
            known = frame[network, kind]
            refits = ("sigma-network", "sigma-layer", "sigma-filter")
            gains = [f"{known[bank]} ({float(known[bank]) - float(known['B']):+.2f})" for bank in refits]
            how = "recalibrated" if kind == "True" else "as replaced"
            rows.append([str(network), how, stated.loc[network, column], known["B"], *gains])
    header = ["network", "", "B, stated, original pictures", "B", "sigma-network", "sigma-layer", "sigma-filter"]
    return markdown(header, rows)


@table
def key_filters_untouched() -> str:
    """The untouched networks: what their READMEs state, their READMEs' lines on these pictures, and ours."""
    frame = read("key_filters_untouched")
    ours = read("key_filters_replacement").query("bank == 'original'").set_index("network")
    rows = []
    for network, group in frame.groupby("network", sort=False):
        by_offset = group.set_index("offset")
        first = group.iloc[0]
        rows.append([
            str(network),
            f"{first['stated_top1']} / {first['stated_top5']}",
            *(f"{by_offset.loc[o, 'top1']} / {by_offset.loc[o, 'top5']}" for o in ("cut", "rounded")),
            f"{ours.loc[network, 'top1']} / {ours.loc[network, 'top5']}",
        ])  # fmt: skip
    header = ["network", "stated, original pictures", "the README's lines on these pictures, crop offset cut",
              "crop offset rounded", "here"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


def render(text: str) -> str:
    """A page with every known block replaced by its rendering."""

    def replaced(match: re.Match) -> str:
        return match[1] + RENDERERS[match["name"]]() + match[3]

    return _BLOCK.sub(replaced, text)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def whole(page: Path) -> str:
    """The page's text with every table and every figure as the CSV files have them."""
    figures = "figures" if page.parent.name == "docs" else "docs/figures"
    return pictures.render(render(page.read_text()), figures)


def main() -> None:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if not check:
        pictures.draw_tables(only_stale=True)
    stale = []
    for page in pages():
        new = whole(page)
        if new != page.read_text():
            stale.append(page.name)
            if not check:
                page.write_text(new)
    wrong = pictures.problems(pages())
    print(("differ from their CSV: " if check else "rewritten: ") + (", ".join(stale) or "none"))
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(int((check and bool(stale)) or bool(wrong)))


if __name__ == "__main__":
    main()
