"""BaseMethod, the LightningModule that people subclass.

Loss, metrics, logging, optimizers and hyper-parameters are written here once; a method says what is special about it by
overriding one of the small hooks.
"""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from framework import preprocessing
from framework.compat import attached_trainer, averaged_models
from framework.distributed import broadcast_tensors, say
from framework.errors import CheckpointError
from framework.lifecycle import LOSS_CHECK_EVERY, missing_contracts
from framework.metrics import SampleMean
from framework.resume import apply_changed_settings, describe, settle_epoch
from framework.serialization import NotPlain, class_path, factory, is_class, to_plain
from framework.trust import check_stored_arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Split = Literal["train", "val", "test"]
Batch = dict[str, Tensor]

__all__ = ["ADAM", "LOSS_CHECK_EVERY", "BaseMethod", "Batch", "Split", "settle_epoch"]

# The plain form is a legal value of OptimizerCallable: jsonargparse and BaseMethod both turn it into a callable.
ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}})


def _kept(contract: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a hook run the method `contract` first, once, whether or not an override calls `super()`."""

    def decorate(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def kept(self: "BaseMethod", *args: Any, **kwargs: Any) -> Any:
            running = self.__dict__.setdefault("_running", set())
            if contract in running:  # called by an override, which has run it
                return hook(self, *args, **kwargs)
            running.add(contract)
            try:
                getattr(self, contract)(*args, **kwargs)
                return hook(self, *args, **kwargs)
            finally:
                running.discard(contract)

        return kept

    return decorate


def _once(hook: Callable[..., None]) -> Callable[..., None]:
    """Makes `initialise` do nothing the second time, and nothing once weights have been restored."""

    @functools.wraps(hook)
    def once(self: "BaseMethod", *args: Any, **kwargs: Any) -> None:
        running = self.__dict__.setdefault("_running", set())
        if "initialise" in running:  # called by an override
            hook(self, *args, **kwargs)
        elif not self._initialised:
            running.add("initialise")
            try:
                hook(self, *args, **kwargs)
            finally:
                running.discard("initialise")
            self._initialised = True

    return once


class BaseMethod(LightningModule):
    """One method: a network with its loss, metrics, optimizer and figures.

    A subclass builds its network in `__init__` and overrides `step`; the other hooks have useful defaults.

    Args:
        optimizer: called with the result of `parameter_groups()`.
        lr_scheduler: called with the optimizer; None keeps the learning rates constant.
        lr_interval: the scheduler steps once per `epoch` or once per optimizer `step`.
    """

    #: the figure that says which checkpoint is best, and whether it is to be large (`max`) or small (`min`)
    monitor: str = "val/loss"
    monitor_mode: Literal["min", "max"] = "min"
    #: whether `initialise` belongs before an evaluation too: weights that come from elsewhere than training
    evaluates_untrained: bool = False
    #: arguments that a checkpoint's weights bring with them, so that nothing given with a checkpoint can change them
    decided_by_state: tuple[str, ...] = ()

    def __init__(
        self,
        optimizer: OptimizerCallable = ADAM,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer_factory = factory(optimizer, "optimizer")
        self.lr_scheduler_factory = None if lr_scheduler is None else factory(lr_scheduler, "lr_scheduler")
        self.lr_interval = lr_interval
        self.metrics = nn.ModuleDict()
        self._initialised = False
        self._optimizer_settings: dict[str, Any] | None = None
        self.preprocessing: dict[str, Any] | None = None  # `framework.preprocessing`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps the contracts in a subclass's hooks, whether or not they call `super()`."""
        super().__init_subclass__(**kwargs)
        for name, guard in _GUARDS.items():
            if name in cls.__dict__:
                setattr(cls, name, guard(cls.__dict__[name]))

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Lightning's hook: the callbacks that this method needs; those of `framework.lifecycle` are added to them."""
        return missing_contracts(self.attached_trainer)

    # ------------------------------------------------------------------ Trainer and data, where there are any

    @property
    def attached_trainer(self) -> Trainer | None:
        """The Trainer that the method is in, or None; `self.trainer` raises where there is none."""
        return attached_trainer(self)

    @property
    def data(self) -> LightningDataModule | None:
        """The Trainer's data module, or None; what it must be able to do says a Protocol of `framework.protocols`."""
        return getattr(self.attached_trainer, "datamodule", None)

    def adapt(self, data: LightningDataModule | None) -> None:
        """Fits the method's structure to the data, or refuses them: number of classes, one network per image, ...

        Called at the start of every verb, after the data module's `setup` and before everything else, whether or not a
        checkpoint is about to be restored.

        Args:
            data: the data module; None for a Trainer that was given loaders.
        """

    @_once
    def initialise(self, data: LightningDataModule | None) -> None:
        """Sets initial values that depend on the data, or that come from files.

        Called once in a method's life: before the first training's optimizer is built (with `evaluates_untrained`
        before an evaluation too), never after a checkpoint was restored. Afterwards parameters and buffers are made
        equal on all ranks.

        Args:
            data: the data module; None for a Trainer that was given loaders.
        """

    def meet_data(self) -> None:
        """Start of a verb, called by `framework.lifecycle`: structure, then metrics; nothing of earlier verbs left."""
        with torch.inference_mode(False):
            self.adapt(self.data)
            self._build_metrics()
            for metric in self.modules():
                if isinstance(metric, Metric):
                    metric.reset()  # counted under inference mode, it could not be counted in training

    def initialise_once(self, evaluating: bool = False) -> None:
        """`initialise` where it is due, called by `framework.lifecycle` and before the optimizer is built."""
        trainer = self.attached_trainer
        if trainer is None or self._initialised or (evaluating and not self.evaluates_untrained):
            return
        with torch.inference_mode(False):
            self.initialise(self.data)
            if isinstance(trainer.strategy, DDPStrategy):
                own = set(getattr(self, "_ddp_params_and_buffers_to_ignore", ()))
                named = [*self.named_parameters(), *self.named_buffers()]
                broadcast_tensors(tensor.detach() for name, tensor in named if name not in own)
            for average in averaged_models(trainer):  # copied before
                average.load_state_dict(self.state_dict())

    # ------------------------------------------------------------------ hooks of a method

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """One forward pass on a batch.

        Returns:
            a dict with `loss`, a scalar averaged over the batch's samples, and whatever `update_metrics` needs; for the
            default these are `preds` and `target`.
        """
        raise NotImplementedError(f"{type(self).__name__} must override step(batch, split)")

    def configure_metrics(self, split: Split) -> dict[str, Metric] | MetricCollection:
        """Fresh metrics of one split; logged as `split/name` and reset each epoch. The loss is added by itself.

        Metrics of a MetricCollection that are one compute group count once.
        """
        return {}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: dict[str, Tensor], batch: Batch) -> None:
        """Counts one batch: by default every metric gets `outputs["preds"]` and `outputs["target"]`.

        Args:
            metrics: what `configure_metrics` returned.
            outputs: what `step` returned.
            batch: what `step` got.
        """
        if isinstance(metrics, MetricCollection):
            metrics.update(outputs["preds"], outputs["target"])
            return
        for metric in metrics.values():
            metric.update(outputs["preds"], outputs["target"])

    def batch_size(self, batch: Batch) -> int:
        """Number of samples in a batch, the weight of its loss: by default the length of its first tensor."""
        return len(next(iter(batch.values())))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets; override it for several learning rates or decays."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def figures(self, batch: Batch) -> "dict[str, Figure]":
        """Figures by name, drawn from one evaluation batch at the end of fit and test."""
        return {}

    # ------------------------------------------------------------------ hyper-parameters and checkpoints

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Lightning's, for a file from anywhere: nothing that it names is called or imported (`framework.trust`).

        `weights_only` is true unless it is given. Arguments of the class that are given win over the file's.

        Raises:
            CheckpointError: no whole checkpoint, or one that names what it must not.
        """
        kwargs |= check_stored_arguments(checkpoint_path, cls, kwargs)
        if len(args) < 4 and kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def save_hyperparameters(
        self, *args: Any, ignore: Sequence[str] | str | None = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Lightning's, with every value in plain form, so that checkpoints load with `weights_only=True`.

        A value without a plain form (a module, an open file) is left out with a warning.
        """
        frame = frame or getattr(inspect.currentframe(), "f_back", None)
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        for name in list(self._hparams):
            try:
                self._hparams[name] = to_plain(self._hparams[name])
            except NotPlain as value:
                warnings.warn(
                    f"{type(self).__name__}: argument {name!r} ({value}) has no plain form and is not stored; "
                    f"pass {name}=... to load_from_checkpoint",
                    stacklevel=2,
                )
                del self._hparams[name]
        self._hparams_initial = copy.deepcopy(self._hparams)

    @_kept("_store")
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; the class and how the optimizer was built are stored by then."""

    def _store(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = class_path(type(self))
        preprocessing.keep(self, checkpoint)
        if "pretrained" in (hparams := checkpoint.get("hyper_parameters", {})):
            # a class rebuilt from it would download weights only to overwrite them
            hparams["pretrained"] = False
        if self._optimizer_settings is not None:
            checkpoint["optimizer_settings"] = self._optimizer_settings

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's; a method with restored weights is not initialised any more."""
        self._initialised = True
        return super().load_state_dict(*args, **kwargs)

    @_kept("_restore")
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; the checkpoint has been checked and put between two epochs by then."""

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another class's checkpoint; rewinds one from the middle of an epoch to that epoch's start.

        In fit, settings of optimizer and scheduler that differ from the checkpoint's replace them (`framework.resume`).

        Raises:
            CheckpointError: the checkpoint belongs to another class.
            ConfigError: a setting that the checkpoint's optimizer cannot take over.
        """
        stored = checkpoint.get("class_path")
        if stored is not None and not is_class(stored, type(self)):
            raise CheckpointError(
                f"ckpt_path: the checkpoint holds a {stored}, but the model is a {class_path(type(self))}; "
                "give the configuration of the first or a checkpoint of the second"
            )
        self._initialised = True
        preprocessing.restore(self, checkpoint)
        if (epoch := settle_epoch(checkpoint)) is not None:
            say(f"The checkpoint was saved in the middle of epoch {epoch}: epoch {epoch} starts again.")
        if (trainer := self.attached_trainer) is not None and trainer.state.fn == TrainerFn.FITTING:
            apply_changed_settings(checkpoint, self._build_optimizer, self.hparams)

    # ------------------------------------------------------------------ optimization

    @_kept("_before_optimizer")
    def configure_optimizers(self) -> Any:
        """One optimizer over `parameter_groups()`, and its scheduler."""
        optimizer, scheduler = self._build_optimizer()
        self._optimizer_settings = describe(optimizer, scheduler, self.hparams)
        if scheduler is None:
            return optimizer
        entry: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            entry["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": entry}

    def _before_optimizer(self) -> None:
        if (trainer := self.attached_trainer) is not None and trainer.state.fn == TrainerFn.FITTING:
            self.initialise_once()

    def _build_optimizer(self, factors: Sequence[float] | None = None) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = self.optimizer_factory(self.parameter_groups())
        for group, factor in zip(optimizer.param_groups, factors or [], strict=False):
            group["lr"] *= factor
        return optimizer, None if self.lr_scheduler_factory is None else self.lr_scheduler_factory(optimizer)

    # ------------------------------------------------------------------ steps, written once

    def _build_metrics(self) -> None:
        # once; they move to the device with the module
        for split in ("train", "val", "test"):
            key = f"{split}_metrics"  # a ModuleDict has attributes of its own, `train` among them
            if key not in self.metrics:
                metrics = self.configure_metrics(cast(Split, split))
                if isinstance(metrics, MetricCollection):
                    self.metrics[f"{split}_collection"] = metrics
                    # Metrics are logged one by one. The items themselves: copies would count nothing.
                    metrics = dict(metrics.items(keep_base=False, copy_state=False))
                self.metrics[key] = nn.ModuleDict({"loss": SampleMean(), **metrics})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Lightning's hook; logs `train/loss` and the train metrics per epoch, `train/loss_step` per step."""
        loss = self._shared_step(batch, "train")
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Lightning's hook; logs `val/...`."""
        self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Lightning's hook; logs `test/...`."""
        self._shared_step(batch, "test")

    def _shared_step(self, batch: Batch, split: Split) -> Tensor:
        outputs = self.step(batch, split)
        loss = outputs["loss"]
        size = self.batch_size(batch)
        metrics = cast(nn.ModuleDict, self.metrics[f"{split}_metrics"])
        with torch.no_grad():
            cast(SampleMean, metrics["loss"]).update(loss.detach().float(), size)
            counted: Any = {name: metric for name, metric in metrics.items() if name != "loss"}
            if (collection := f"{split}_collection") in self.metrics:
                counted = self.metrics[collection]
            self.update_metrics(counted, outputs, batch)
        for name, metric in metrics.items():
            on_bar = f"{split}/{name}" in (self.monitor, "train/loss")
            self.log(
                f"{split}/{name}", cast(Metric, metric), on_step=False, on_epoch=True, batch_size=size, prog_bar=on_bar
            )
        return loss


def _with_contracts(hook: Callable[..., Sequence[Callback] | Callback]) -> Callable[..., list[Callback]]:
    @functools.wraps(hook)
    def configure_callbacks(self: BaseMethod) -> list[Callback]:
        own = hook(self) or []
        own = list(own) if isinstance(own, Sequence) else [own]
        kinds = tuple(type(callback) for callback in own)
        return [*(c for c in missing_contracts(self.attached_trainer) if not isinstance(c, kinds)), *own]

    return configure_callbacks


#: what keeps a contract in a hook that a subclass overrides
_GUARDS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "configure_callbacks": _with_contracts,
    "initialise": _once,
    "on_save_checkpoint": _kept("_store"),
    "on_load_checkpoint": _kept("_restore"),
    "configure_optimizers": _kept("_before_optimizer"),
}
