"""The two checkpoints that every run has: classes of their own, so that a user's ModelCheckpoint stands beside them."""

from collections.abc import Sized
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from framework.best import set_best
from framework.distributed import say
from framework.protocols import datasets_of

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
        self._asked: tuple[str, Literal["min", "max"]] = (monitor, mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the figure, before a checkpoint is restored: what it says of the best file is looked up by it."""
        if stage == "fit":
            split = datasets_of(getattr(trainer, "datamodule", None)).get("val")
            nothing = not trainer.enable_validation or (isinstance(split, Sized) and len(split) == 0)
            monitor, mode = self._asked
            if nothing and monitor.startswith("val/"):
                say(f"nothing is validated: best.ckpt is chosen by train/loss, not by {monitor}")
                monitor, mode = "train/loss", "min"
            if monitor != self.monitor:
                self.monitor, self.mode = monitor, mode
                set_best(self, None)
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt`: the end of the last epoch."""

    def __init__(self) -> None:
        super().__init__(filename="last", **COMMON)
