"""Every method at its smallest, with data it can train on in a fraction of a second."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules import KodakDataModule
from framework.data import BaseDataModule
from framework.method import BaseMethod
from models import (
    FinolaAutoencoder,
    KMUNet,
    KOriginsSegmentation,
    LevelsOfExperts,
    MaskedFinola,
    MasterKeyClassifier,
)
from tests.models.loe_tools import write_pictures

FINOLA: dict[str, Any] = {"channels": 8, "image_size": 16, "encoder_width": 4, "encoder_depth": 1, "stride": 4,
                          "decoder_width": 8}  # fmt: skip
ATTO: dict[str, Any] = {"model": "convnextv2_atto", "num_classes": 4,
                        "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}}  # fmt: skip
BUILD: dict[str, Any] = {
    "korigins": lambda: KOriginsSegmentation(width=2, class_mean=[0.2, 0.8], class_std=[0.1, 0.1], batch_norm=True),
    "kmunet": lambda: KMUNet(width=2, stages=1),
    "master_key": lambda: MasterKeyClassifier(**ATTO, filters="B"),
    "master_key_scale": lambda: MasterKeyClassifier(**ATTO, filters="learned-scale"),
    "finola": lambda: FinolaAutoencoder(**FINOLA, map_size=8),
    "masked_finola": lambda: MaskedFinola(**FINOLA),
    "levels_of_experts": lambda: LevelsOfExperts(experts=[4, 2, 1, None], width=8),
}


class Noise(Dataset):
    """Random pictures with maps and labels; sample i is a function of i."""

    def __init__(self, channels: int, side: int, length: int = 8) -> None:
        self.channels, self.side, self.length = channels, side, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(int(index))
        image = torch.rand(self.channels, self.side, self.side, generator=generator)
        sample = {"image": image, "mask": (image[0] > 0.5).long(), "label": torch.tensor(int(index) % 4)}
        return {**sample, "index": torch.tensor(int(index))}


class NoiseData(BaseDataModule):
    """8 training and 4 other pictures."""

    def __init__(self, channels: int, side: int, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 4, **kwargs})
        self.channels, self.side = channels, side

    def configure_dataset(self, split: str) -> Dataset:
        return Noise(self.channels, self.side, 8 if split == "train" else 4)


def method_and_data(name: str, folder: Path) -> tuple[BaseMethod, BaseDataModule]:
    """One method and a data module of its own."""
    torch.manual_seed(0)
    if name == "levels_of_experts":
        pictures = write_pictures(folder / "pictures", ["a", "b"])
        return BUILD[name](), KodakDataModule(root=str(pictures), images="*.png", steps_per_epoch=2)
    channels, side = {"korigins": (1, 16), "kmunet": (1, 16)}.get(name, (3, 32 if "master" in name else 16))
    return BUILD[name](), NoiseData(channels, side)
