"""Measures everything that a GPU is needed for, in order of value, within a number of minutes.

    python -m benchmarks.device --minutes 9 --out rows --data data       # on the machine with the accelerator
    python -m benchmarks.device --smoke --out rows                       # the same on a CPU, tiny
    python -m benchmarks.device pack --out data.tar                      # beforehand: the data that the fits need
    python -m benchmarks.device merge rows                               # afterwards: the rows into results/

Every step is a process of its own with a time limit of its own; it writes its CSV and its log as it goes, and a step
that fails or is cut off leaves the others alone. README.md beside this file says what the machine needs.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

from benchmarks.device.pack import Refused, kind, make_folder, merge, pack


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", nargs="?", choices=["run", "step", "pack", "merge"], help="run by default")
    parser.add_argument("name", nargs="?", help="of a step; or the folder or .tar.gz to merge")
    parser.add_argument("--merge", metavar="DIR", help="the same as: merge DIR")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all steps together")
    parser.add_argument("--out", type=Path, help="folder of the CSV files and logs; with pack the archive")
    parser.add_argument("--bundle", type=Path, help="a .tar.gz of that folder, rewritten after every step")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data, or the pack")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps to run; all by default")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser


def parse_args(words: list[str]) -> argparse.Namespace:
    """The arguments; what cannot be meant ends with argparse's message and status 2."""
    parser = make_parser()
    args = parser.parse_args(words)
    try:
        check(args)
    except Refused as error:
        parser.error(str(error))
    if args.smoke:
        args.device = "cpu"
    return args


def check(args: argparse.Namespace) -> None:
    """Fills in the verb and refuses what the verb cannot use."""
    if args.merge is not None:
        if args.verb is not None:
            given = " ".join(word for word in (args.verb, args.name) if word is not None)
            raise Refused(f"--merge: expected no verb beside it, got {given}")
        args.verb, args.name = "merge", args.merge
    args.verb = args.verb or "run"
    if args.verb in ("run", "pack") and args.name is not None:
        raise Refused(f"{args.verb}: expected no name, got {args.name}")
    if args.verb == "merge" and not args.name:
        raise Refused("merge: expected the folder of a run or its .tar.gz, got nothing")
    if args.verb in ("pack", "step") and args.out is None:
        what = "the archive to write" if args.verb == "pack" else "the folder of the CSV files"
        raise Refused(f"{args.verb}: expected --out with {what}, got none")
    if args.verb == "step":
        check_steps("step", [args.name] if args.name else [])
    if args.only is not None:
        check_steps("--only", args.only)
    if args.verb == "run":
        check_run(args)


def check_steps(option: str, names: list[str]) -> None:
    """Refuses names of no step, and lists the steps."""
    from benchmarks.device.steps import STEPS  # the packing needs no torch

    known = [step.name for step in STEPS]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise Refused(f"{option}: expected steps of {', '.join(known)}, got {', '.join(unknown) or 'nothing'}")


def check_run(args: argparse.Namespace) -> None:
    """Refuses minutes in which no step would begin, and places that cannot be written."""
    from benchmarks.device.runner import LEAST

    if not math.isfinite(args.minutes) or 60 * args.minutes <= LEAST:
        raise Refused(f"--minutes: expected more than {LEAST:g} seconds, in minutes, got {args.minutes:g}")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise Refused(f"--out: expected a folder to write into, got {args.out}, which is a file")
    # --out is made before the first step, so the archive may be in it
    if args.bundle is not None and args.bundle.is_dir():
        raise Refused(f"--bundle: expected an archive to write, got {args.bundle}, which is a folder")
    if args.bundle is not None and args.bundle.parent != args.out and not args.bundle.parent.is_dir():
        where = f"in {args.bundle.parent}, which is {kind(args.bundle.parent)}"
        raise Refused(f"--bundle: expected an archive in a folder that is there, got {args.bundle} {where}")


def main(words: list[str]) -> int:
    args = parse_args(words)
    try:
        return act(args)
    except Refused as error:
        make_parser().error(str(error))


def act(args: argparse.Namespace) -> int:
    """Does what the verb says; returns the exit status."""
    if args.verb == "merge":
        for path in merge(Path(args.name), args.out or Path("results")):
            print(path)
        return 0
    if args.verb == "pack":
        print(f"{pack(args.data, args.out) / 2**20:.1f} MiB in {args.out}")
        return 0
    if args.out is None:
        args.out = Path(tempfile.mkdtemp(prefix="device_"))
    make_folder(args.out, "--out")
    if args.verb == "step":
        from benchmarks.device import steps

        steps.run(args.name, args)
        return 0
    from benchmarks.device.runner import run_all  # the packing needs no torch

    return run_all(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
