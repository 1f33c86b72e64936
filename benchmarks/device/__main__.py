"""Measures everything that a GPU is needed for, in order of value, within a number of minutes.

    python -m benchmarks.device --minutes 9 --out rows --data data       # on the machine with the accelerator
    python -m benchmarks.device --smoke --out rows                       # the same on a CPU, tiny
    python -m benchmarks.device pack --out data.tar                      # beforehand: the data that the fits need
    python -m benchmarks.device merge rows                               # afterwards: the rows into results/

Every step is a process of its own with a time limit of its own; it writes its CSV and its log as it goes, and a step
that fails or is cut off leaves the others alone. README.md beside this file says what the machine needs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.device.pack import merge, pack


def parse_args(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=["run", "step", "pack", "merge"], default="run")
    parser.add_argument("name", nargs="?", help="of a step; or the folder or .tar.gz to merge")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all steps together")
    parser.add_argument("--out", type=Path, help="folder of the CSV files and logs; with pack the archive")
    parser.add_argument("--bundle", type=Path, help="a .tar.gz of that folder, rewritten after every step")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data, or the pack")
    parser.add_argument("--only", nargs="*", help="steps to run; all by default")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.smoke:
        args.device = "cpu"
    return args


def main(words: list[str]) -> int:
    args = parse_args(words)
    if args.verb == "merge":
        for path in merge(Path(args.name), args.out or Path("results")):
            print(path)
        return 0
    if args.verb == "pack":
        print(f"{pack(args.data, args.out) / 2**20:.1f} MiB in {args.out}")
        return 0
    if args.verb == "step":
        from benchmarks.device import steps

        steps.run(args.name, args)
        return 0
    if args.out is None:
        args.out = Path(tempfile.mkdtemp(prefix="device_"))
    from benchmarks.device.runner import run_all  # the packing needs no torch

    return run_all(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
