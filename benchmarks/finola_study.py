"""What is a FINOLA latent worth? Small studies on real pictures, beside baselines with equally many floats.

    python -m benchmarks.finola_study reconstruction --data DATA --out results/finola_reconstruction.csv
    python -m benchmarks.finola_study masked --data DATA --out results/finola_masked.csv

DATA is the folder that holds `tiny_imagenet_20` and, for the pictures out of domain, `kodak`. Every learned method gets
the same encoder, decoder, number of steps and batches; only what stands between them differs.
"""

import argparse
import csv
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics.functional.image as measure
from torch import Tensor

from benchmarks.common import environment, read_rows
from datamodules.imagenet import ImageFolderDataModule
from framework.nn import Finola, Pca, dct_top, dct_zonal, linear_probe
from framework.schedules import WarmupCosine
from models.finola.autoencoder import parameter_groups, pixel_loss
from models.finola.masked import MaskedFinola
from models.finola.network import FinolaNetwork

EXPANSIONS: dict[str, dict[str, Any]] = {
    "finola": {},
    "finola, no normalisation": {"normalize": False},
    "repeat-q": {"expansion": "repeat"},
    "repeat-q + positions": {"expansion": "repeat_position"},
}


def pictures(root: Path, size: int, split: str, **options: Any) -> tuple[Tensor, Tensor]:
    """All pictures of a split, uint8 (N, 3, size, size), and their labels int64 (N,), zeros without classes."""
    data = ImageFolderDataModule(str(root), image_size=size, train_crop="center", flip=False, **options)
    dataset: Any = data.configure_dataset(split)  # type: ignore[arg-type]
    samples = [dataset[i] for i in range(len(dataset))]
    images = torch.stack([(255 * s["image"]).round().to(torch.uint8) for s in samples])
    return images, torch.stack([s.get("label", torch.tensor(0)) for s in samples])


def train(module: torch.nn.Module, images: Tensor, steps: int, batch: int, seed: int, loss: Any) -> float:
    """AdamW with warm-up and cosine, clipped gradients, mirrored at random; returns the seconds it took.

    The rate is 2e-3, and 64 / C of it for the matrices of every C alike.
    """
    channels = next((m.channels for m in module.modules() if isinstance(m, Finola)), 64)
    groups = parameter_groups(module, 2e-3 * 64 / channels)
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.05)
    schedule = WarmupCosine(optimizer, steps, warmup=max(1, steps // 20))
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    module.train()
    for step in range(steps):
        chosen = torch.from_numpy(rng.integers(len(images), size=batch))
        x = images[chosen].float() / 255
        x = x.flip(3) if rng.random() < 0.5 else x
        optimizer.zero_grad(set_to_none=True)
        loss(x, step).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def scores(target: Tensor, preds: Tensor) -> dict[str, float]:
    """Mean of the images' PSNR, PSNR of the mean squared error, SSIM; both (N, 3, H, W) float32 in [0, 1]."""
    mse = (target - preds).square().mean((1, 2, 3))
    return {
        "psnr": (-10 * mse.log10()).mean().item(),
        "psnr_pooled": (-10 * mse.mean().log10()).item(),
        "ssim": measure.structural_similarity_index_measure(preds, target, data_range=1.0).item(),  # type: ignore[union-attr]
    }


@torch.no_grad()
def reconstruct(network: FinolaNetwork, images: Tensor) -> Tensor:
    """The network's reconstructions in [0, 1] of uint8 images, in batches."""
    network.eval()
    return torch.cat([network(part.float() / 255).clamp(0, 1) for part in images.split(100)])


def reconstruction(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per method, latent size and seed: linear codes first, then the learned ones."""
    root = args.data / "tiny_imagenet_20"
    trained, _ = pictures(root, args.size, "train")
    held_out, _ = pictures(root, args.size, "val")
    tests = {"": held_out}
    if (args.data / "kodak").is_dir():
        tests["kodak_"] = pictures(args.data / "kodak", args.size, "val", val_fraction=1)[0]
    grid = [(c, 1) for c in args.channels] + [tuple(map(int, pair.split("x"))) for pair in args.multi]
    common = {"data": root.name, "size": args.size, "held_out": len(held_out)}

    def row(method: str, floats: int, decode: Any, **more: Any) -> dict[str, Any]:
        measured = {
            prefix + name: round(value, 3)
            for prefix, images in tests.items()
            for name, value in scores(images.float() / 255, decode(images)).items()
        }
        return {
            **common,
            "method": method,
            "C": "",
            "M": "",
            "floats": floats,
            "seed": "",
            "steps": "",
            **more,
            **measured,
        }

    held = {(r["method"], r["C"], r["M"], r["floats"], r["seed"]) for r in read_rows(args.out)}
    sizes = sorted({c * m for c, m in grid})
    pca = Pca(trained.numpy().astype(np.float32) / 255, sizes[-1])
    for floats in sizes:
        codes = {"DCT, zonal": dct_zonal, "DCT, top-N": dct_top, "PCA": pca.reconstruct}
        for method, code in codes.items():
            if (method, "", "", str(floats), "") in held:
                continue
            yield row(method, floats, lambda x, f=floats, c=code: torch.from_numpy(c(x.numpy() / 255, f)).float())
    for seed, (channels, paths), (method, options) in itertools.product(
        args.seeds, grid, [(name, EXPANSIONS[name]) for name in args.methods]
    ):
        if paths > 1 and method != "finola":
            continue  # repeat-q lays paths side by side: the same network as one path of C M
        if (method, str(channels), str(paths), str(channels * paths), str(seed)) in held:
            continue
        torch.manual_seed(seed)
        network = FinolaNetwork(
            channels,
            paths,
            args.size,
            args.map,
            encoder=args.encoder,
            encoder_width=32,
            encoder_depth=1,
            stride=8,
            pooling=args.pooling,
            decoder_width=args.decoder_width,
            **options,
        )
        seconds = train(
            network, trained, args.steps, args.batch, seed, lambda x, step, n=network: pixel_loss("mse", n(x), x)
        )
        yield row(
            method,
            channels * paths,
            lambda x, n=network: reconstruct(n, x),
            C=channels,
            M=paths,
            seed=seed,
            steps=args.steps,
            encoder=args.encoder,
            pooling=args.pooling,
            parameters=sum(p.numel() for p in network.parameters()),
            decoder_parameters=sum(p.numel() for p in network.decoder.parameters()),
            train_seconds=round(seconds, 1),
        )


@torch.no_grad()
def features(module: MaskedFinola, images: Tensor) -> Tensor:
    """What a probe sees of uint8 images: (N, D)."""
    module.eval()
    return torch.cat([module.features(part.float() / 255) for part in images.split(100)])


def masked(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per kind of pre-training and seed; `none` is the random encoder."""
    root = args.data / "tiny_imagenet_20"
    trained, labels = pictures(root, args.size, "train", images_per_class=args.per_class)
    held_out, held_out_labels = pictures(root, args.size, "val")
    held = {(r["pretraining"], r["seed"]) for r in read_rows(args.out)}
    for seed, mode in itertools.product(args.seeds, ("none", "element", "block")):
        if (mode, str(seed)) in held:
            continue
        torch.manual_seed(seed)
        module = MaskedFinola(
            "block" if mode == "block" else "element",
            image_size=args.size,
            stride=4,
            encoder=args.encoder,
            encoder_width=32,
            encoder_depth=2,
            decoder_width=args.decoder_width,
        )

        def loss(x: Tensor, step: int, module: MaskedFinola = module) -> Tensor:
            preds, mask = module.predict_all(x, module.corners(torch.arange(len(x)), step))
            chosen = mask[:, None].expand_as(x)
            return pixel_loss("mse", preds[chosen], x[chosen])

        steps = 0 if mode == "none" else args.steps
        seconds = train(module, trained, steps, args.batch, seed, loss) if steps else 0.0
        accuracy = linear_probe(features(module, trained), labels, features(module, held_out), held_out_labels)
        with torch.no_grad():
            x = held_out.float() / 255
            preds, mask = module.predict_all(x, module.corners(torch.arange(len(x)), 0))
            errors = ((preds.clamp(0, 1) - x).square() * mask[:, None]).sum((1, 2, 3)) / (3 * mask.sum((1, 2)))
        yield {
            "data": root.name,
            "size": args.size,
            "pretraining": mode,
            "seed": seed,
            "steps": steps,
            "encoder": args.encoder,
            "probe_images": len(trained),
            "features": module.encoder.out_channels,
            "probe_accuracy": round(accuracy, 4),
            "masked_psnr": round((-10 * errors.log10()).mean().item(), 3),
            "train_seconds": round(seconds, 1),
        }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["reconstruction", "masked"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="image side in pixels")
    parser.add_argument("--map", type=int, default=8, help="map side in cells (reconstruction)")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--multi", nargs="*", default=["32x4", "32x16", "128x4"], help="C x M with more than one path")
    parser.add_argument("--per-class", type=int, default=None, help="training pictures of a class (masked); all")
    parser.add_argument("--methods", nargs="+", choices=EXPANSIONS, default=list(EXPANSIONS))
    parser.add_argument("--encoder", default="cnn", help="any of model.encoder")
    parser.add_argument("--pooling", choices=["linear", "attentional"], default="linear")
    parser.add_argument("--decoder-width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, required=True, help="CSV file; runs that it holds are not repeated")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows: list[dict[str, Any]] = [*read_rows(args.out)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for row in {"reconstruction": reconstruction, "masked": masked}[args.study](args):
        rows.append({**row, **environment()})
        print(row, flush=True)
        # written after every row: a study that is cut short keeps what it has; new columns may come with any row
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for r in rows for key in r)))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
