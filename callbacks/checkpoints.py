"""The two checkpoints that every run has: classes of their own, so that a user's ModelCheckpoint stands beside them."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from framework.distributed import say
from framework.protocols import HasDatasets

# At the end of the training epoch, after validation: such a checkpoint resumes exactly. Two of them, because
# `save_last` writes only when the best one is written.
COMMON: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}


class BestCheckpoint(ModelCheckpoint):
    """`checkpoints/best.ckpt`: where the monitored figure was best; without a validation, where `train/loss` was.

    Args:
        monitor: the figure.
        mode: whether it is to be small (`min`) or large (`max`).
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, **COMMON)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        super().on_train_start(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        split: Any = data.datasets.get("val", [0]) if isinstance(data, HasDatasets) else [0]
        nothing = not trainer.enable_validation or len(split) == 0
        if nothing and str(self.monitor).startswith("val/"):
            say(f"nothing is validated: best.ckpt is chosen by train/loss, not by {self.monitor}")
            self.monitor, self.mode, self.kth_value = "train/loss", "min", torch.tensor(torch.inf)


class LastCheckpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt`: the end of the last epoch."""

    def __init__(self) -> None:
        super().__init__(filename="last", **COMMON)
