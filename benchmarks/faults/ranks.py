"""A callback that says which process has which rank, and gives a signal time to arrive."""

import os
import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Ranks(Callback):
    """Writes `rank<N>.pid` in the working directory at the second step, and waits a little in every one."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Lightning's hook."""
        if trainer.global_step == 1:
            Path(f"rank{trainer.global_rank}.pid").write_text(str(os.getpid()))
        time.sleep(0.02)
