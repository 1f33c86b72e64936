"""BaseMethod, the LightningModule that people subclass.

Loss, metrics, logging, optimizers and hyper-parameters are written here once; a method says what is special about it by
overriding one of the small hooks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from framework.batches import as_outputs, count_samples
from framework.compat import averaged_models, left_to_ranks
from framework.distributed import broadcast_tensors
from framework.errors import ConfigError, few
from framework.guards import kept, once
from framework.lifecycle import LOSS_CHECK_EVERY, missing_contracts
from framework.metrics import SampleMean
from framework.resume import settle_epoch
from framework.serialization import factory
from framework.stored import StoredModule
from framework.transfer import take_over

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Split = Literal["train", "val", "test"]
Memory = Literal["auto", "fast", "lean"]
Batch = dict[str, Tensor]

__all__ = ["ADAM", "LOSS_CHECK_EVERY", "BaseMethod", "Batch", "Split", "settle_epoch"]

# The plain form is a legal value of OptimizerCallable: jsonargparse and BaseMethod both turn it into a callable.
ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}})


class BaseMethod(StoredModule):
    """One method: a network with its loss, metrics, optimizer and figures.

    A subclass builds its network in `__init__` and overrides `step`; the other hooks have useful defaults.

    Args:
        optimizer: called with the result of `parameter_groups()`.
        lr_scheduler: called with the optimizer; None keeps the learning rates constant.
        lr_interval: the scheduler steps once per `epoch` or once per optimizer `step`.
        memory: `fast` keeps what the backward pass needs, `lean` makes part of it again (`save_memory`), `auto` is
            `lean` where an accelerator has not the memory for `fast`; looked at before the first step.

    Raises:
        ConfigError: another `memory`.
    """

    #: the figure that says which checkpoint is best, and whether it is to be large (`max`) or small (`min`)
    monitor: str = "val/loss"
    monitor_mode: Literal["min", "max"] = "min"
    #: whether `initialise` belongs before an evaluation too: weights that come from elsewhere than training
    evaluates_untrained: bool = False
    #: arguments that a checkpoint's weights bring with them, so that nothing given with a checkpoint can change them
    decided_by_state: tuple[str, ...] = ()
    #: a checkpoint of which whatever fits is taken over when training begins anew (`framework.transfer`)
    initial_weights: str | None = None
    #: beginnings of the names of what is never taken over: it belongs to the data
    not_taken_over: tuple[str, ...] = ("metrics.",)
    #: False for a method that looks after the memory of its steps itself (`framework.step_memory`)
    plans_memory: bool = True

    def __init__(
        self,
        optimizer: OptimizerCallable = ADAM,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        memory: Memory = "auto",
    ) -> None:
        super().__init__()
        if memory not in get_args(Memory):
            raise ConfigError(f"model.memory: expected one of {', '.join(get_args(Memory))}, got {memory!r}")
        self.save_hyperparameters()
        self.optimizer_factory = factory(optimizer, "optimizer")
        self.lr_scheduler_factory = None if lr_scheduler is None else factory(lr_scheduler, "lr_scheduler")
        self.lr_interval, self.memory = lr_interval, memory
        self.metrics = nn.ModuleDict()
        self._initialised = False
        self._optimizer_settings: dict[str, Any] | None = None
        self.preprocessing: dict[str, Any] | None = None  # `framework.preprocessing`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps the contracts in a subclass's hooks, whether or not they call `super()`."""
        super().__init_subclass__(**kwargs)
        if callable(cls.__dict__.get("batch_size")):
            raise ConfigError(
                f"{cls.__name__}.batch_size: Lightning's BatchSizeFinder sets an attribute of that name; call the hook "
                "samples_in(batch)"
            )
        for name, guard in _GUARDS.items():
            if name in cls.__dict__:
                setattr(cls, name, guard(cls.__dict__[name]))

    def __setattr__(self, name: str, value: Any) -> None:
        """Torch's; a name under which the base class keeps something else is refused, and said."""
        fixed = getattr(BaseMethod, name, None)
        taken = isinstance(fixed, property) and fixed.fset is None and getattr(type(self), name) is fixed
        if taken or (name == "metrics" and (type(value) is not nn.ModuleDict or name in self.__dict__["_modules"])):
            advice = "return them from configure_metrics(split)" if name == "metrics" else "call it otherwise"
            raise ConfigError(
                f"{type(self).__name__}.{name}: expected a name that BaseMethod does not keep something of its own "
                f"under, got a {type(value).__name__}; {advice}"
            )
        super().__setattr__(name, value)

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Lightning's hook: the callbacks that this method needs; those of `framework.lifecycle` are added to them."""
        return missing_contracts(self.attached_trainer)

    # ------------------------------------------------------------------ Trainer and data, where there are any

    def adapt(self, data: LightningDataModule | None) -> None:
        """Fits the method's structure to the data, or refuses them: number of classes, one network per image, ...

        Called at the start of every verb, after the data module's `setup` and before everything else, whether or not a
        checkpoint is about to be restored.

        Args:
            data: the data module; None for a Trainer that was given loaders.
        """

    @once
    def initialise(self, data: LightningDataModule | None) -> None:
        """Sets initial values that depend on the data, or that come from files.

        Called once in a method's life: before the first training's optimizer is built (with `evaluates_untrained`
        before an evaluation too), never after a checkpoint was restored. Afterwards parameters and buffers are made
        equal on all ranks.

        Args:
            data: the data module; None for a Trainer that was given loaders.
        """

    def translate_weights(self, stored: dict[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weights of another structure under the names and in the form of this one, for `initial_weights`.

        Args:
            stored: the checkpoint's state dict.
            arguments: its hyper-parameters.
        """
        return stored

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
        if trainer is None or (evaluating and not self.evaluates_untrained):
            return
        begins, self._begins_anew = self._begins_anew and not evaluating, self._begins_anew and evaluating
        takes_over = begins and self.initial_weights is not None
        if self._initialised and not takes_over:
            return
        with torch.inference_mode(False):
            self.initialise(self.data)
            if takes_over:
                take_over(self, cast(str, self.initial_weights))
            if isinstance(trainer.strategy, DDPStrategy):
                own = left_to_ranks(self)
                named = [*self.named_parameters(), *self.named_buffers()]
                broadcast_tensors(tensor.detach() for name, tensor in named if name not in own)
            for average in averaged_models(trainer):  # copied before
                average.load_state_dict(self.state_dict())

    # ------------------------------------------------------------------ hooks of a method

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """One forward pass on a batch.

        Returns:
            a dict with `loss`, a scalar averaged over the batch's samples, and whatever `update_metrics` needs; for the
            default these are `preds` and `target`. A method without metrics may return the loss alone.
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
        if metrics and (missing := [key for key in ("preds", "target") if key not in outputs]):
            raise ConfigError(
                f"{type(self).__name__}.step: expected {missing[0]} too, which the metrics count, got "
                f"{few(list(outputs))}; return it, or override update_metrics"
            )
        if isinstance(metrics, MetricCollection):
            metrics.update(outputs["preds"], outputs["target"])
            return
        for metric in metrics.values():
            metric.update(outputs["preds"], outputs["target"])

    def samples_in(self, batch: Batch) -> int:
        """Number of samples in a batch, the weight of its loss: by default the length of its first tensor.

        Raises:
            ConfigError: the batch is no dict of tensors.
        """
        return count_samples(batch, type(self).__name__)

    def save_memory(self) -> str | None:
        """Makes a training step take less memory for more work, where the method knows how.

        Returns:
            what was changed, in a few words; None: there is nothing to give up.
        """
        return None

    def figures(self, batch: Batch) -> "dict[str, Figure]":
        """Figures by name, drawn from one evaluation batch at the end of fit and test."""
        return {}

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
        outputs = as_outputs(self.step(batch, split), type(self).__name__)
        loss = outputs["loss"]
        size = self.samples_in(batch)
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
    "initialise": once,
    "on_save_checkpoint": kept("_store"),
    "on_load_checkpoint": kept("_restore"),
    "configure_optimizers": kept("_before_optimizer"),
}
