"""Time and peak memory of a FINOLA map, as multiples of the bare matrix products that it must do.

    python -m benchmarks.finola --out results/finola_speed.csv

Compared: a loop over cells (with fused layer norm), the two phases batched in plain autograd, the same with its step
compiled, and `framework.nn.Finola` (with and without checkpointing, and the wavefront scheme). Forward counts against
the products of the forward pass, forward + backward against three times these. One thread unless --threads says more.
"""

import argparse
import ctypes
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import append_row, environment
from framework.nn import Finola

Grow = Callable[[Tensor], Tensor]


def bare_products(weight: Tensor, batch: int, side: int) -> Callable[[], None]:
    """The forward's batched products and nothing else: half a side of steps along the axes, as many across them."""
    channels, half = weight.shape[-1], side // 2
    along = torch.randn(4, batch, channels, device=weight.device)
    across = torch.randn(4, batch * side, channels, device=weight.device)
    small, large = torch.empty_like(along), torch.empty_like(across)

    def run() -> None:
        with torch.no_grad():
            for _ in range(half):
                torch.bmm(along, weight.mT, out=small)
            for _ in range(half):
                torch.bmm(across, weight.mT, out=large)

    return run


def cell_loop(weight: Tensor, side: int) -> Grow:
    """Both maps cell after cell."""

    def step(z: Tensor, direction: int) -> Tensor:
        return z + F.linear(F.layer_norm(z, z.shape[-1:]), weight[direction])

    def grow(q: Tensor) -> Tensor:
        centre, maps = side // 2, []
        for first, second in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
            line = _chain(q, side, centre, *first, step)
            rows = [_chain(z, side, centre, *second, step) for z in line]
            grid = torch.stack([torch.stack(row, -1) for row in rows], -1)  # (B, C, second axis, first axis)
            maps.append(grid if first == (0, 1) else grid.mT)
        return (maps[0] + maps[1]) / 2

    return grow


def _chain(
    q: Tensor, side: int, centre: int, ahead: int, behind: int, step: Callable[[Tensor, int], Tensor]
) -> list[Tensor]:
    before, after, z = [], [q], q
    for _ in range(centre + 1, side):
        z = step(z, ahead)
        after.append(z)
    z = q
    for _ in range(centre):
        z = step(z, behind)
        before.append(z)
    return [*reversed(before), *after]


def plain_batched(weight: Tensor, side: int, compiled: bool = False) -> Grow:
    """Two phases of batched products under autograd: four chains along the axes, then four banks across them."""

    def step(z: Tensor, matrices: Tensor) -> Tensor:
        return torch.baddbmm(z, F.layer_norm(z, z.shape[-1:]), matrices.mT)

    advance = torch.compile(step, dynamic=False) if compiled else step

    def grow(q: Tensor) -> Tensor:
        batch, channels = q.shape
        half = side // 2
        chains = [q.expand(4, -1, -1)]
        for _ in range(half):
            chains.append(advance(chains[-1].contiguous(), weight))
        steps = torch.stack(chains)  # (half + 1, 4, B, C); even sides do not use the last step ahead
        row = torch.cat([steps[1:, 1].flip(0), steps[: side - half, 0]]).transpose(0, 1)
        column = torch.cat([steps[1:, 3].flip(0), steps[: side - half, 2]]).transpose(0, 1)
        z = torch.stack([column, column, row, row]).reshape(4, batch * side, channels)
        banks = [z]
        for _ in range(half):
            banks.append(advance(banks[-1], weight))
        steps = torch.stack(banks).view(half + 1, 4, batch, side, channels)
        by_row = torch.cat([steps[1:, 3].flip(0), steps[: side - half, 2]])  # (H, B, W, C)
        by_column = torch.cat([steps[1:, 1].flip(0), steps[: side - half, 0]])  # (W, B, H, C)
        return ((by_row.permute(1, 3, 0, 2) + by_column.permute(1, 3, 2, 0)) / 2).contiguous()

    return grow


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """MiB above what was there before, at the highest point of `work`."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back first
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
    return int(line.split()[1])


def milliseconds(
    work: Callable[[], object], beside: Callable[[], object], seconds: float, device: torch.device
) -> tuple[float, float, int]:
    """Median times of `work` and of `beside`, run in turn, and the number of runs (at least 3), after a warm-up.

    Both take turns because a shared machine drifts. One CPU thread is timed by its own clock, which does not count what
    other processes take.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def once(run: Callable[[], object]) -> float:
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (clock() - start)

    once(work)
    once(beside)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append((once(work), once(beside)))
    ours, theirs = zip(*times, strict=True)
    return statistics.median(ours), statistics.median(theirs), len(times)


def measure(args: argparse.Namespace, channels: int) -> Iterator[dict[str, object]]:
    """The rows of one C: every method forward, and forward + backward."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    side = args.side
    weight = (torch.randn(4, channels, channels, device=device) * 0.3 / channels**0.5).requires_grad_()
    methods: dict[str, tuple[int, Grow]] = {}
    if not args.skip_loop:
        methods["cell loop"] = (1, cell_loop(weight, side))
    methods["plain batched"] = (1, plain_batched(weight, side))
    if args.compile:
        methods["plain batched, compiled step"] = (1, plain_batched(weight, side, compiled=True))
    ours = {"ours": {}, "ours, checkpoint": {"checkpoint": True}, "ours, wavefront": {"scheme": "wavefront"}}
    for name, options in ours.items():
        layer = Finola(channels, **options).to(device)  # type: ignore[arg-type]
        layer.weight = torch.nn.Parameter(weight.detach().clone())
        for paths in (1, *args.paths) if "checkpoint" in name or name == "ours" else (1,):
            methods[f"{name}, M = {paths}" if paths > 1 else name] = (
                paths,
                functools.partial(layer, size=(side, side)),
            )
    products = bare_products(weight.detach(), args.batch, side)
    for name, (paths, grow) in methods.items():
        q = torch.randn(args.batch, paths, channels, device=device)
        q = (q[:, 0] if paths == 1 else q).requires_grad_()
        g = torch.ones(args.batch, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)

        def forward(grow: Grow = grow, q: Tensor = q) -> None:
            with torch.no_grad():
                grow(q)

        def both(grow: Grow = grow, q: Tensor = q, g: Tensor = g) -> None:
            grow(q).backward(g)

        for work, factor in ((forward, 1), (both, 3)):
            ms, bare, runs = milliseconds(work, products, args.seconds, device)
            row = {
                "C": channels,
                "side": side,
                "batch": args.batch,
                "M": paths,
                "method": name,
                "pass": work.__name__,
                "ms": round(ms, 1),
                "bare_ms": round(bare, 1),
                "multiple": round(ms / (factor * paths * bare), 2),
                "peak_mib": round(peak_memory(work, device), 1),
                "runs": runs,
            }
            print(row, flush=True)
            yield {**row, **environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--paths", type=int, nargs="*", default=[4], help="M with more than one path")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each figure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler on the CPU")
    parser.add_argument("--skip-loop", action="store_true", help="leave out the slow loop over cells")
    parser.add_argument("--out", type=Path, help="CSV file, written anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.out:
        args.out.unlink(missing_ok=True)
    for channels in args.channels:
        for row in measure(args, channels):
            if args.out:
                append_row(args.out, row)


if __name__ == "__main__":
    main()
