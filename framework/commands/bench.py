"""`framework bench`: every exported form of a checkpoint on this machine: time, memory, bytes, and what it loses."""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from framework.deploy.form import Format, InferenceForm, Precision
from framework.deploy.running import opened
from framework.deploy.worker import milliseconds
from framework.errors import ConfigError, FrameworkError

#: what is tried; a form that refuses one says why
KINDS: tuple[tuple[Format, Precision], ...] = (
    ("pt2", "fp32"),
    ("pt2", "bf16"),
    ("pt2", "fp16"),
    ("torchscript", "fp32"),
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
)
COLUMNS = ("form", "format", "precision", "bytes", "latency_ms", "cpu_ms", "per_second", "memory_mib", "share", "score")


def run(args: Sequence[str]) -> int:
    """Measures, prints a table, and writes `bench.csv` and `bench.png`."""
    parser = argparse.ArgumentParser(
        prog="framework bench", description="Latency, throughput and memory of every exported form of a checkpoint."
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    parser.add_argument(
        "--data", metavar="CONFIG", help="a configuration with data, by path or name: for int8, and for a score"
    )
    parser.add_argument("--kinds", nargs="+", metavar="FORMAT:PRECISION", help="by default all, e.g. onnx:fp32")
    parser.add_argument("--batch", type=int, default=8, help="samples at a time for the throughput")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(128, 128), help="of the pictures")
    parser.add_argument("--seconds", type=float, default=0.5, help="of every measurement")
    parser.add_argument("--out", type=Path, help="folder of the results; by default `export/bench` in the run folder")
    options = parser.parse_args(list(args))
    from framework.commands.export import checkpoint_file, default_folder
    from framework.commands.loading import load
    from framework.figures import deployment
    from framework.outputs import refuse_taken

    path = checkpoint_file(options.ckpt_path)
    out = options.out or default_folder(path, "bench", "fp32")
    refuse_taken(out / "bench.csv", out / "bench.png")
    console = Console(width=120)
    rows = list(
        measure(
            load(path),
            options.data,
            kinds=kinds_of(options.kinds),
            batch=options.batch,
            size=tuple(options.size),
            seconds=options.seconds,
            say=console.print,
        )
    )
    console.print(_table(rows))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "bench.csv").open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    deployment(rows).savefig(out / "bench.png", dpi=110)
    print(f"written: {out}/bench.csv, bench.png")
    return 0


def kinds_of(words: Sequence[str] | None) -> Sequence[tuple[Any, Any]]:
    """`FORMAT:PRECISION` words as pairs; None: all.

    Raises:
        ConfigError: one that there is not.
    """
    if words is None:
        return KINDS
    pairs = [tuple(word.split(":", 1)) for word in words]
    if wrong := [word for word, pair in zip(words, pairs, strict=True) if pair not in KINDS]:
        known = ", ".join(":".join(kind) for kind in KINDS)
        raise ConfigError(f"kinds: got {', '.join(wrong)}; there are {known}")
    return pairs  # type: ignore[return-value]


def measure(
    module: nn.Module,
    config: str | None,
    *,
    kinds: Sequence[tuple[Format, Precision]] = KINDS,
    batch: int = 8,
    size: tuple[int, int] = (128, 128),
    seconds: float = 0.5,
    say: Callable[[str], object] = print,
) -> Iterator[dict[str, Any]]:
    """A row for every form as it is (`eager`) and for every file that can be made of it.

    Args:
        module: a method.
        config: with the data for int8 and for the score; None: neither.
        kinds: formats and precisions.
        batch: samples at a time for the throughput.
        size: height and width of the pictures, the nearest that the form takes.
        seconds: of every measurement.
        say: called with what is left out, and why.

    Yields:
        `COLUMNS` and where it was measured; `share` is the largest difference as a share of the largest value, `score`
        the accuracy or the mean Dice of the foreground on the test split.
    """
    from framework import provenance
    from framework.commands.export import data_for, inputs_of
    from framework.deploy import export, forms_of
    from framework.deploy.measuring import measured

    where = provenance.environment()
    forms = {form.name: form for form in forms_of(module)}
    sides = {"height": size[0], "width": size[1], "rows": size[0] * size[1]}
    drawn = {n: [f.draw({**sides, "batch": count}) for count in (1, batch)] for n, f in forms.items()}
    data = None if config is None else data_for(config, getattr(module, "preprocessing", None))
    score = partial(_score, data, getattr(module, "ignore_index", None))
    for name, form in forms.items():
        yield _row(name, "eager", "fp32", _eager(form, score, drawn[name][0], drawn[name][1], seconds)) | where
    calibration = None if data is None else list(inputs_of(data))
    with tempfile.TemporaryDirectory() as folder:
        for format, precision in kinds:
            try:
                report = export(
                    module, Path(folder, f"{format}-{precision}"), format, precision=precision, calibration=calibration
                )
            except FrameworkError as error:
                say(f"{format} {precision} is left out: {error}")
                continue
            for name, file in zip(forms, report["files"], strict=True):
                path = Path(folder, f"{format}-{precision}", file["file"])
                one, many = ([x.numpy() for x in inputs] for inputs in drawn[name])
                found: dict[str, Any] = {**measured(path, one, many, seconds), "bytes": file["bytes"]}
                found |= {"share": max(row["share"] for row in file["compared"])}
                found |= {"score": score(forms[name], opened(path))}
                yield _row(name, format, precision, found) | where


def _eager(
    form: InferenceForm,
    score: Callable[..., float | None],
    one: tuple[Tensor, ...],
    many: tuple[Tensor, ...],
    seconds: float,
) -> dict[str, Any]:
    """The method as it is, in this process."""

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return form.reference(*map(torch.from_numpy, arrays)).numpy()

    first, batch = ([x.numpy() for x in inputs] for inputs in (one, many))
    (latency, cpu), (whole, _) = (milliseconds(partial(run, *arrays), seconds) for arrays in (first, batch))
    return {
        "latency_ms": round(latency, 3),
        "cpu_ms": round(cpu, 3),
        "per_second": round(1000 * len(many[0]) / whole, 3),
        "share": 0.0,
        "score": score(form, run),
    }


def _row(form: str, format: str, precision: str, found: dict[str, Any]) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, "") | {"form": form, "format": format, "precision": precision}
    shown = {"share": "{:.1e}", "score": "{:.4f}"}
    return row | {
        name: "" if value is None else shown.get(name, "{}").format(value)
        for name, value in found.items()
        if name in COLUMNS
    }


def _score(data: Any, ignored: int | None, form: InferenceForm, run: Callable[..., np.ndarray]) -> float | None:
    """Accuracy of a classifier, mean Dice of a segmenter's foreground where there are labels, on the test split."""
    if data is None or form.classes is None:
        return None
    from torchmetrics.classification import MulticlassAccuracy

    from framework.commands.export import batches_of
    from framework.metrics import overlap_metrics

    classes = len(form.classes)
    maps = len(form.output.axes) == 4
    metric: Any = overlap_metrics(classes, ignored)["dice"] if maps else MulticlassAccuracy(classes, average="micro")
    for batch in batches_of(data):
        found = torch.from_numpy(np.ascontiguousarray(run(batch["image"].numpy()))).argmax(1)
        metric.update(found, batch["mask" if maps else "label"])
    return float(metric.compute())


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    return table
