"""KM-UNet against plain U-Nets on a real set: seeds and spread, grid extension on and off, pruning; one CSV row a run.

python -m benchmarks.kmunet_study --data dsb2018_nuclei --root ../shared/data --out results/kmunet_study.csv
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.common import append_row, environment
from callbacks import GridExtension, SplinePruning
from datamodules import SegmentationDataModule
from framework.nn import spline_layers
from models import KMUNet

SETS: dict[str, dict[str, Any]] = {
    "dsb2018_nuclei": {"split_file": "split.csv", "downscale": 2},
    "isbi2012_em": {"images": "train/images", "masks": "train/masks", "labels": [255, 0], "downscale": 2},
    "bitdepth_nucseg_16bit": {
        "images": "images_16bit",
        "masks": "masks_binary",
        "split_file": "index.csv",
        "bit_depth": 16,
        "downscale": 4,
        "eval_batch_size": 1,
    },
}
VARIANTS = (
    "kmunet",
    "kmunet extended",
    "kmunet edges pruned",
    "kmunet channels pruned",
    "unet equal parameters",
    "unet equal time",
)


def data_module(args: argparse.Namespace, seed: int, **changes: Any) -> SegmentationDataModule:
    """The set, augmented, in small crops."""
    settings = {**SETS[args.data], **changes}
    return SegmentationDataModule(
        str(Path(args.root) / args.data),
        crop=args.crop,
        train_images=args.images,
        rotate=20,
        scale=0.2,
        elastic=2,
        intensity=0.2,
        batch_size=8,
        seed=seed,
        **settings,
    )


def step_seconds(model: KMUNet, side: int, backward: bool) -> float:
    """CPU seconds of one pass over 8 crops (with backward) or one image of the test size (without), best of 5."""
    x = torch.randn(8 if backward else 1, 1, side, side)
    model.train(backward)
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        if backward:
            model(x).square().mean().backward()
        else:
            with torch.no_grad():
                model(x)
        best = min(best, time.process_time() - start)
    return best


def equal_time_width(args: argparse.Namespace) -> int:
    """Width of the plain U-Net whose training step takes nearest to KM-UNet's time, measured here."""
    wanted = step_seconds(make(args, None), args.crop, True)
    width, taken, best = 0, 0.0, (float("inf"), 1)
    while taken < wanted:
        width += 2
        taken = step_seconds(make(args, width), args.crop, True)
        best = min(best, (abs(taken - wanted), width))
    return best[1]


def make(args: argparse.Namespace, baseline: Any, **changes: Any) -> KMUNet:
    """The network of a variant."""
    optimizer: Any = {"class_path": "torch.optim.Adam", "init_args": {"lr": args.learning_rate}}
    cosine: Any = {"class_path": "framework.schedules.WarmupCosine", "init_args": {"total": args.epochs}}
    return KMUNet(
        width=args.width,
        stages=2,
        max_grid_size=None if baseline is not None else 10,
        baseline=baseline,
        optimizer=optimizer,
        lr_scheduler=cosine,
        **changes,
    )


def run(args: argparse.Namespace, variant: str, seed: int, width: int) -> dict[str, Any]:
    """Trains and tests one variant; one row of the table."""
    pl.seed_everything(seed, verbose=False)
    baseline = {"unet equal parameters": "equal_parameters", "unet equal time": width}.get(variant)
    changes: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if variant.endswith("raw") or variant.endswith("origins"):
        data["normalize"] = "none"
    module = data_module(args, seed, **data)
    if variant.endswith("origins"):
        mean, std = module.class_statistics()
        changes["korigins"] = [float(m + s * d) for m, d in zip(mean[:, 0], std[:, 0], strict=True) for s in (-2, 2)]
    model = make(args, baseline, **changes)
    callbacks: list[Callback] = []
    # half of the epochs and more of the cosine are left for fine-tuning
    events = [args.epochs * share // 10 for share in (3, 4, 5)]
    if variant == "kmunet extended":
        callbacks = [GridExtension(milestones=[args.epochs // 2])]
    elif variant == "kmunet edges pruned":
        callbacks = [SplinePruning(epochs=events, fraction=args.edges)]
    elif variant == "kmunet channels pruned":
        callbacks = [SplinePruning(epochs=events, fraction=args.channels, granularity="channel")]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=10**6,
        num_sanity_val_steps=0,
    )
    start = time.process_time()
    trainer.fit(model, module)
    seconds = time.process_time() - start
    masks = [layer.mask for layer in spline_layers(model).values()]
    removed = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) if masks else 0.0
    if variant == "kmunet channels pruned":
        model = model.shrunk()
    (val,) = trainer.validate(model, module, verbose=False)
    (test,) = trainer.test(model, module, verbose=False)
    return {
        "data": args.data,
        "variant": variant,
        "seed": seed,
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "live_parameters": model.network.live_parameters(),
        "edges_removed": round(removed, 4),
        "dice": round(test["test/dice"], 4),
        "iou": round(test["test/iou"], 4),
        "val_dice": round(val.get("val/dice", float("nan")), 4),
        "train_cpu_seconds": round(seconds, 1),
        "inference_ms": round(1000 * step_seconds(model, 2 * args.crop, False), 2),
    }


def main() -> None:
    """Runs the study and appends every row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=SETS, default="dsb2018_nuclei")
    parser.add_argument("--root", default="../shared/data")
    parser.add_argument("--out", default="results/kmunet_study.csv")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak of the cosine")
    parser.add_argument("--edges", type=float, default=0.5)
    parser.add_argument("--channels", type=float, default=0.4)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    width = equal_time_width(args) if "unet equal time" in args.variants else 0
    for seed in args.seeds:
        for variant in args.variants:
            row = run(args, variant, seed, width)
            print(row, flush=True)
            append_row(Path(args.out), {**row, **environment()})


if __name__ == "__main__":
    main()
