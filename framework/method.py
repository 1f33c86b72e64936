"""BaseMethod, the LightningModule that people subclass.

Loss, metrics, logging, optimizers and hyper-parameters are written here once; a method says what is special about it by
overriding one of the small hooks.
"""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection

from framework.distributed import broadcast_buffers
from framework.errors import CheckpointError, DivergenceError
from framework.lifecycle import missing_contracts
from framework.resume import apply_changed_settings, describe
from framework.serialization import NotPlain, class_path, factory, is_class, to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Split = Literal["train", "val", "test"]
Batch = dict[str, Tensor]

# steps between two looks at the loss for values that are not finite, on an accelerator
LOSS_CHECK_EVERY = 50

# The plain form is a legal value of OptimizerCallable: jsonargparse and BaseMethod both turn it into a callable.
ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}})


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
        self._plateau_figure: float | None = None
        self._optimizer_settings: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds the contracts to a subclass's own callbacks, whether or not it calls `super().configure_callbacks()`."""
        super().__init_subclass__(**kwargs)
        if "configure_callbacks" in cls.__dict__:
            cls.configure_callbacks = _with_contracts(cls.configure_callbacks)  # type: ignore[method-assign]

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Lightning's hook: the callbacks that this method needs; those of `framework.lifecycle` are added to them."""
        return missing_contracts(self._trainer)

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

    def save_hyperparameters(
        self, *args: Any, ignore: Sequence[str] | str | None = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Lightning's, with every value in plain form, so that checkpoints load with `weights_only=True`.

        A value without a plain form (a module, an open file) is left out with a warning.
        """
        if frame is None:
            current = inspect.currentframe()
            frame = current.f_back if current is not None else None
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the class, how the optimizer was built, the figure a plateau scheduler still has to see.

        `pretrained` is stored as false: a class rebuilt from it would download weights only to overwrite them.
        """
        checkpoint["class_path"] = class_path(type(self))
        hparams = checkpoint.get("hyper_parameters", {})
        if "pretrained" in hparams:
            hparams["pretrained"] = False
        if self._optimizer_settings is not None:
            checkpoint["optimizer_settings"] = self._optimizer_settings
        for config in self.trainer.lr_scheduler_configs if self._trainer is not None else []:
            if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor in self.trainer.callback_metrics:
                checkpoint["plateau_figure"] = float(self.trainer.callback_metrics[config.monitor])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
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
        self._plateau_figure = checkpoint.get("plateau_figure")
        epoch = settle_epoch(checkpoint)
        if epoch is not None:
            rank_zero_info(f"The checkpoint was saved in the middle of epoch {epoch}: epoch {epoch} starts again.")
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            apply_changed_settings(checkpoint, self._build_optimizer, self.hparams)

    # ------------------------------------------------------------------ optimization

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

    def _build_optimizer(self, factors: Sequence[float] | None = None) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = self.optimizer_factory(self.parameter_groups())
        for group, factor in zip(optimizer.param_groups, factors or [], strict=False):
            group["lr"] *= factor
        return optimizer, None if self.lr_scheduler_factory is None else self.lr_scheduler_factory(optimizer)

    def on_train_start(self) -> None:
        """Catches up on the scheduler step that Lightning takes after an epoch's checkpoint is written."""
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if config.interval != "epoch" or not isinstance(scheduler, LRScheduler):
                continue
            due = self.current_epoch // config.frequency
            if isinstance(scheduler, ReduceLROnPlateau):
                if scheduler.last_epoch < due and self._plateau_figure is not None:
                    scheduler.step(self._plateau_figure)
                continue
            while scheduler.last_epoch < due:
                scheduler.step()

    # ------------------------------------------------------------------ steps, written once

    def setup(self, stage: str) -> None:
        """Builds the metrics of every split once; they move to the device with the module."""
        for split in ("train", "val", "test"):
            key = f"{split}_metrics"  # a ModuleDict has attributes of its own, `train` among them
            if key not in self.metrics:
                metrics = self.configure_metrics(cast(Split, split))
                if isinstance(metrics, MetricCollection):
                    self.metrics[f"{split}_collection"] = metrics
                    # Metrics are logged one by one. The items themselves: copies would count nothing.
                    metrics = dict(metrics.items(keep_base=False, copy_state=False))
                self.metrics[key] = nn.ModuleDict({"loss": MeanMetric(), **metrics})

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
        if split == "train":
            self._stop_if_not_finite(loss)
        size = self.batch_size(batch)
        metrics = cast(nn.ModuleDict, self.metrics[f"{split}_metrics"])
        with torch.no_grad():
            cast(MeanMetric, metrics["loss"]).update(loss.detach().float(), weight=size)
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

    def _stop_if_not_finite(self, loss: Tensor) -> None:
        # Reading the value waits for the device: every step on the CPU, now and then on an accelerator.
        trainer = self._trainer
        if trainer is None or (loss.is_cuda and self.global_step % LOSS_CHECK_EVERY):
            return
        if bool(torch.isfinite(loss.detach()).all()):
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or getattr(
            trainer.checkpoint_callback, "last_model_path", ""
        )
        kept = f"the last good checkpoint is {best}" if best else "no checkpoint had been written yet"
        raise DivergenceError(
            f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}); {kept}. "
            "Lower the learning rate, or look at the input for values that are not finite."
        )

    # ------------------------------------------------------------------ evaluation without collectives in a step

    def on_validation_epoch_start(self) -> None:
        """Makes buffers equal on all ranks once, and stops DDP from doing so in every forward pass."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            broadcast_buffers(self)
            self._ddp_broadcasts = self.trainer.model.broadcast_buffers
            # Ranks may hold different numbers of validation batches, and a collective in a step would hang them.
            self.trainer.model.broadcast_buffers = False

    def on_validation_epoch_end(self) -> None:
        """Gives DDP its setting back."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.broadcast_buffers = self._ddp_broadcasts


def _with_contracts(hook: Callable[..., Sequence[Callback] | Callback]) -> Callable[..., list[Callback]]:
    @functools.wraps(hook)
    def configure_callbacks(self: BaseMethod) -> list[Callback]:
        own = hook(self) or []
        own = list(own) if isinstance(own, Sequence) else [own]
        kinds = tuple(type(callback) for callback in own)
        return [*(c for c in missing_contracts(self._trainer) if not isinstance(c, kinds)), *own]

    return configure_callbacks


def settle_epoch(checkpoint: dict[str, Any]) -> int | None:
    """Edits a checkpoint's loop counters so that it stands exactly between two epochs.

    One saved after its epoch's last step (during validation, say) counts that epoch as done; one saved in the middle of
    an epoch starts that epoch again, because loaders are resumed by epoch, not by batch.

    Returns:
        the epoch that starts again, or None.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return None
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    started, finished = epochs["current"]["started"], epochs["current"]["processed"]
    if started == finished:
        return None
    is_over = batches["is_last_batch"] and batches["current"]["processed"] == batches["current"]["ready"]
    for counters in epochs.values():
        counters.update(dict.fromkeys(counters, started if is_over else finished))
    batches["is_last_batch"] = True
    return None if is_over else int(finished)
