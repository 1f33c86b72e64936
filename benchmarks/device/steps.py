"""The steps in order of their value, each with its limit in seconds."""

import argparse
import importlib
from typing import NamedTuple

import torch

from benchmarks.device.measure import Table, known_ceilings


class Step(NamedTuple):
    """One process: `module.rows(table, args)` or, for what is no table, `module.run(args)`."""

    name: str
    module: str
    seconds: float


STEPS = [
    Step("ceilings", "ceilings", 25),
    Step("tests_fp32", "suite", 120),
    Step("splines", "splines", 50),
    Step("experts", "experts", 60),
    Step("finola", "finola", 60),
    Step("tests_bf16", "suite", 45),
    Step("origins", "origins", 25),
    Step("scale_space", "scale_space", 25),
    Step("tests_fp16", "suite", 45),
    Step("fits", "fits", 150),
    Step("traces", "traces", 60),
]


def run(name: str, args: argparse.Namespace) -> None:
    """Runs one step in this process."""
    step = next(s for s in STEPS if s.name == name)
    torch.manual_seed(0)
    if args.device == "cpu":
        torch.set_num_threads(1)
    else:
        # the limits are those of true float32; `ceilings` measures the matrix units' mode beside it
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    module = importlib.import_module(f"benchmarks.device.{step.module}")
    if hasattr(module, "run"):
        module.run(name, args)
        return
    device = torch.device(args.device)
    ceilings = known_ceilings(args.out, device, args.smoke)
    module.rows(Table(args.out / f"{name}.csv", device, ceilings, 0.0 if args.smoke else 0.3), args.smoke)
