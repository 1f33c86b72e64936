"""Is a folded K-network as fast as the plain network of the same shape, and equal to the trained one?

    python -m benchmarks.fold_korigins --out results/fold_korigins.csv

Plain, K- and folded networks forward the same batch in turn, in one process; the table gives the median of each and its
ratio to the plain network, and the folded network's largest difference as a share of the largest logit.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import append_row, environment
from datamodules.squares_data import PRESETS, draw_sample
from framework.nn import origins_from_statistics
from models.korigins.network import KOriginsUNet


def alternate(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each work, run in turn so that a busy machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def train_briefly(network: KOriginsUNet, image: torch.Tensor, mask: torch.Tensor, steps: int) -> None:
    """A few steps with the published rates, so that the folded weights are not the initial ones."""
    groups: list[dict[str, Any]] = [
        {"params": network.other_parameters()},
        {"params": network.origin_parameters(), "lr": 100.0},
    ]
    optimizer = torch.optim.Adam(groups, lr=1e-3, eps=1e-7)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(network(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measure(rfl: int, args: argparse.Namespace) -> dict[str, object]:
    """One row of the table."""
    preset = PRESETS["proof_of_failure"]
    samples = [draw_sample(preset, args.seed, i) for i in range(args.batch_size)]
    image = torch.stack([torch.from_numpy(x.astype("float32")) for x, _ in samples])
    mask = torch.stack([torch.from_numpy(y.astype("int64")) for _, y in samples])
    origins = torch.tensor(origins_from_statistics(*preset.class_statistics()), dtype=torch.float32)
    k_network = KOriginsUNet(rfl, 1, 3, origins=origins, seed=args.seed)
    train_briefly(k_network, image[:1, :, :64, :64].contiguous(), mask[:1, :64, :64].contiguous(), args.steps)
    k_network.eval()
    plain = KOriginsUNet(rfl, 1, 3, seed=args.seed).eval()
    folded = k_network.fold().eval()
    with torch.no_grad():
        logits = k_network(image)
        error = float((folded(image) - logits).abs().max() / logits.abs().max())
        works = {"plain": lambda: plain(image), "folded": lambda: folded(image), "k_network": lambda: k_network(image)}
        seconds = alternate(works, args.rounds)
    return {
        "network": f"KRFL{rfl}",
        "side": preset.side,
        "batch_size": args.batch_size,
        "steps_trained": args.steps,
        "error_of_largest_logit": f"{error:.1e}",
        "plain_ms": round(1000 * seconds["plain"], 2),
        "folded_ms": round(1000 * seconds["folded"], 2),
        "k_network_ms": round(1000 * seconds["k_network"], 2),
        "folded_over_plain": round(seconds["folded"] / seconds["plain"], 3),
        "k_network_over_plain": round(seconds["k_network"] / seconds["plain"], 3),
        "seed": args.seed,
        "rounds": args.rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rfl", type=int, nargs="+", default=[8, 18, 14, 32])
    parser.add_argument("--batch-size", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.unlink(missing_ok=True)
    for rfl in args.rfl:
        row = measure(rfl, args)
        print(row, flush=True)
        append_row(args.out, {**row, **environment()})


if __name__ == "__main__":
    main()
