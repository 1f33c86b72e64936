"""Draws the figures of the pages into `docs/figures/`, from quickstart runs and from the CSV files in `results/`.

    python -m benchmarks.pictures               # run the quickstarts (about five minutes) and draw everything
    python -m benchmarks.pictures --runs DIR    # the same; runs are kept in DIR, and those that are there are taken
    python -m benchmarks.pictures --only levels_of_experts/poisson     # what that configuration's runs show, alone

`python -m benchmarks.tables` redraws what comes from a CSV file that has changed and writes the captions, and with
`--check` says what does not belong together. `results/pictures.csv` says of every figure what it was made from.
"""

import argparse
import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.common import environment
from benchmarks.exposure_curves import exposure_curves
from benchmarks.heat_maps import heat_maps
from benchmarks.pareto import spline_pareto
from framework.figures import filter_panel, operator_label, replacement_figure
from framework.main import main as framework
from framework.nn import key_filter
from framework.nn.filters.key_filters import NAMES

ROOT = Path(__file__).parents[1]
RESULTS, FIGURES = ROOT / "results", ROOT / "docs" / "figures"
RECORD = RESULTS / "pictures.csv"
#: of all figures together, and of one before it gets a palette
LIMIT_BYTES, LARGE_BYTES = 2_000_000, 300_000
_BLOCK = re.compile(r"(<!-- figure (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.S)


class Run(NamedTuple):
    """A figure that a run leaves in its folder."""

    config: str
    verb: str
    name: str


class Table(NamedTuple):
    """A figure drawn from CSV files of `results/`."""

    sources: tuple[str, ...]
    draw: Callable[..., Figure]


def operators(fits: pd.DataFrame) -> Figure:
    """The eight operators at the scales of every method."""
    methods = list(fits["method"].unique())
    banks = []
    for method in methods:
        scales = [
            (int(row["filter"]), float(row["sigma_x"]), float(row["sigma_y"]), float(row["alpha"] or 0))
            for _, row in fits[fits["method"] == method].iterrows()
        ]
        banks.append([key_filter(i, x, y, alpha or None) for i, x, y, alpha in scales])
    names = [f"{i}   {operator_label(name)}" for i, name in enumerate(NAMES, start=1)]
    return filter_panel(np.stack([torch.stack(bank).numpy() for bank in banks]), names, methods)


def exposure(nuclei: pd.DataFrame, dsb: pd.DataFrame, floor: pd.DataFrame) -> Figure:
    """F1 of real nuclei over the exposure of the test pictures."""
    return exposure_curves({"BitDepth_NucSeg": nuclei, "DSB 2018": dsb}, floor)


def mobilenetv2(replacement: pd.DataFrame) -> Figure:
    """Top-1 of MobileNetV2 with every bank; random banks are one bar, the mean of their seeds."""
    table = replacement.query("network == 'mobilenetv2'")
    bank = table["bank"].str.replace(r"-\d+$", "", regex=True)
    table = pd.DataFrame(
        {"bank": bank, "recalibrated": table["recalibrated"] == "True", "top1": pd.to_numeric(table["top1"])}
    )
    return replacement_figure(table.groupby(["bank", "recalibrated"], sort=False, as_index=False).mean())


FROM_RUNS = {
    "korigins_segmentation": Run("korigins/quickstart", "test", "segmentation"),
    "korigins_origins": Run("korigins/quickstart", "fit", "origin_paths"),
    "kmunet_segmentation": Run("kmunet/quickstart", "test", "segmentation"),
    "kmunet_splines": Run("kmunet/quickstart", "test", "splines"),
    "loe_reconstruction": Run("levels_of_experts/quickstart", "test", "reconstruction"),
    "loe_maps": Run("levels_of_experts/quickstart", "fit", "segmentation_maps"),
    "loe_poisson": Run("levels_of_experts/poisson", "test", "derivatives"),
    "finola_reconstruction": Run("finola/quickstart", "test", "reconstruction"),
    "finola_speeds": Run("finola/quickstart", "test", "wave_speeds"),
    "microscopy_objects": Run("kmunet/bitdepth16_instances", "test", "worst_median_best_objects"),
}
#: configurations whose pictures are not generated; their figures stay as they are where the folder is missing
DATA = {"kmunet/bitdepth16_instances": Path("../shared/data/bitdepth_nucseg_16bit")}
FROM_TABLES = {
    "korigins_contrast": Table(("korigins_contrast",), heat_maps),
    "korigins_exposure": Table(
        ("korigins_microscopy", "korigins_microscopy_dsb", "korigins_microscopy_floor"), exposure
    ),
    "key_filters_operators": Table(("key_filters_fits",), operators),
    "key_filters_replacement": Table(("key_filters_replacement",), mobilenetv2),
    "spline_pareto": Table(("spline_forms",), spline_pareto),
}
OVERVIEW = "overview"
OVERVIEW_SOURCES = ("key_filters_replacement", "key_filters_fits")
CAPTIONS = {
    OVERVIEW: "Above what the method sees or makes, below what is explicit in it; quickstart runs, and for the filters "
    "the tables of their page",
    "korigins_segmentation": "Test images of the quickstart",
    "korigins_origins": "The origins of the first layer over the quickstart, beside the intensities of the classes",
    "korigins_contrast": "IoU over distance of the means and noise of the objects, beside it the Hellinger distance"
    " and what the layer adds to each control; mean of the seeds",
    "korigins_exposure": "Real nuclei over the exposure of the test pictures: mean of the seeds, bands from least"
    " to largest",
    "kmunet_segmentation": "Test images of the quickstart",
    "kmunet_splines": "What the kernel elements have become in the quickstart, after one grid extension and pruning",
    "loe_reconstruction": "The photographs of the quickstart and what the networks say; details where most happens",
    "loe_maps": "Their Multi-Otsu maps, with what they cost",
    "loe_poisson": "Four photographs out of their gradients and the colours of their outermost pixels",
    "finola_reconstruction": "Crops of the quickstart, out of one vector each; 24 short epochs, no measure of quality",
    "finola_speeds": "Wave speeds of the quickstart's matrices",
    "microscopy_objects": "16-bit nuclei that a KM-UNet of 56 k parameters has not seen: worst, median, best",
    "spline_pareto": "Every form's Dice against its time and its bytes; the grey line joins what no other form beats, "
    "dotted is the loss of 0.005 that we allow",
    "key_filters_operators": "The eight operators at the scales that every method finds",
    "key_filters_replacement": "MobileNetV2 with every bank; random is the mean of five",
}


def read(name: str) -> pd.DataFrame:
    """A CSV of `results/`, every value as the text that the program wrote."""
    return pd.read_csv(RESULTS / f"{name}.csv", dtype=str, keep_default_na=False)


def digest(*paths: Path) -> str:
    """A hash of files' content."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16] if paths else ""


def sources_of(name: str) -> tuple[str, ...]:
    """The CSV files that a figure is drawn from."""
    return OVERVIEW_SOURCES if name == OVERVIEW else FROM_TABLES[name].sources if name in FROM_TABLES else ()


# ---------------------------------------------------------------------- drawing


def save(name: str, picture: Figure | Path, made_by: str, measured: str = "") -> None:
    """Writes a figure as a small PNG, and its row in `results/pictures.csv`."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, dpi=100)
        image: Image.Image = Image.open(buffer)
    else:
        image = Image.open(picture)
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{name}.png"
    image = image.convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > LARGE_BYTES:  # noise of cameras; what is drawn over it keeps its colours
        image.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    sources = sources_of(name)
    row = {
        "figure": name,
        "made_by": made_by,
        "measured": measured,
        "sources": " ".join(sources),
        "sources_digest": digest(*(RESULTS / f"{source}.csv" for source in sources)),
        "digest": digest(path),
        **{key: value for key, value in environment().items() if key != "command"},
    }
    rows = read("pictures").to_dict("records") if RECORD.is_file() else []
    rows = sorted([*(r for r in rows if r["figure"] != name), row], key=lambda r: str(r["figure"]))
    pd.DataFrame(rows).to_csv(RECORD, index=False)


def draw_tables(only_stale: bool) -> list[str]:
    """Redraws the figures that come from CSV files; returns their names."""
    record = _record()
    drawn = []
    for name, (sources, draw) in FROM_TABLES.items():
        now = digest(*(RESULTS / f"{source}.csv" for source in sources))
        fresh = (FIGURES / f"{name}.png").is_file() and record.get(name, {}).get("sources_digest") == now
        if not (only_stale and fresh):
            save(name, draw(*map(read, sources)), "python -m benchmarks.tables")
            drawn.append(name)
    return drawn


def draw_runs(folder: Path, only: str | None = None) -> None:
    """Runs the configurations that are not in `folder` yet, takes their figures and draws the overview.

    Args:
        folder: of the runs.
        only: a configuration whose figures alone are drawn; None: all, and the overview.
    """
    from benchmarks.overview import overview

    runs = {}
    for config in dict.fromkeys(run.config for run in FROM_RUNS.values()):
        root = DATA.get(config)
        if (only is not None and config != only) or (root is not None and not root.is_dir()):
            continue
        method = config.replace("/quickstart", "")
        quiet = [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
        quiet += [] if root is None else [f"--data.root={root}"]
        if not (folder / config / "version_0" / "checkpoints" / "last.ckpt").is_file():
            framework(["fit", "-c", config, *quiet])
        runs[method] = framework(["test", "-c", config, "--ckpt_path", "best", *quiet])
        tested = Path(runs[method].trainer.log_dir)
        monitor = runs[method].model.monitor.replace("val/", "test/")
        measured = f"{monitor} {float(runs[method].trainer.callback_metrics[monitor]):.4g}"
        for name, run in FROM_RUNS.items():
            if run.config == config:
                made = folder / config / "version_0" if run.verb == "fit" else tested
                verb = "fit" if run.verb == "fit" else "test --ckpt_path best"
                save(name, made / "figures" / f"{run.name}.png", f"framework {verb} -c {config}", measured)
    if only is not None:
        return
    save(OVERVIEW, overview(runs, {name: read(name) for name in OVERVIEW_SOURCES}), "python -m benchmarks.pictures")


# ---------------------------------------------------------------------- pages


def render(text: str, figures: str) -> str:
    """The page with every figure and its caption as `results/pictures.csv` says.

    Args:
        text: of the page.
        figures: the folder of figures as the page refers to it.
    """
    record = _record()

    def block(match: re.Match) -> str:
        row = record[match["name"]]
        caption = CAPTIONS[match["name"]]
        measured = f"; {row['measured'].replace('test/', 'test ')}" if row["measured"] else ""
        below = f"{caption}{measured} (`{row['made_by']}`, {row['date']})."
        return f"{match[1]}![{caption}]({figures}/{match['name']}.png)\n\n*{below}*\n{match[3]}"

    return _BLOCK.sub(block, text)


def problems(pages: Sequence[Path]) -> list[str]:
    """What does not belong together: figures, their record, their CSV files and the pages."""
    record = _record()
    known = {*FROM_RUNS, *FROM_TABLES, OVERVIEW}
    shown = {match["name"] for page in pages for match in _BLOCK.finditer(page.read_text())}
    files = {path.stem for path in FIGURES.iterdir()} if FIGURES.is_dir() else set()
    found = [f"{n}: not the same in benchmarks.pictures, pages, record and docs/figures" for n in sorted(
        (known | shown | files | set(record)) - (known & shown & files & set(record)))]  # fmt: skip
    for name in sorted(known & files & set(record)):
        if digest(FIGURES / f"{name}.png") != record[name]["digest"]:
            found.append(f"{name}: the file is not the one that was drawn")
        if digest(*(RESULTS / f"{source}.csv" for source in sources_of(name))) != record[name]["sources_digest"]:
            found.append(f"{name}: its CSV files have changed since it was drawn")
    size = sum(path.stat().st_size for path in FIGURES.iterdir()) if FIGURES.is_dir() else 0
    return [*found, *([f"docs/figures: {size} bytes, the limit is {LIMIT_BYTES}"] if size > LIMIT_BYTES else [])]


def _record() -> dict[str, dict[str, str]]:
    return {str(r["figure"]): r for r in read("pictures").to_dict("records")} if RECORD.is_file() else {}  # type: ignore[misc]


def main() -> None:
    """Draws everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="where the quickstarts' runs are, or are to be kept")
    parser.add_argument("--only", help="a configuration whose figures alone are drawn")
    args = parser.parse_args()
    if args.only is None:
        draw_tables(only_stale=False)
    if args.runs:
        draw_runs(args.runs, args.only)
    else:
        with tempfile.TemporaryDirectory() as folder:
            draw_runs(Path(folder), args.only)


if __name__ == "__main__":
    main()
