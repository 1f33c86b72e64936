"""The smallest method, data module and Trainer that have everything a run has."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import Dataset

from framework.data import BaseDataModule
from framework.method import BaseMethod


class Points(Dataset):
    """A line: `length` samples."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([float(index) / 10])
        return {"image": x, "label": 3 * x + 1, "index": torch.tensor(int(index))}


class PointsData(BaseDataModule):
    """10 training points, 3 of every other split."""

    def configure_dataset(self, split: str) -> Dataset:
        return Points(10 if split == "train" else 3)


class Line(BaseMethod):
    """A linear layer behind batch normalisation, whose scale begins at the data's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = torch.nn.BatchNorm1d(1)
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(()))

    def initialise(self, data: Any) -> None:
        self.seen += len(data.datasets["train"]) if data is not None else 1

    def step(self, batch, split):
        prediction = self.layer(self.norm(batch["image"]))
        return {"loss": torch.nn.functional.mse_loss(prediction, batch["label"])}

    def update_metrics(self, metrics, outputs, batch) -> None:
        pass


def quiet(folder: Path, **kwargs: Any) -> Trainer:
    """A plain Trainer without bar, logger and summary."""
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**defaults, "default_root_dir": folder, **kwargs})
