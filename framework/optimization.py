"""The part of BaseMethod that trains: one optimizer over its parameter groups, and its schedule."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from framework.compat import attached_trainer, plain_schedulers
from framework.errors import ConfigError
from framework.guards import kept
from framework.resume import describe


class OptimizedModule(LightningModule):
    """A module whose optimizer and scheduler are built by callables; see BaseMethod, which sets all attributes."""

    monitor: str
    monitor_mode: Literal["min", "max"]
    optimizer_factory: Callable[..., Optimizer]
    lr_scheduler_factory: Callable[..., LRScheduler] | None
    lr_interval: Literal["epoch", "step"]
    _optimizer_settings: dict[str, Any] | None

    @property
    def attached_trainer(self) -> Trainer | None:
        """The Trainer that the method is in, or None; `self.trainer` raises where there is none."""
        return attached_trainer(self)

    @property
    def data(self) -> LightningDataModule | None:
        """The Trainer's data module, or None; what it must be able to do says a Protocol of `framework.protocols`."""
        return getattr(self.attached_trainer, "datamodule", None)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets; override it for several learning rates or decays."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    @kept("_before_optimizer")
    def configure_optimizers(self) -> Any:
        """One optimizer over `parameter_groups()`, and its scheduler."""
        optimizer, scheduler = self._build_optimizer()
        self._optimizer_settings = describe(optimizer, scheduler, self.hparams)
        if scheduler is None:
            return optimizer
        entry: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            entry |= self._watch(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": entry}

    def _watch(self, scheduler: ReduceLROnPlateau) -> dict[str, Any]:
        """What a plateau scheduler looks at, and how often: it waits for a figure, and sees each one once."""
        monitor = getattr(scheduler, "monitor", None)
        if monitor is None:  # torch's own, which does not say
            monitor = self.monitor if scheduler.mode == self.monitor_mode else "val/loss"
            if scheduler.mode == "max" and monitor == "val/loss":
                raise ConfigError(
                    f"model.lr_scheduler: ReduceLROnPlateau with mode max, but {self.monitor} is to be small; give "
                    "lightning.pytorch.cli.ReduceLROnPlateau with its monitor"
                )
        trainer = self.attached_trainer
        if monitor.startswith("train/") or trainer is None:
            return {"monitor": monitor}
        if trainer.limit_val_batches == 0:
            raise ConfigError(
                f"model.lr_scheduler: ReduceLROnPlateau watches {monitor}, but nothing is validated; watch train/loss, "
                "or give trainer.limit_val_batches"
            )
        every = trainer.check_val_every_n_epoch
        return {"monitor": monitor, "frequency": every or 1, "strict": every is not None}

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, under the name that Lightning's LearningRateFinder looks for.

        Raises:
            ConfigError: the method has several, which the finder would make one.
        """
        if "_found_rate" in self.__dict__:
            return self.__dict__["_found_rate"]
        groups = self.parameter_groups()
        apart = [g.get("name", i) for i, g in enumerate(groups) if "lr" in g or g.get("lr_scale", 1.0) != 1.0]
        if apart:
            raise ConfigError(
                f"LearningRateFinder: {type(self).__name__} trains parameter groups {apart} at learning rates of their "
                "own, and the finder knows one rate only\nleave it out (Tuner.lr_find, or trainer.callbacks), and give "
                "the rates: model.optimizer's, and the method's own such as model.origin_lr"
            )
        return float(self.optimizer_factory(groups).param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        """What the finder found: it writes the rate into the optimizer, and schedules start from it."""
        self.__dict__["_found_rate"] = value
        for config in self.attached_trainer.lr_scheduler_configs if self.attached_trainer is not None else []:
            for scheduler in plain_schedulers(config.scheduler):
                if hasattr(scheduler, "base_lrs"):
                    scheduler.base_lrs = [value] * len(scheduler.base_lrs)
                    for group in scheduler.optimizer.param_groups:
                        group["initial_lr"] = value

    def _before_optimizer(self) -> None:
        if (trainer := self.attached_trainer) is not None and trainer.state.fn == TrainerFn.FITTING:
            self.initialise_once()

    def _build_optimizer(self, factors: Sequence[float] | None = None) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = self.optimizer_factory(self.parameter_groups())
        for group, factor in zip(optimizer.param_groups, factors or [], strict=False):
            group["lr"] *= factor
        return optimizer, None if self.lr_scheduler_factory is None else self.lr_scheduler_factory(optimizer)

    def initialise_once(self, evaluating: bool = False) -> None:
        """See BaseMethod."""
        raise NotImplementedError
