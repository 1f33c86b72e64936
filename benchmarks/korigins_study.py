"""Epochs to 0.99 foreground IoU with and without K-Origins, and with every control (experiments E1, E2 and E5).

    python -m benchmarks.korigins_study --out results/korigins_epochs.csv
    python -m benchmarks.korigins_study --part e5 --out results/korigins_e5.csv

Every run is the method itself (KOriginsSegmentation on SquaresDataModule) under a Trainer; a run ends when the
validation IoU over the dataset reaches the goal, or with the last epoch. Runs already in the CSV are not repeated.
"""

import argparse
import functools
import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.common import append_row, environment, read_rows
from datamodules import SquaresDataModule
from models import KOriginsSegmentation

PLAIN: dict[str, Any] = {"origins": "none"}
FIRST_LEVEL: dict[str, Any] = {"deep_origins": 0}
#: name -> arguments of the method that differ from the K-network with the paper's initialisation
VARIANTS: dict[str, dict[str, Any]] = {
    "K-Origins, every level": {},
    "K-Origins, first level only": FIRST_LEVEL,
    "plain": PLAIN,
    "plain, standardised input": {**PLAIN, "standardize_input": True},
    "plain, BatchNorm": {**PLAIN, "batch_norm": True},
    "plain, biases from data": {**PLAIN, "data_bias": True},
    "plain, bias lr 100": {**PLAIN, "bias_lr": 100.0},
    "plain, biases from data, bias lr 100": {**PLAIN, "data_bias": True, "bias_lr": 100.0},
    "K-Origins first level, frozen": {**FIRST_LEVEL, "trainable_origins": False},
    "K-Origins first level, random": {**FIRST_LEVEL, "origins": "random"},
    "K-Origins first level, Multi-Otsu": {**FIRST_LEVEL, "origins": "multi_otsu"},
    "K-Origins first level, mixture": {**FIRST_LEVEL, "origins": "gaussian_mixture"},
}
E5: dict[str, dict[str, Any]] = {
    "KRFL32": {"rfl": 32},
    "KRFL32, first level only": {"rfl": 32, "deep_origins": 0},
    "RFL68 widened": {"rfl": 68, "origins": "none", "widen": [6, 3]},
    "RFL68": {"rfl": 68, "origins": "none"},
}


class StopAtGoal(Callback):
    """Records the validation IoU of every epoch and ends the run at the goal."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.curve: list[float] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the figure that the method has just logged."""
        if trainer.sanity_checking:
            return
        self.curve.append(float(trainer.callback_metrics["val/iou"]))
        trainer.should_stop = self.curve[-1] >= self.goal


def one_run(arguments: dict[str, Any], seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Trains once and returns the figures of the run."""
    seed_everything(seed, verbose=False)
    data = SquaresDataModule(
        args.preset,
        images=args.images,
        side=args.side,
        shapes_per_class=args.shapes,
        std=args.std,
        batch_size=3,
        eval_batch_size=10,
        seed=seed,
    )
    model = KOriginsSegmentation(
        in_channels=data.preset.channels,
        num_classes=data.preset.num_classes,
        width=args.width,
        optimizer=functools.partial(torch.optim.Adam, lr=args.lr, eps=1e-7),
        **arguments,
    )
    stop = StopAtGoal(args.goal)
    trainer = Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_epochs=args.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[stop],
        default_root_dir=tempfile.gettempdir(),
    )
    start = time.monotonic()
    trainer.fit(model, data)
    reached = stop.curve[-1] >= args.goal
    return {
        "epochs_to_goal": len(stop.curve) if reached else f"> {args.epochs}",
        "best_iou": round(max(stop.curve), 4),
        "last_iou": round(stop.curve[-1], 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - start, 1),
    }


def plan(args: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(variant, rfl, arguments) of every run, the most telling first."""
    if args.part == "e5":
        for name, arguments in E5.items():
            yield name, arguments["rfl"], arguments
        return
    controls = [name for name in VARIANTS if name not in ("K-Origins, every level", "plain")]
    for name, rfl in itertools.product(("K-Origins, first level only", "plain", "K-Origins, every level"), args.rfl):
        yield name, rfl, {"rfl": rfl, **VARIANTS[name]}
    for name in controls[1:]:
        yield name, args.control_rfl, {"rfl": args.control_rfl, **VARIANTS[name]}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["e1e2", "e5"], default="e1e2")
    parser.add_argument("--preset", default="rfl_failure")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--shapes", type=int, nargs="+", default=[4, 4])
    parser.add_argument("--std", type=float, nargs="+", default=None, help="of every class; by default the preset's")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--goal", type=float, default=0.99)
    parser.add_argument("--rfl", type=int, nargs="+", default=[8, 18, 38])
    parser.add_argument("--control-rfl", type=int, default=18)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore", message=r".*(many workers|logging interval|LeafSpec).*")
    done = {(r["variant"], r["rfl"], r["seed"]) for r in read_rows(args.out)}
    settings = {
        "preset": args.preset,
        "side": args.side,
        "images": args.images,
        "std": "preset" if args.std is None else "/".join(f"{s:g}" for s in args.std),
        "width": args.width,
        "lr": args.lr,
        "goal": args.goal,
    }
    for seed, (variant, rfl, arguments) in itertools.product(args.seeds, list(plan(args))):
        if (variant, str(rfl), str(seed)) in done:
            continue
        row = {"variant": variant, "rfl": rfl, "seed": seed, **one_run(arguments, seed, args)}
        print(row, flush=True)
        append_row(args.out, {**row, **settings, **environment()})


if __name__ == "__main__":
    main()
