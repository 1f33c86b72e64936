"""Do the directions of the paper's tables 1 to 3 hold on real Kodak images at a size that two cores can carry?

Six Kodak images at 96 x 64 (Lanczos), networks of width 32 with three hidden sine layers, so that a SIREN has about as
many parameters per pixel as one of width 256 has at 768 x 512, and tiles of 3 x 2 pixels at the finest level (A = 16).
Every variant trains all images side by side with Adam. With the first seed all try the same learning rates; the further
seeds run at each variant's best of these.

    python -m benchmarks.loe_study --root KODAK --out results/loe_study.csv
"""

import argparse
import functools
import itertools
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from benchmarks.common import append_row, environment, read_rows
from callbacks import SegmentationMaps
from datamodules import KodakDataModule
from models import LevelsOfExperts

MAP = "map"
#: name -> (arguments of the model, segmentation)
VARIANTS: dict[str, tuple[dict, str]] = {
    "siren": ({"experts": [None] * 4}, ""),
    "siren_wide": ({"experts": [None] * 4, "width": 64}, ""),
    "class_input": ({"experts": [None] * 4, "class_input": True}, "multi_otsu"),
    "quad_tree": ({"experts": [2, 4, 8, 16]}, ""),
    "fine_to_coarse": ({"experts": [16, 8, 4, 2]}, ""),
    "otsu_1": ({"experts": [MAP, 16, 4, 2]}, "multi_otsu"),
    "otsu_2": ({"experts": [16, MAP, 4, 2]}, "multi_otsu"),
    "otsu_3": ({"experts": [16, 8, MAP, 2]}, "multi_otsu"),
    "otsu_4": ({"experts": [16, 8, 4, MAP]}, "multi_otsu"),
    "equal_4": ({"experts": [16, 8, 4, MAP]}, "equal_bins"),
    "kmeans_4": ({"experts": [16, 8, 4, MAP]}, "kmeans"),
}


def fit(name: str, seed: int, lr: float, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row per image of one run."""
    arguments, method = VARIANTS[name]
    model = LevelsOfExperts(
        **{"width": args.width, **arguments}, seed=seed, optimizer=functools.partial(torch.optim.Adam, lr=lr)
    )
    data = KodakDataModule(
        root=str(args.root), images=args.images, scale=args.scale, steps_per_epoch=args.steps // args.evaluations
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=args.evaluations,
            accelerator=args.accelerator,
            precision=args.precision,
            callbacks=[SegmentationMaps(method)] if method else [],
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=data)
    last = model.history[-1][1]
    costs = model.map_costs() if model.segmentation_maps is not None else [{"context": 0.0}] * len(last)
    return [
        {
            "variant": name,
            "seed": seed,
            "lr": lr,
            "image": image,
            "psnr": round(last[i], 4),
            "best_psnr": round(float(model.progress["best_psnr"][i]), 4),
            "best_step": int(model.progress["best_step"][i]),
            "map_bits_per_pixel": round(costs[i]["context"], 4),
            "parameters": sum(p[0].numel() for p in model.network.parameters()),
            "width": arguments.get("width", args.width),
            "height_pixels": model.sizes[i][0],
            "width_pixels": model.sizes[i][1],
            "steps": args.steps,
            "precision": args.precision,
            **environment(),
        }
        for i, image in enumerate(model.names)
    ]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with the Kodak images")
    parser.add_argument("--images", default="kodim[01][358].png")
    parser.add_argument("--scale", type=float, default=0.125)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3, 3e-4])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; runs that it holds are not repeated")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    first, *further = args.seeds
    for lr, name in itertools.product(args.lrs, args.variants):
        run(name, first, lr, args)
    for seed, name in itertools.product(further, args.variants):
        run(name, seed, best_rate(args.out, name, first), args)


def run(name: str, seed: int, lr: float, args: argparse.Namespace) -> None:
    """Fits one variant and appends its rows, unless the file holds them."""
    if any((row["variant"], int(row["seed"]), float(row["lr"])) == (name, seed, lr) for row in read_rows(args.out)):
        return
    rows = fit(name, seed, lr, args)
    for row in rows:
        append_row(args.out, row)
    mean = sum(float(str(row["best_psnr"])) for row in rows) / len(rows)
    print(f"{name:>15} seed {seed} lr {lr:g}: {mean:.2f} dB", flush=True)


def best_rate(path: Path, name: str, seed: int) -> float:
    """The learning rate with the highest sum of the images' best PSNR in this seed's runs."""
    sums: dict[float, float] = {}
    for row in read_rows(path):
        if row["variant"] == name and int(row["seed"]) == seed:
            sums[float(row["lr"])] = sums.get(float(row["lr"]), 0.0) + float(row["best_psnr"])
    return max(sums, key=lambda rate: sums[rate])


if __name__ == "__main__":
    main()
