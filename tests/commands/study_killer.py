"""A callback that kills the study and its cell with -9 in the middle of a fit, once."""

import os
import signal
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class KillOnce(Callback):
    """At the start of an epoch of the second cell, unless the file `killed` is there."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = Path("out.csv")
        if trainer.current_epoch == 2 and rows.is_file() and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
