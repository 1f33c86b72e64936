"""What callbacks ask before they act: is the fit a new one, are the layers there, is a number whole."""

from numbers import Integral
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def begins_anew(trainer: Trainer, stage: str) -> bool:
    """Whether a callback's `setup` stands before a fit of which nothing has been trained yet.

    What the instance has kept of another fit is of no use then. A checkpoint's state is loaded after `setup`; a Trainer
    that goes on (`fit` again with more epochs) has no state to load and keeps what there is.
    """
    return stage == "fit" and trainer.current_epoch == 0 and trainer.global_step == 0


def builds_late(module: LightningModule) -> bool:
    """Whether the module may still make layers after a callback's `setup`: in `configure_model` or its own `setup`.

    Lightning's hooks make none, and our methods make theirs in `__init__`.
    """
    hooks = (type(module).setup, type(module).configure_model)
    return any(hook.__module__.partition(".")[0] not in ("lightning", "framework", "models") for hook in hooks)


def is_whole(value: Any, least: int) -> bool:
    """Whether an argument is a whole number, `least` or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
