"""What does a training step of a Levels-of-Experts network cost beside plain SIREN's?

Times forward, backward and Adam of one image's network in one process, formulation by formulation in turn, so that a
busy machine slows all of them alike:

- `siren`: torch.nn.Linear layers, one weight matrix each (the reference of every ratio);
- `nested`: the layers of framework.nn over nested-sorted rows, as plain SIREN, fine-to-coarse and Otsu;
- `masked`: boolean selection and scatter per expert (the published snippet);
- `padded`: rows gathered per expert into equally long blocks, one batched product;
- `gather`: a weight matrix gathered per row, on as few rows as memory bears.

With `--memory` the peak of memory in two steps above what was there before is measured instead, formulation by
formulation in a process of its own.

    python -m benchmarks.loe_step --out results/loe_step.csv
    python -m benchmarks.loe_step --memory --sizes 65536 --out results/loe_memory.csv
"""

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from skimage import data
from torch import Tensor, nn

from benchmarks.common import append_row, environment
from framework.nn import SineLayer, coordinate_grid, luminance, multi_otsu, nested_sort, tile_index
from models.levels_of_experts.network import LevelsOfExpertsNetwork

SIZES = {1024: (32, 32), 4096: (64, 64), 16384: (128, 128), 65536: (256, 256), 393216: (512, 768)}
FINE_TO_COARSE = (128.0, 8.0, 4.0, 2.0)
KINDS = ("siren", "nested_siren", "nested_ftc", "nested_otsu", "masked", "padded")


class LinearSiren(nn.Module):
    """The reference: torch.nn.Linear, initialised like ours; w0 multiplies the weights as in SineLayer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sines = [SineLayer(2 if level == 0 else width, width, first=level == 0) for level in range(4)]
        self.layers = nn.ModuleList([nn.Linear(sine.linear.in_features, width) for sine in sines])
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in cast(Iterable[nn.Linear], self.layers):
            x = torch.sin(torch.nn.functional.linear(x, 30 * layer.weight, 30 * layer.bias))
        return self.last(x)


class NaiveExperts(nn.Module):
    """The other formulations of the same network, over unsorted rows."""

    def __init__(self, network: LevelsOfExpertsNetwork, index: list[Tensor], kind: str) -> None:
        super().__init__()
        self.network, self.index = network, index
        self.apply_experts = {"masked": masked, "padded": padded, "gather": gather}[kind]

    def forward(self, x: Tensor) -> Tensor:
        for layer, index in zip(cast(Iterable[SineLayer], self.network.layers), self.index, strict=True):
            weight, bias = 30 * layer.linear.weight[0], 30 * cast(Tensor, layer.linear.bias)[0]
            x = torch.sin(self.apply_experts(x, weight, index) + bias)
        return torch.nn.functional.linear(x, self.network.last.weight[0, 0], cast(Tensor, self.network.last.bias)[0])


def masked(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    out = x.new_empty(len(x), weight.shape[1])
    for e in range(len(weight)):
        chosen = index == e
        out[chosen] = x[chosen] @ weight[e].t()
    return out


def padded(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index, minlength=len(weight))
    starts = torch.cumsum(counts, 0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(x), device=x.device)
    place = index * int(counts.max()) + place - starts[index]
    blocks = x.new_zeros(len(weight) * int(counts.max()), x.shape[1]).index_copy(0, place, x)
    out = torch.bmm(blocks.view(len(weight), -1, x.shape[1]), weight.transpose(1, 2))
    return out.flatten(0, 1)[place]


def gather(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return torch.bmm(weight[index], x[..., None])[..., 0]


def build(
    kind: str, rows: int, width: int, device: torch.device, autocast: bool
) -> tuple[Callable[[], Tensor], nn.Module]:
    """A training step of one formulation, and its network."""
    height, columns = SIZES[rows]
    coords = coordinate_grid(height, columns).flatten(0, 1)
    rgb = torch.from_numpy(data.astronaut())[:height, :columns].contiguous().numpy()
    picture = torch.zeros(height, columns, 3, dtype=torch.uint8)
    picture[: rgb.shape[0], : rgb.shape[1]] = torch.from_numpy(rgb)
    target = picture.flatten(0, 1).float() / 127.5 - 1
    index = [tile_index(coords, a) for a in FINE_TO_COARSE]
    if kind in ("nested_otsu", "masked", "padded", "gather"):
        index[3] = torch.from_numpy(multi_otsu(luminance(picture.numpy()))[0]).flatten()
    torch.manual_seed(0)
    if kind == "siren":
        module: nn.Module = LinearSiren(width)
    else:
        network = LevelsOfExpertsNetwork([1] * 4 if kind == "nested_siren" else [4] * 4, ["image"], width=width)
        module = network if kind.startswith("nested") else NaiveExperts(network, [i.to(device) for i in index], kind)
    module = module.to(device)
    segments: list = [None] * 4
    if kind in ("nested_ftc", "nested_otsu"):
        order, runs = nested_sort(index)
        coords, target, segments = coords[order], target[order], [[r] for r in runs]
    coords, target = coords.to(device), target.to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            out = module(coords[None], segments)[0] if kind.startswith("nested") else module(coords)
        loss = torch.nn.functional.mse_loss(out.float(), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, module


def timed(step: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_mib(kind: str, rows: int, args: argparse.Namespace) -> float:
    """Peak memory of two steps above the start: of the GPU, or the resident set of a process of its own."""
    device = torch.device(args.device)
    if device.type == "cuda":
        step, _ = build(kind, rows, args.width, device, args.bf16)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(), step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    words = [sys.executable, "-m", "benchmarks.loe_step", "--peak", kind, "--sizes", str(rows)]
    words += ["--width", str(args.width), "--threads", str(args.threads)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def print_peak(kind: str, rows: int, width: int) -> None:
    """Prints the growth of the resident set, sampled every 2 ms."""
    step, _ = build(kind, rows, width, torch.device("cpu"), False)
    before, samples, done = resident_mib(), [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(resident_mib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    step(), step()
    done.set()
    sampler.join()
    print(max(samples) - before)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(SIZES), default=[1024, 4096, 16384, 65536])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "gather"], default=list(KINDS))
    parser.add_argument("--gather-rows", type=int, default=1024, help="size up to which weights are gathered per row")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch decides")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under bfloat16 autocast")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--out", type=Path, help="CSV file to write; one that is there is replaced")
    parser.add_argument("--peak", choices=[*KINDS, "gather"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(args.peak, args.sizes[0], args.width)
        return
    if args.out:
        args.out.unlink(missing_ok=True)
    measure = memory_rows if args.memory else timing_rows
    for rows in args.sizes:
        for row in measure(rows, args):
            row |= {"width": args.width, "precision": "bf16" if args.bf16 else "fp32", **environment()}
            print({k: row[k] for k in list(row)[:5]}, flush=True)
            if args.out:
                append_row(args.out, row)


def memory_rows(rows: int, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per formulation: peak memory."""
    for kind in args.kinds:
        yield {"coordinates": rows, "formulation": kind, "peak_mib": round(peak_mib(kind, rows, args))}


def timing_rows(rows: int, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per formulation: seconds a step, and their ratio to the reference's step of the same turn."""
    device = torch.device(args.device)
    kinds = [*args.kinds, *(["gather"] if rows <= args.gather_rows and "gather" not in args.kinds else [])]
    steps = {kind: build(kind, rows, args.width, device, args.bf16)[0] for kind in kinds}
    losses = {kind: [step() for _ in range(2)][-1].item() for kind, step in steps.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(args.repeats):
        for kind, step in steps.items():
            times[kind].append(timed(step, device))
    for kind in kinds:
        ratios = [t / s for t, s in zip(times[kind], times["siren"], strict=True)]
        yield {
            "coordinates": rows,
            "formulation": kind,
            "seconds_median": round(statistics.median(times[kind]), 5),
            "ratio_to_siren_median": round(statistics.median(ratios), 3),
            "ratio_to_siren_of_bests": round(min(times[kind]) / min(times["siren"]), 3),
            "seconds_best": round(min(times[kind]), 5),
            "loss_after_2_steps": f"{losses[kind]:.6f}",
            "repeats": args.repeats,
        }


if __name__ == "__main__":
    main()
