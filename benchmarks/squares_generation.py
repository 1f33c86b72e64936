"""Does one worker draw synthetic squares faster than a K-network consumes them?

Prints images per second of generation in one process, and of reading drawn samples back from the dataset's cache,
beside those of the training step (forward, cross-entropy, backward, Adam) of a K-network at the same size:

    python -m benchmarks.squares_generation --out results/squares_generation.csv
"""

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.common import environment
from datamodules.squares_data import PRESETS, SquaresDataset, SquaresPreset, draw_sample
from framework.nn.origins.korigins import KOrigins
from models.korigins.network import KOriginsUNet

TrainingStep = Callable[[torch.Tensor, torch.Tensor], None]


def images_per_second(work: Callable[[], object], images: int, seconds: float) -> tuple[float, float, int]:
    """Time ``work``, which handles ``images`` images, again and again for ``seconds``, after one warm-up.

    Returns:
        Median and best images per second, and the number of repeats (at least 3).
    """
    work()
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        rates.append(images / (time.perf_counter() - start))
    return statistics.median(rates), max(rates), len(rates)


def k_network_step(preset: SquaresPreset, rfl: int, device: torch.device) -> TrainingStep:
    """Training step of the K-network with the published settings: origins at mean -+ 2 std, two learning rates."""
    mean, std = preset.class_statistics()
    origins = torch.tensor(np.stack([mean - 2 * std, mean + 2 * std], axis=1).reshape(-1, preset.channels))
    network = KOriginsUNet(rfl, preset.channels, preset.num_classes, origins=origins.float()).to(device)
    shifts = [p for layer in network.modules() if isinstance(layer, KOrigins) for p in layer.parameters()]
    known = {id(p) for p in shifts}
    others = [p for p in network.parameters() if id(p) not in known]
    optimizer = torch.optim.Adam([{"params": others, "lr": 1e-4}, {"params": shifts, "lr": 100.0}], eps=1e-7)

    def step(image: torch.Tensor, mask: torch.Tensor) -> None:
        loss = torch.nn.functional.cross_entropy(network(image.to(device)), mask.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure(preset: SquaresPreset, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield one row each for generation, cached reading and the training step of one preset at one size."""
    indices = itertools.count()

    def generate() -> None:
        for index in itertools.islice(indices, args.batch_size):
            draw_sample(preset, args.seed, index)

    dataset = SquaresDataset(preset, args.seed, range(args.batch_size), cache=True)
    batch = default_collate([dataset[i] for i in range(args.batch_size)])
    step = k_network_step(preset, args.rfl, torch.device(args.device))
    works: dict[str, Callable[[], object]] = {
        "generate": generate,
        "read_cache": lambda: [dataset[i] for i in range(args.batch_size)],
        f"train_krfl{args.rfl}_{args.device}": lambda: step(batch["image"], batch["mask"]),
    }
    for name, work in works.items():
        median, best, repeats = images_per_second(work, args.batch_size, args.seconds)
        yield {
            "preset": preset.name,
            "side": preset.side,
            "channels": preset.channels,
            "classes": preset.num_classes,
            "work": name,
            "images_per_s_median": round(median, 2),
            "images_per_s_best": round(best, 2),
            "repeats": repeats,
            "batch_size": args.batch_size,
            "seed": args.seed,
            **environment(),
        }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=list(PRESETS),
        default=["mixed", "rfl_failure", "int_layer_rgb", "rgb_pathology"],
    )
    parser.add_argument("--sides", nargs="+", type=int, default=[96, 200, 400], help="image sides in pixels")
    parser.add_argument("--rfl", type=int, default=18, help="receptive field length that names the K-network")
    parser.add_argument("--batch-size", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the training step runs")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    rows = []
    for name, side in itertools.product(args.presets, args.sides):
        for row in measure(replace(PRESETS[name], side=side), args):
            rows.append(row)
            print(f"{name:>26} {side:4d} px  {row['work']:<18} {row['images_per_s_median']:>10} images/s", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
