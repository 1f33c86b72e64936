"""Whatever leans on the insides of another library, each with the version that it was read from.

A test (`tests/test_compat.py`) fails when one of these changes.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.optim.swa_utils import AveragedModel


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer a module is in, or None; `LightningModule.trainer` raises instead (lightning 2.6.6)."""
    return module._trainer  # type: ignore[return-value]


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


def release_children() -> None:
    """Keeps Lightning's launcher from killing this process when the others have ended (lightning 2.6.6).

    A thread of its looks every five seconds for a child with a status other than 0, which is how all of them end here.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
