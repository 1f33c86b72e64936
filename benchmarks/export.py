"""The exported forms of the five quickstart checkpoints: differences, bytes, times, and what int8 loses.

    framework fit -c METHOD/quickstart                    # of every method, as it is shipped
    python -m benchmarks.export --runs runs --out results/export.csv

Every file of `framework bench` is a row: run in a process of its own, compared with the method, and for segmenters and
the classifier scored on the quickstart's test split.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.common import append_row, environment, read_rows
from framework import load
from framework.commands.bench import COLUMNS, kinds_of, measure

#: quickstart -> its data can score the forms
QUICKSTARTS = {
    "korigins/quickstart": True,
    "kmunet/quickstart": True,
    "levels_of_experts/quickstart": False,
    "master_key/quickstart": True,
    "finola/quickstart": False,
}


def newest(runs: Path, name: str) -> Path:
    """`best.ckpt` of the newest run of a configuration."""
    found = sorted(runs.glob(f"{name}/version_*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"no run of {name} below {runs}: framework fit -c {name}")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--methods", nargs="+", default=list(QUICKSTARTS), choices=list(QUICKSTARTS))
    parser.add_argument("--kinds", nargs="+", metavar="FORMAT:PRECISION", help="by default all of `framework bench`")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    done = {row["config"] for row in read_rows(args.out)}
    for name in args.methods:
        if name in done:
            continue
        module = load(newest(args.runs, name))
        config = name if QUICKSTARTS[name] else None
        rows = []
        for row in measure(
            module, config, kinds=kinds_of(args.kinds), size=(args.size, args.size), seconds=args.seconds
        ):
            rows.append({"config": name, **{column: row[column] for column in COLUMNS}, "side": args.size})
            print(rows[-1], flush=True)
        for row in rows:
            append_row(args.out, {**row, **environment()})


if __name__ == "__main__":
    main()
