"""The two limits that every row is held against."""

import argparse

import torch

from benchmarks.common import append_row, environment
from benchmarks.device.measure import measure_ceilings


def run(name: str, args: argparse.Namespace) -> None:
    """Writes `ceilings.csv`: bytes a second of a copy, operations a second of products."""
    path = args.out / f"{name}.csv"
    path.unlink(missing_ok=True)
    for what, rate in measure_ceilings(torch.device(args.device), args.smoke, 0.0 if args.smoke else 1.0).items():
        print(what, f"{rate:.3e}", flush=True)
        append_row(path, {"what": what, "per_second": f"{rate:.4e}", **environment()})
