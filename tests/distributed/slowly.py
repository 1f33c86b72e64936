"""A callback that gives a test time to send signals, and says which process has which rank."""

import os
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from framework.errors import DataError


class Slowly(Callback):
    """Waits a little in every step; a file `fails`, `leaves` or `stops` in the working directory ends rank 1."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 3:
            Path(f"rank{trainer.global_rank}.pid").write_text(str(os.getpid()))
            if trainer.global_rank == 1 and Path("fails").exists():
                raise DataError("a picture is broken")
            if trainer.global_rank == 1 and Path("leaves").exists():
                raise SystemExit(int(Path("leaves").read_text()))
            if trainer.global_rank == 1 and Path("stops").exists():
                raise KeyboardInterrupt
        time.sleep(0.05)


class Stalls(Callback):
    """Rank 1 never comes back from its third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            time.sleep(1000)


class Spoils(Callback):
    """Rank 1 gets pictures that are not finite, at its third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            batch["image"].fill_(float("nan"))
