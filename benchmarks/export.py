"""The exported forms of the five quickstart checkpoints: differences, bytes, times, and what int8 loses.

    framework fit -c METHOD/quickstart                    # of every method, as it is shipped
    python -m benchmarks.export --runs runs --out results/export.csv
    python -m benchmarks.export --methods master_key/mobilenetv2 --size 224 --out results/export.csv

Every file of `framework bench` is a row: run in a process of its own, compared with the method, and for segmenters and
the classifier scored on the quickstart's test split. Rows that are there are kept. `master_key/mobilenetv2` is the
trained network with its filters replaced by a bank and recalibrated; it needs its weights and pictures.
"""

import argparse
from pathlib import Path
from typing import Any

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
#: configuration of a trained classifier -> the bank that takes the place of its filters
REPLACED = {"master_key/mobilenetv2": "A"}


def replaced(name: str) -> nn.Module:
    """The configuration's network with its depthwise filters approximated by the bank, and recalibrated."""
    built = BuildOnly(args=["test", "-c", name])
    module: Any = built.model
    module.initialise()
    data: Any = built.datamodule
    pictures = data.calibration_dataset()
    images = torch.stack([pictures[i]["image"] for i in range(len(pictures))])
    convolutions = depthwise_convolutions(module)
    weights = {key: conv.weight.detach().flatten(0, 1) for key, conv in convolutions.items()}
    bank = make_bank(REPLACED[name], weights)
    changes = [
        (conv.weight, approximate(match_filters(weights[key], bank[key]), bank[key]).unsqueeze(1).to(conv.weight))
        for key, conv in convolutions.items()
    ]
    reference = reference_statistics(module, module, convolutions.values(), images)
    with torch.no_grad():
        for target, value in recalibrated(module, module, changes, reference, images):
            target.copy_(value)
    return module.eval()


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
    for name in args.methods:
        label = f"{name}, filters of {REPLACED[name]}" if name in REPLACED else name
        done = {(row["form"], row["format"], row["precision"]) for row in read_rows(args.out) if row["config"] == label}
        forms = {form for form, format, _ in done if format == "eager"}
        kinds = [kind for kind in kinds_of(args.kinds) if not forms or any((form, *kind) not in done for form in forms)]
        if not kinds:
            continue
        module = replaced(name) if name in REPLACED else load(newest(args.runs, name))
        config = name if QUICKSTARTS.get(name, True) else None
        for row in measure(module, config, kinds=kinds, size=(args.size, args.size), seconds=args.seconds):
            if (row["form"], row["format"], row["precision"]) not in done:
                found = {"config": label, **{column: row[column] for column in COLUMNS}, "side": args.size}
                print(found, flush=True)
                append_row(args.out, {**found, **environment()})


if __name__ == "__main__":
    main()
