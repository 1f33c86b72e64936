"""Contracts that hold in every run, as callbacks of Lightning's Trainer.

`BaseMethod` brings them with it, so that a plain `Trainer` has them too; the command line adds them for other modules.
"""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar


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


def missing_contracts(trainer: Trainer | None) -> list[Callback]:
    """Those of this module's callbacks that the trainer does not have yet."""
    present = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    return [kind() for kind in (EpochFigures,) if not any(isinstance(callback, kind) for callback in present)]
