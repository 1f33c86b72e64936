"""The exported forms of the five quickstart checkpoints: differences, bytes, times, and what int8 loses.

    framework fit -c METHOD/quickstart                    # of every method, as it is shipped
    python -m benchmarks.export --runs runs --out results/export.csv
    python -m benchmarks.export --methods master_key/quickstart:B --kinds onnx:fp32 onnx:int8 --out results/export.csv
    python -m benchmarks.export --methods master_key/mobilenetv2:A --size 224 --out results/export.csv

Every file of `framework bench` is a row: run in a process of its own, compared with the method, and for segmenters and
the classifier scored on the quickstart's test split. Rows that are there are kept. A bank behind a classifier takes the
place of its filters, and the network is recalibrated; `master_key/mobilenetv2` needs its weights and pictures.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from benchmarks.common import append_row, environment, read_rows
from framework import load
from framework.commands.bench import COLUMNS, kinds_of, measure
from framework.commands.cli import BuildOnly
from framework.nn import (
    approximate,
    depthwise_convolutions,
    make_bank,
    match_filters,
    recalibrated,
    reference_statistics,
)

#: quickstart -> its data can score the forms
QUICKSTARTS = {
    "korigins/quickstart": True,
    "kmunet/quickstart": True,
    "levels_of_experts/quickstart": False,
    "master_key/quickstart": True,
    "finola/quickstart": False,
}
#: classifiers, each with the bank that takes the place of its filters
REPLACED = ("master_key/quickstart:B", "master_key/mobilenetv2:A")


def replaced(built: Any, module: Any, bank: str) -> nn.Module:
    """The network with its depthwise filters approximated by the bank, recalibrated on the configuration's pictures.

    Args:
        built: the configuration's command.
        module: the trained network.
        bank: of `make_bank`.
    """
    pictures = built.datamodule.calibration_dataset()
    images = torch.stack([pictures[i]["image"] for i in range(len(pictures))])
    convolutions = depthwise_convolutions(module)
    weights = {key: conv.weight.detach().flatten(0, 1) for key, conv in convolutions.items()}
    banks = make_bank(bank, weights)
    changes = [
        (conv.weight, approximate(match_filters(weights[key], banks[key]), banks[key]).unsqueeze(1).to(conv.weight))
        for key, conv in convolutions.items()
    ]
    reference = reference_statistics(module, module, convolutions.values(), images)
    with torch.no_grad():
        for target, value in recalibrated(module, module, changes, reference, images):
            target.copy_(value)
    return cast(nn.Module, module.eval())


def network(name: str, bank: str, runs: Path) -> nn.Module:
    """A quickstart's trained network, or one of published weights; with a bank, with that one's filters."""
    if name in QUICKSTARTS and not bank:
        return load(newest(runs, name))
    built: Any = BuildOnly(args=["test", "-c", name])
    if name in QUICKSTARTS:
        return replaced(built, load(newest(runs, name)), bank)
    built.model.initialise()
    return replaced(built, built.model, bank)


def newest(runs: Path, name: str) -> Path:
    """`best.ckpt` of the newest run of a configuration."""
    found = sorted(runs.glob(f"{name}/version_*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"no run of {name} below {runs}: framework fit -c {name}")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--methods", nargs="+", default=list(QUICKSTARTS), choices=[*QUICKSTARTS, *REPLACED])
    parser.add_argument("--kinds", nargs="+", metavar="FORMAT:PRECISION", help="by default all of `framework bench`")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for word in args.methods:
        name, _, bank = word.partition(":")
        label = f"{name}, filters of {bank}" if bank else name
        done = {(row["form"], row["format"], row["precision"]) for row in read_rows(args.out) if row["config"] == label}
        forms = {form for form, format, _ in done if format == "eager"}
        kinds = [kind for kind in kinds_of(args.kinds) if not forms or any((form, *kind) not in done for form in forms)]
        if not kinds:
            continue
        module = network(name, bank, args.runs)
        config = name if QUICKSTARTS.get(name, True) else None
        for row in measure(module, config, kinds=kinds, size=(args.size, args.size), seconds=args.seconds):
            if (row["form"], row["format"], row["precision"]) not in done:
                found = {"config": label, **{column: row[column] for column in COLUMNS}, "side": args.size}
                print(found, flush=True)
                append_row(args.out, {**found, **environment()})


if __name__ == "__main__":
    main()
