"""Times, limits and shares: what every table of the device writes beside its own columns."""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import append_row, environment, read_rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median time of a call after two warm-up calls: device events on a GPU, the wall clock on a CPU."""
    work(), work()
    synchronize(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        if device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begun = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def peak_mib(work: Callable[[], object], device: torch.device) -> float | str:
    """MiB above what was there before at the highest point of a call; empty on a CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def measure_ceilings(device: torch.device, smoke: bool, seconds: float) -> dict[str, float]:
    """Bytes a second of a large copy, read and write counted, and operations a second of large products.

    Random numbers: products of zeros run faster. `fp32` is true float32, `tf32` the matrix units' mode.
    """
    size = 2**20 if smoke else 2**30
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    found = {"copy": 2 * size / milliseconds(lambda: target.copy_(source), device, seconds) * 1000}
    side = 128 if smoke else 8192
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in kinds.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / milliseconds(functools.partial(torch.matmul, a, b), device, seconds) * 1000
        if name == "fp32" and device.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            found["tf32"] = 2 * side**3 / milliseconds(functools.partial(torch.matmul, a, b), device, seconds) * 1000
            torch.backends.cuda.matmul.fp32_precision = "ieee"
    return found


class Table:
    """One step's CSV: every row with its share of the limit, appended as it is measured.

    Args:
        path: of the CSV; one that is there is replaced.
        device: where it is measured.
        ceilings: of `measure_ceilings`.
        seconds: time for a figure.
    """

    def __init__(self, path: Path, device: torch.device, ceilings: dict[str, float], seconds: float) -> None:
        self.path, self.device, self.ceilings, self.seconds = path, device, ceilings, seconds
        path.unlink(missing_ok=True)

    def add(
        self, work: Callable[[], object], operations: float, least_bytes: float, dtype: str, **columns: Any
    ) -> None:
        """Times `work` and writes its row; a failure (no room, no kernel) is a row, too.

        Args:
            work: one call.
            operations: floating-point operations of products that it must do.
            least_bytes: bytes that it must move, each input read once and each output written once.
            dtype: `fp32`, `bf16` or `fp16`: whose product rate is the limit.
            columns: what the row is of.
        """
        limit = 1000 * max(operations / self.ceilings[dtype], least_bytes / self.ceilings["copy"])
        bound = "products" if operations / self.ceilings[dtype] > least_bytes / self.ceilings["copy"] else "bytes"
        row: dict[str, Any] = {**columns, "dtype": dtype}
        try:
            ms = milliseconds(work, self.device, self.seconds)
            row |= {"ms": round(ms, 4), "limit_ms": round(limit, 6), "limit_by": bound}
            row |= {"share_of_limit": round(limit / ms, 3), "peak_mib": peak_mib(work, self.device), "failure": ""}
        except Exception as error:  # a row, not the end of the table
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            row |= {"ms": "", "limit_ms": round(limit, 6), "limit_by": bound, "share_of_limit": "", "peak_mib": ""}
            row["failure"] = reason
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print({k: row[k] for k in (*columns, "dtype", "ms", "share_of_limit", "failure")}, flush=True)
        append_row(self.path, {**row, **environment()})


def known_ceilings(folder: Path, device: torch.device, smoke: bool) -> dict[str, float]:
    """The ceilings that the first step wrote, else measured now."""
    rows = read_rows(folder / "ceilings.csv")
    return {r["what"]: float(r["per_second"]) for r in rows} or measure_ceilings(device, smoke, 0.05)
