"""What callbacks ask before they act: is the fit a new one, are the layers there, is a number whole."""

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from framework.nn import spline_layers


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


class ChangesSplines(Callback, ABC):
    """A callback that changes spline layers in a fit: begins anew with every one, and looks at the layers before it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the layers and checks that they can be changed.

        Raises:
            ConfigError: there is none, or one that cannot.
        """
        if begins_anew(trainer, stage):
            self._begin()
        if stage == "fit" and (spline_layers(pl_module) or not builds_late(pl_module)):
            self._check(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks again at a module that makes layers after the callbacks' `setup`."""
        if builds_late(pl_module):
            self._check(pl_module)

    @abstractmethod
    def _begin(self) -> None:
        """Forgets what an earlier fit has left."""

    @abstractmethod
    def _check(self, pl_module: LightningModule) -> None:
        """Raises ConfigError for a module without spline layers, or with one that cannot be changed."""
