"""One training step of every method under torch's profiler: launches, gaps, synchronisations.

`busy_ms` is the time in which the device does something, `span_ms` from its first kernel to its last; `idle_share` is
what is lost between kernels. On a CPU only the operators are counted.
"""

import argparse
import gzip
import shutil
import warnings
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import append_row, environment
from benchmarks.device.methods import METHODS, on_device, prepared, stepper

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
#: a trace is kept when its compressed file is below this, bytes
KEPT = 2**18


def run(name: str, args: argparse.Namespace) -> None:
    """Writes `traces.csv` and, where they are small, the traces."""
    path = args.out / f"{name}.csv"
    path.unlink(missing_ok=True)
    warnings.filterwarnings("ignore", ".*self.trainer.*")
    for method in METHODS:
        for dtype in ("fp32",) if args.smoke else ("fp32", "bf16"):
            try:
                row = traced(method, dtype, args)
            except Exception as error:  # no room, say: a row, not the end of the table
                row = {
                    **dict.fromkeys(COLUMNS, ""),
                    "failure": f"{type(error).__name__}: {error}".splitlines()[0][:160],
                }
            print(method, dtype, row, flush=True)
            append_row(path, {"method": method, "dtype": dtype, **row, **environment()})


COLUMNS = ("operators", "launches", "kernels", "synchronisations", "copies", "busy_ms", "span_ms", "idle_share")


def traced(method: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """The counts of the fourth step."""
    module, batch = prepared(method, small=args.smoke)
    step = stepper(module, on_device(module, batch, args.device))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device == "cuda" else [])]
    with torch.autocast(args.device, torch.bfloat16, enabled=dtype == "bf16"):
        for _ in range(1 if args.smoke else 3):
            step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        with profile(activities=activities) as profiler:
            step()
            if args.device == "cuda":
                torch.cuda.synchronize()
    row = counts(profiler.events())
    if args.device == "cuda":
        row["synchronisations"] = int(row["synchronisations"]) - 1  # our own
        keep(profiler, args, f"trace_{method}_{dtype}".replace(", ", "_").replace(" ", "_"))
    return {**row, "failure": ""}


def counts(events: Any) -> dict[str, Any]:
    """The figures of COLUMNS from a profile's events."""
    device = sorted(
        ((e.time_range.start, e.time_range.end, e.name) for e in events if e.device_type.name == "CUDA"),
    )
    names = [e.name for e in events if e.device_type.name == "CPU"]
    busy, covered = 0.0, 0.0
    for start, stop, _ in device:
        busy += max(0.0, stop - max(start, covered))
        covered = max(covered, stop)
    span = device[-1][1] - device[0][0] if device else 0.0
    moved = [n for _, _, n in device if n.startswith(("Memcpy HtoD", "Memcpy DtoH"))]
    return {
        "operators": sum(n.startswith("aten::") for n in names),
        "launches": sum(n in LAUNCHES for n in names),
        "kernels": sum(not n.startswith(("Memcpy", "Memset")) for _, _, n in device),
        "synchronisations": sum("Synchronize" in n for n in names),
        "copies": len(moved),
        "busy_ms": round(busy / 1000, 3),
        "span_ms": round(span / 1000, 3),
        "idle_share": round(1 - busy / span, 3) if span else "",
    }


def keep(profiler: Any, args: argparse.Namespace, name: str) -> None:
    """Keeps the trace when it is small."""
    plain = args.out / f"{name}.json"
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(f"{plain}.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
    packed = args.out / f"{name}.json.gz"
    if packed.stat().st_size > KEPT:
        packed.unlink()
