"""Rows of the reconstruction table for which nothing is trained: DCT and PCA (study `finola/linear_codes`)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchmetrics.functional.image as measure
from torch import Tensor

from datamodules import ImageFolderDataModule
from framework.nn import Pca, dct_top, dct_zonal


def pictures(root: Path, size: int, split: str, val_fraction: float | None = None) -> np.ndarray:
    """All pictures of a split, float32 (N, 3, size, size) in [0, 1], as the data module's evaluation gives them."""
    data = ImageFolderDataModule(str(root), size, train_crop="center", flip=False, val_fraction=val_fraction)
    dataset = data.configure_dataset(split)  # type: ignore[arg-type]
    return torch.stack([dataset[i]["image"] for i in range(len(dataset))]).numpy()  # type: ignore[arg-type]


def scores(target: Tensor, preds: Tensor) -> dict[str, float]:
    """Mean of the images' PSNR, PSNR of the mean squared error, SSIM; both (N, 3, H, W) float32 in [0, 1]."""
    mse = (target - preds).square().mean((1, 2, 3))
    ssim = measure.structural_similarity_index_measure(preds, target, data_range=1.0)
    return {
        "psnr": float((-10 * mse.log10()).mean()),
        "psnr_pooled": float(-10 * mse.mean().log10()),
        "ssim": float(ssim),  # type: ignore[arg-type]
    }


def rows(floats: int, root: str, kodak: str, size: int) -> Iterator[dict[str, object]]:
    """One row per code with `floats` numbers a picture, on the held-out part of `root` and on the pictures of `kodak`.

    Args:
        floats: numbers that a picture becomes.
        root: a folder with `train` and `val`; PCA is fitted to the first.
        kodak: a flat folder of pictures.
        size: side of the pictures in pixels.
    """
    pca = Pca(pictures(Path(root), size, "train"), floats)
    codes: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "DCT, zonal": dct_zonal,
        "DCT, top-N": dct_top,
        "PCA": pca.reconstruct,
    }
    tests = {"": pictures(Path(root), size, "val"), "kodak_": pictures(Path(kodak), size, "val", val_fraction=1.0)}
    for method, code in codes.items():
        measured = {
            prefix + name: f"{value:.6g}"
            for prefix, images in tests.items()
            for name, value in scores(torch.from_numpy(images), torch.from_numpy(code(images, floats)).float()).items()
        }
        yield {"method": method, **measured}
