"""Contracts that hold in every run, as callbacks of Lightning's Trainer.

`BaseMethod` brings them with it, so that a plain `Trainer` has them too; the command line adds them for other modules.
Being callbacks, they hold whatever hooks a user's module overrides, with or without `super()`.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from framework import preprocessing
from framework.best import BestSoFar
from framework.checkpoints import WholeCheckpoints
from framework.compat import plain_schedulers
from framework.distributed import broadcast_buffers
from framework.errors import DivergenceError
from framework.protocols import MeetsData
from framework.signals import StopTogether
from framework.step_memory import StepMemory

# steps between two looks at the loss for values that are not finite, on an accelerator
LOSS_CHECK_EVERY = 50


class DataMeeting(Callback):
    """Lets a method fit itself to the data before any other callback or hook sees it, and initialise itself once.

    It stands before all other callbacks: averaging callbacks copy the module in their `setup`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The data module has been set up by now; a checkpoint has not been restored yet."""
        if isinstance(pl_module, preprocessing.Keeps):
            preprocessing.hand_on(pl_module)
        if isinstance(pl_module, MeetsData):
            pl_module.meet_data()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For methods whose weights come from elsewhere than training."""
        if isinstance(pl_module, MeetsData):
            pl_module.initialise_once(evaluating=True)

    on_test_start = on_predict_start = on_validation_start


class EpochFigures(Callback):
    """Computes an epoch's figures on all ranks at one place, before any other hook of the epoch's end.

    Lightning computes them when somebody first asks, and computing gathers over the ranks. Without this the progress
    bar, which exists on the first rank only, asks alone, while the others may be in a collective of a later hook: all
    of them then wait for ever.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the first place among the callbacks, the progress bars behind it.

        What callbacks log at the epoch's end is then computed after all of them, on every rank.
        """
        bars = [c for c in trainer.callbacks if isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
        first = [self, *bars]
        chosen = {id(callback) for callback in first}
        rest = [c for c in trainer.callbacks if id(c) not in chosen]  # type: ignore[attr-defined]
        # A new list: the old one is being walked through.
        trainer.callbacks = [*first, *rest]  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes; Lightning keeps the values."""
        _ = trainer.callback_metrics

    on_validation_epoch_end = on_train_epoch_end
    on_test_epoch_end = on_train_epoch_end


class FiniteLoss(Callback):
    """Stops training at a loss that is not finite, before it spoils the weights."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Looks at every step on the CPU, now and then on an accelerator, where reading a value waits for the device.

        Raises:
            DivergenceError: names the step and the last good checkpoint.
        """
        if loss.is_cuda and trainer.global_step % LOSS_CHECK_EVERY:
            return
        if bool(torch.isfinite(loss.detach()).all()):
            return
        raise DivergenceError(
            f"the loss is {loss.detach().sum().item()} at step {trainer.global_step} (epoch {trainer.current_epoch}); "
            f"{last_good_checkpoint(trainer)}; lower the learning rate, or look at the input for values that are not "
            "finite"
        )


class SchedulerCatchUp(Callback):
    """Takes the scheduler step that Lightning takes only after an epoch's checkpoint has been written."""

    def __init__(self) -> None:
        self._plateau_figure: float | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Stores the figure that a plateau scheduler still has to see."""
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor in trainer.callback_metrics:
                checkpoint["plateau_figure"] = float(trainer.callback_metrics[config.monitor])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Reads it again."""
        self._plateau_figure = checkpoint.get("plateau_figure")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catches up."""
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if config.interval != "epoch" or not isinstance(scheduler, LRScheduler):
                continue
            due = trainer.current_epoch // config.frequency
            if isinstance(scheduler, ReduceLROnPlateau):
                if scheduler.last_epoch < due and self._plateau_figure is not None:
                    scheduler.step(self._plateau_figure)
                continue
            for _ in range(_steps_behind(scheduler, due)):
                scheduler.step()


def _steps_behind(scheduler: LRScheduler, due: int) -> int:
    """A ChainedScheduler does not count its steps, those that it chains do."""
    counted = [getattr(one, "last_epoch", None) for one in (scheduler, *plain_schedulers(scheduler))]
    return due - next((steps for steps in counted if steps is not None), due)


class EqualBuffers(Callback):
    """Makes buffers equal on all ranks once per evaluation, and stops DDP from doing so in every forward pass.

    Ranks may hold different numbers of validation batches, and a collective in a step would hang them. It stands behind
    averaging callbacks, which put their own buffers in.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Broadcasts."""
        model = trainer.model
        if isinstance(model, DistributedDataParallel):
            broadcast_buffers(pl_module)
            self._before = model.broadcast_buffers
            model.broadcast_buffers = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives DDP its setting back."""
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.broadcast_buffers = self._before


class WholeFiles(Callback):
    """Checkpoints are written whole or not at all (`framework.checkpoints`), unless the user has a writer."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's writer."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()


FIRST = (DataMeeting, EpochFigures)
LAST = (FiniteLoss, SchedulerCatchUp, EqualBuffers, WholeFiles, BestSoFar, StepMemory, StopTogether)


def missing_contracts(trainer: Trainer | None) -> list[Callback]:
    """Those of this module's callbacks that the trainer does not have yet.

    Those that must come before all others are put at the head of the trainer's list and are not among them.
    """
    present = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]

    def missing(kinds: tuple[type[Callback], ...]) -> list[Callback]:
        return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in present)]

    if trainer is None:
        return missing(FIRST + LAST)
    trainer.callbacks = [*missing(FIRST), *present]  # type: ignore[attr-defined]
    return missing(LAST)


def last_good_checkpoint(trainer: Trainer) -> str:
    """What an error about lost weights says of the last good ones."""
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
    return f"the last good checkpoint is {best}" if best else "no checkpoint had been written yet"
