"""Whatever leans on the insides of another library, each with the version that it was read from.

A test (`tests/test_compat.py`) fails when one of these changes.
"""

import functools
import inspect
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer a module is in, or None; `LightningModule.trainer` raises instead (lightning 2.6.6)."""
    return module.__dict__.get("_trainer")  # not an attribute before `__init__` has run


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Copies of the model that Lightning's averaging callbacks (EMA, SWA) keep, with the model's own names inside.

    `_average_model` of WeightAveraging and StochasticWeightAveraging (lightning 2.6.6).
    """
    for callback in getattr(trainer, "callbacks", []):
        copy = getattr(callback, "_average_model", None)
        if isinstance(copy, AveragedModel):  # EMA wraps its copy, SWA does not
            copy = copy.module
        if isinstance(copy, nn.Module):
            yield copy


def figures_of_this_loop(trainer: Trainer) -> dict[str, Any]:
    """What the running loop (training or validation) has logged; `callback_metrics` mixes all (lightning 2.6.6)."""
    return dict(trainer._logger_connector.metrics["callback"])


def handed_over(trainer: Trainer, batch: Any) -> Any:
    """A loader's batch as a step gets it: precision, the hooks of the transfer, the device (lightning 2.6.6)."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def plain_schedulers(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """The schedulers that a ChainedScheduler or SequentialLR is made of, else the one itself (torch 2.15)."""
    inner = getattr(scheduler, "_schedulers", None)
    for one in inner or ():
        yield from plain_schedulers(one)
    if not inner:
        yield scheduler


def micro_batch(trainer: Trainer | None) -> int:
    """Which of the batches that one step of the optimizer gathers is running, from 0 (lightning 2.6.6)."""
    return 0 if trainer is None else trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches


def loss_factor(trainer: Trainer | None) -> float | Tensor:
    """By what a training loss is multiplied before its backward pass: a gradient scaler's scale over the batches of a
    step; a tensor, for reading the scale would wait for the device (`_get_scale_async`, torch 2.15, lightning 2.6.6).
    """
    if trainer is None:
        return 1.0
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = None if scaler is None else scaler._get_scale_async()
    return (1.0 if scale is None else scale) / trainer.accumulate_grad_batches


def default_store() -> Any:
    """The key-value store that the ranks have met in (torch 2.15)."""
    return _get_default_store()


def lightning_requeue(trainer: Trainer) -> tuple[Callable[[int, Any], Any] | None, int]:
    """Lightning's handler that saves and queues a SLURM job again, and its signal; (None, 0) elsewhere.

    It saves in the middle of whatever runs, so it is called between two steps instead (lightning 2.6.6).
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None, 0
    return trainer._signal_connector._slurm_sigusr_handler_fn, int(environment.requeue_signal or signal.SIGUSR1)


def is_forked_rank(trainer: Trainer) -> bool:
    """Whether this process is one that `ddp_fork` or `ddp_spawn` made (lightning 2.6.6)."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def forked_processes(trainer: Trainer) -> list[int]:
    """Ids of the living ranks that this process has forked (lightning 2.6.6)."""
    processes = getattr(trainer.strategy.launcher, "procs", [])
    return [process.pid for process in processes if process.is_alive()]


def release_children() -> None:
    """Keeps Lightning's launcher from killing this process when the others have ended (lightning 2.6.6).

    A thread of its looks every five seconds for a child with a status other than 0, which is how all of them end here.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]


def leave_to_ranks(module: nn.Module, names: Sequence[str]) -> None:
    """Keeps DDP from averaging these parameters and from making them equal (torch 2.15)."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def left_to_ranks(module: nn.Module) -> set[str]:
    """The names that `leave_to_ranks` was given."""
    return set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))


def class_of_partial(partial: functools.partial) -> type | None:
    """The class behind a callable of a configuration: partial(wrapper, instantiator, class, **init_args).

    None for a plain partial, which has no class among its arguments (jsonargparse 4.53).
    """
    return next((a for a in reversed(partial.args) if inspect.isclass(a)), None)


def parser_keys(parser: LightningArgumentParser) -> list[str]:
    """Every key of a parser, "trainer.max_epochs" and the like (jsonargparse 4.53)."""
    return [action.dest for action in parser._actions if action.dest and action.dest != "help"]


def is_parsing_error(error: BaseException) -> bool:
    """Whether jsonargparse raises this for values that fit no class of a union (jsonargparse 4.53)."""
    return "Union subtypes" in str(error)


class HookedCLI(LightningCLI):
    """LightningCLI with names of our own for the private hooks that it is changed by (lightning 2.6.6)."""

    def take_checkpoint(self) -> None:
        """After parsing, before anything is built; in place of what LightningCLI does with `ckpt_path`."""

    def build_trainer(self, arguments: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """The Trainer, from its parsed arguments and the callbacks that have a section of their own."""
        return super()._instantiate_trainer(arguments, callbacks)

    def verb_arguments(self, verb: str) -> dict[str, Any]:
        """What `trainer.fit` (validate, test, predict) is called with."""
        return super()._prepare_subcommand_kwargs(verb)

    def run_verb(self, verb: str) -> None:
        """Calls `trainer.fit` (validate, test, predict)."""
        super()._run_subcommand(verb)

    def chosen(self, key: str) -> Any:
        """The parsed value of a key of the running verb."""
        return self._get(self.config, key)

    def keys_of(self, verb: str) -> list[str]:
        """All keys of a verb; none for a verb that there is not."""
        return parser_keys(self._subcommand_parsers[verb]) if verb in self._subcommand_parsers else []

    def _parse_ckpt_path(self) -> None:
        self.take_checkpoint()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        return self.build_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_verb(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return self.verb_arguments(subcommand)
