"""Ctrl-C leaves a checkpoint."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.distributed import agreed_run_folder, is_distributed, say
from framework.signals import Interrupted


class InterruptCheckpoint(Callback):
    """Saves `checkpoints/interrupted.ckpt` on Ctrl-C or SIGTERM, and says how to go on.

    Not on other exceptions: the weights that made a NaN are not worth keeping.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning's hook."""
        if (
            not isinstance(exception, KeyboardInterrupt | SIGTERMException)
            or not trainer.fit_loop.epoch_progress.total.ready
        ):
            return
        if trainer.state.fn != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        if not isinstance(exception, Interrupted | SIGTERMException) and is_distributed():
            return  # raised here alone: saving would wait for the others, who do not come
        path = agreed_run_folder(trainer) / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        say(f"interrupted; go on with the same command and --ckpt_path {path}")
