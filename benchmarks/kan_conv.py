"""Time and memory of spline convolutions beside the plain convolution they become, in one run.

    python -m benchmarks.kan_conv --out results/kan_conv_cpu.csv
    python -m benchmarks.kan_conv --device cuda --out results/kan_conv_gpu.csv

Forward and backward (input and weight gradients), batch 4, 32 -> 32 channels, 64 x 64, K = 3, G = 5, p = 3 unless a row
says otherwise. `floor` is a plain convolution over n repeated inputs: the multiplications every dense form must do.
Times are the least of several repeats; wall time on a shared machine is noisy, processor time less so.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import append_row, environment
from framework.nn import KANConv2d, KANLinear, bspline_basis


class Repeated(nn.Module):
    """The floor: a plain convolution over n copies of the input."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.n = n
        self.conv = nn.Conv2d(channels * n, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat(1, self.n, 1, 1))


class Unfolded(nn.Module):
    """The linear spline layer over unfolded patches: every pixel is expanded K^2 times."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.linear = KANLinear(channels * 9, channels, grid_size=grid, implementation="dense")

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)
        return self.linear(patches).transpose(1, 2).reshape(batch, -1, height, width)


class PerEdge(nn.Module):
    """One function object per edge: the definition, read literally."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3, grid + 3) / channels)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        height, width = x.shape[-2:]
        out = []
        for o in range(self.weight.shape[0]):
            total = torch.zeros_like(x[:, 0])
            for c in range(self.weight.shape[1]):
                for i in range(3):
                    for j in range(3):
                        window = padded[:, c, i : i + height, j : j + width]
                        total = total + bspline_basis(window, self.grid) @ self.weight[o, c, i, j]
            out.append(total)
        return torch.stack(out, 1)


def measure(module: nn.Module, x: Tensor, autocast: torch.dtype | None, seconds: float) -> tuple[float, float]:
    """Least processor and wall milliseconds of forward and backward."""
    cuda = x.is_cuda

    def once() -> None:
        x.grad = None
        with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            y = module(x)
        y.backward(torch.ones_like(y))
        if cuda:
            torch.cuda.synchronize()

    once()
    cpu, wall, begun, rounds = float("inf"), float("inf"), time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < seconds:
        a, b = time.process_time(), time.perf_counter()
        once()
        cpu, wall = min(cpu, time.process_time() - a), min(wall, time.perf_counter() - b)
        rounds += 1
    return 1000 * cpu, 1000 * wall


def held_bytes(module: nn.Module, x: Tensor, autocast: torch.dtype | None) -> int:
    """Bytes alive between forward and backward beyond parameters and output, the input it refers to included."""
    with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            y = module(x)
            held = torch.cuda.memory_allocated() - before
        else:
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                y = module(x)
            held = sum(e.self_cpu_memory_usage for e in profiler.key_averages())
    return held - y.numel() * y.element_size() + x.numel() * x.element_size()


def table(args: argparse.Namespace, threads: int, autocast: torch.dtype | None) -> None:
    """Measures and writes all rows of one thread number and dtype."""
    torch.set_num_threads(threads)
    device = torch.device(args.device)
    x = torch.randn(4, 32, 64, 64, device=device, requires_grad=True)
    conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)

    def spline(implementation: str, grid: int) -> KANConv2d:
        return KANConv2d(32, 32, 3, padding=1, grid_size=grid, implementation=implementation)  # type: ignore[arg-type]

    layers: list[tuple[str, int, Callable[[], nn.Module]]] = [("plain convolution", 0, lambda: conv)]
    for grid in args.grids:
        layers.append(("floor", grid, functools.partial(Repeated, 32, grid + 3)))
        for name in ("auto", "recompute", "dense"):
            layers.append((name, grid, functools.partial(spline, name, grid)))
    if not args.no_compile:
        layers.insert(5, ("compiled", 5, lambda: torch.compile(spline("auto", 5))))  # type: ignore[arg-type,return-value]
    if not args.no_naive and threads == 1:
        layers += [("unfold", 5, lambda: Unfolded(32, 5))]
    rows, floors = [], {}
    plain = 1.0
    for name, grid, build in layers:
        torch.manual_seed(0)
        module = build().to(device)
        cpu, wall = measure(module, x, autocast, args.seconds)
        used = cpu if threads == 1 and device.type == "cpu" else wall
        plain = used if name == "plain convolution" else plain
        if name == "floor":
            floors[grid] = used
        rows.append(
            {
                "threads": threads,
                "dtype": str(autocast or torch.float32).removeprefix("torch."),
                "layer": name,
                "grid": grid or "",
                "parameters": sum(p.numel() for p in module.parameters()),
                "cpu_ms": round(cpu, 2),
                "wall_ms": round(wall, 2),
                "ratio_to_floor": round(used / floors[grid], 3) if grid in floors else "",
                "ratio_to_conv": round(used / plain, 2),
                "held_mb": round(held_bytes(module, x, autocast) / 2**20, 2),
            }
        )
        append_row(Path(args.out), {**rows[-1], **environment()})
        print(rows[-1], flush=True)


def naive_rows(args: argparse.Namespace) -> None:
    """The per-edge form at a size it can carry: batch 1, 8 -> 8 channels, 32 x 32, beside ours at that size."""
    torch.set_num_threads(1)
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    rows: list[dict[str, Any]] = []
    small: list[tuple[str, nn.Module]] = [
        ("plain convolution, small", nn.Conv2d(8, 8, 3, padding=1, bias=False)),
        ("floor, small", Repeated(8, 8)),
        ("auto, small", KANConv2d(8, 8, 3, padding=1)),
        ("unfold, small", Unfolded(8, 5)),
        ("per edge, small", PerEdge(8, 5)),
    ]
    for name, module in small:
        cpu, wall = measure(module, x, None, args.seconds)
        rows.append(
            {
                "threads": 1,
                "dtype": "float32",
                "layer": name,
                "grid": 5,
                "parameters": sum(p.numel() for p in module.parameters()),
                "cpu_ms": round(cpu, 2),
                "wall_ms": round(wall, 2),
                "ratio_to_floor": round(cpu / rows[1]["cpu_ms"], 3) if len(rows) > 1 else "",
                "ratio_to_conv": round(cpu / rows[0]["cpu_ms"], 2) if rows else 1.0,
                "held_mb": round(held_bytes(module, x, None) / 2**20, 2),
            }
        )
        append_row(Path(args.out), {**rows[-1], **environment()})
        print(rows[-1], flush=True)


def main() -> None:
    """Measures everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/kan_conv_cpu.csv")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--grids", nargs="*", type=int, default=[5, 3, 10, 20])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-naive", action="store_true")
    args = parser.parse_args()
    Path(args.out).unlink(missing_ok=True)
    for dtype in (None, torch.bfloat16) if args.device == "cuda" else (None,):
        for threads in args.threads if args.device == "cpu" else [1]:
            table(args, threads, dtype)
    if args.device == "cpu" and not args.no_naive:
        naive_rows(args)


if __name__ == "__main__":
    main()
