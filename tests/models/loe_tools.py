"""Small pictures and runs for the tests of Levels-of-Experts."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from skimage import io

from callbacks import SegmentationMaps
from datamodules import KodakDataModule
from models import LevelsOfExperts

EXPERTS = [4, 2, 1, "map"]


def write_pictures(folder: Path, names: list[str], size: tuple[int, int] = (16, 24)) -> Path:
    """Smooth coloured pictures; every second one is a portrait."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
        channels = [np.sin((3 + i) * x + c) * np.cos((2 + c) * y + i) for c in range(3)]
        rgb = np.rint(127.5 * (np.stack(channels, -1) + 1)).astype(np.uint8)
        io.imsave(folder / f"{name}.png", rgb if i % 2 == 0 else rgb.transpose(1, 0, 2), check_contrast=False)
    return folder


def make_model(lr: float = 1e-3, **arguments: Any) -> LevelsOfExperts:
    """A network of width 8 per picture."""
    optimizer = functools.partial(torch.optim.Adam, lr=lr)
    return LevelsOfExperts(**{"experts": EXPERTS, "width": 8, "optimizer": optimizer, **arguments})


def fit(
    model: LevelsOfExperts, folder: Path, images: str = "*.png", steps: int = 10, epochs: int = 2, **options: Any
) -> Trainer:
    """Fits the pictures of a folder, without files unless options say so."""
    ckpt_path, data = options.pop("ckpt_path", None), options.pop("data", {})
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [SegmentationMaps()],
        "default_root_dir": folder,
    }
    trainer = Trainer(max_epochs=epochs, **{**defaults, **options})
    module = KodakDataModule(root=str(folder), images=images, steps_per_epoch=steps, **data)
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path, weights_only=True)
    return trainer
