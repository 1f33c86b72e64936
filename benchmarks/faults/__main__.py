"""`python -m benchmarks.faults`."""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import benchmarks.faults
from benchmarks.common import append_row, environment, read_rows
from benchmarks.faults import disks, fuzz, kills, runs, signals
from benchmarks.faults.record import GOOD, Row

#: kind -> (one try, how many)
KINDS: dict[str, tuple[Callable[[int], Row], int]] = {
    "kills": (kills.kill, 100),
    "signals": (signals.send, 40),
    "disks": (disks.disk, 40),
    "fuzz": (fuzz.fuzz, sum(fuzz.KINDS.values())),
}


def parse_args(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=benchmarks.faults.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="of every kind; by default 100, 40, 40 and 700")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    args = parse_args(words)
    out = args.out.resolve()
    done = {(row["kind"], int(row["case"])) for row in read_rows(out)}
    runs.warm_up()
    # whichever rows are asked for, they are the same
    where = {**environment(), "command": "python -m benchmarks.faults --out results/faults.csv"}
    bad = 0
    for kind in args.only:
        one, count = KINDS[kind]
        began, todo = time.monotonic(), [c for c in range(args.count or count) if (kind, c) not in done]
        random.Random(0).shuffle(todo)  # some of everything, whenever it is stopped
        for number, case in enumerate(todo, 1):
            row = one(case)
            bad += row.outcome != GOOD
            append_row(out, {**row.columns(), **where})
            left = (time.monotonic() - began) / number * (len(todo) - number) / 60
            print(f"\r{kind} {number} of {len(todo)}, {left:.0f} min left", end="", file=sys.stderr, flush=True)
            if row.outcome != GOOD:
                print(f"\r{kind} {case}: {row.what}: {row.fault}: {row.outcome}: {row.said}", flush=True)
                with out.with_suffix(".log").open("a", encoding="utf-8") as log:
                    log.write(f"==== {kind} {case}: {row.outcome}\n{row.output}\n")
        print(file=sys.stderr)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
