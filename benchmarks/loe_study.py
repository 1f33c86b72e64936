"""Do the directions of the paper's tables 1 to 3 hold on real Kodak images at a size that two cores can carry?

Six Kodak images at 96 x 64 (Lanczos), networks of width 32 with three hidden sine layers, so that a SIREN has about as
many parameters per pixel as one of width 256 has at 768 x 512, and tiles of 3 x 2 pixels at the finest level (A = 16).
Every variant trains all images side by side, once per seed and learning rate, with Adam.

    python -m benchmarks.loe_study --root KODAK --out results/loe_study.csv
    python -m benchmarks.loe_study --table results/loe_study.csv      # the tables of docs/levels_of_experts.md
"""

import argparse
import functools
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import Trainer

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
#: (better, worse) of the paper's claims, then of the controls that it lacks
COMPARISONS = [
    ("fine_to_coarse", "siren"),
    ("otsu_4", "fine_to_coarse"),
    ("otsu_4", "equal_4"),
    ("otsu_4", "otsu_1"),
    ("quad_tree", "siren"),
    ("class_input", "siren"),
    ("otsu_4", "siren_wide"),
    ("fine_to_coarse", "siren_wide"),
]


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
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        for i, image in enumerate(model.names)
    ]


def markdown(path: Path) -> str:
    """The tables: every variant at its best learning rate, and paired differences between variants."""
    results = pd.read_csv(path)
    best_lr = results.groupby(["variant", "lr"])["best_psnr"].mean().groupby("variant").idxmax()
    chosen = pd.concat([results[(results.variant == v) & (results.lr == lr)] for v, lr in best_lr])
    first = results.iloc[0]
    lines = [
        f"{results.image.nunique()} images of {first.width_pixels} x {first.height_pixels} pixels (or upright), "
        f"{results.seed.nunique()} seeds, {first.steps} steps; each variant at the learning rate of its highest mean.",
        "",
        "| variant | parameters | lr | best PSNR: mean | lowest | highest | last PSNR: mean | map, bits per pixel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [v for v in VARIANTS if v in set(chosen.variant)]:
        rows = chosen[chosen.variant == name]
        lines.append(
            f"| {name} | {rows.parameters.iloc[0]} | {rows.lr.iloc[0]:g} | {rows.best_psnr.mean():.2f} | "
            f"{rows.best_psnr.min():.2f} | {rows.best_psnr.max():.2f} | {rows.psnr.mean():.2f} | "
            f"{rows.map_bits_per_pixel.mean():.3f} |"
        )
    lines += [
        "",
        "| difference | best PSNR: mean | std over image and seed | wins | last PSNR: mean |",
        "|---|---|---|---|---|",
    ]
    table = chosen.set_index(["image", "seed"])
    for a, b in COMPARISONS:
        if {a, b} <= set(chosen.variant):
            pairs = {k: table[table.variant == a][k] - table[table.variant == b][k] for k in ("best_psnr", "psnr")}
            best = pairs["best_psnr"]
            lines.append(
                f"| {a} - {b} | {best.mean():+.2f} | {best.std():.2f} | {(best > 0).sum()} of {len(best)} | "
                f"{pairs['psnr'].mean():+.2f} |"
            )
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with the Kodak images")
    parser.add_argument("--images", default="kodim[01][358].png")
    parser.add_argument("--scale", type=float, default=0.125)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, help="CSV file; runs that it holds are not repeated")
    parser.add_argument("--table", type=Path, help="print the tables of this CSV file instead")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.table:
        print(markdown(args.table))
        return
    rows = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
    done = {(row["variant"], row["seed"], row["lr"]) for row in rows}
    for lr in args.lrs:
        for seed in args.seeds:
            for name in args.variants:
                if (name, seed, lr) in done:
                    continue
                rows += fit(name, seed, lr, args)
                pd.DataFrame(rows).to_csv(args.out, index=False)
                mean = sum(float(r["best_psnr"]) for r in rows[-6:]) / 6  # type: ignore[arg-type]
                print(f"{name:>15} seed {seed} lr {lr:g}: {mean:.2f} dB", flush=True)


if __name__ == "__main__":
    main()
