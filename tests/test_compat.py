"""What `framework.compat` leans on is still as it was read: each test fails when the other library changes it."""

import functools
import inspect
import signal
import threading
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from torch import nn
from torch.distributed import TCPStore
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from framework import compat
from tests.helpers.small import Line, PointsData, quiet


def test_a_module_knows_its_trainer_without_an_error() -> None:
    module = Line()
    assert compat.attached_trainer(module) is None
    with pytest.raises(RuntimeError, match="not attached"):
        _ = module.trainer


def test_averaging_callbacks_keep_their_copy_where_it_is_looked_for(tmp_path) -> None:
    for callback in (WeightAveraging(), EMAWeightAveraging(), StochasticWeightAveraging(0.1, swa_epoch_start=1)):
        trainer = quiet(tmp_path, max_epochs=2, enable_checkpointing=False, callbacks=[callback])
        module = Line()
        trainer.fit(module, PointsData(batch_size=5))
        (copy,) = compat.averaged_models(trainer)
        assert not isinstance(copy, AveragedModel)
        assert [name for name, _ in copy.named_parameters()] == [name for name, _ in module.named_parameters()]


class Looks(Callback):
    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.of_validation = set(compat.figures_of_this_loop(trainer))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.of_training = set(compat.figures_of_this_loop(trainer))


def test_the_running_loops_figures_are_told_from_the_others(tmp_path) -> None:
    looks = Looks()
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[looks]).fit(Line(), PointsData(batch_size=5))
    assert "val/loss" in looks.of_validation
    assert not any(name.startswith("train/") for name in looks.of_validation)
    assert "train/loss" in looks.of_training


class HandsOver(Callback):
    """Makes a batch of the evaluation again, beside the loop's own."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.steps = batch

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.again = compat.handed_over(trainer, next(iter(trainer.val_dataloaders)))


class Hooked(PointsData):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] + 1}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] * 2}


def test_a_batch_is_handed_over_as_the_loop_does_it(tmp_path) -> None:
    hands = HandsOver()
    quiet(tmp_path, precision="64-true", callbacks=[hands]).validate(Line(), Hooked(batch_size=5), verbose=False)
    assert hands.again["image"].dtype == torch.float64
    assert torch.equal(hands.again["image"], hands.steps["image"])
    assert hands.again["image"].flatten().tolist() == pytest.approx([2, 2.2, 2.4])


def test_lightnings_requeue_is_found(tmp_path, monkeypatch) -> None:
    assert compat.lightning_requeue(quiet(tmp_path)) == (None, 0)
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR2)]
    )
    handler, signum = compat.lightning_requeue(trainer)
    assert callable(handler)
    assert signum == signal.SIGUSR2


def test_the_launchers_observer_can_be_sent_home() -> None:
    class Ended:
        returncode = 143

        def poll(self) -> int:
            return self.returncode

        def send_signal(self, signum) -> None:
            raise AssertionError("killed a process that had ended")

    observer = subprocess_script._ChildProcessObserver(1, cast(Any, [Ended()]), sleep_period=1)
    assert observer.name == "child-process-observer"
    observer._main_pid = -1
    observer.start()
    compat.release_children()
    observer.join(5)
    assert observer not in threading.enumerate()


def test_a_forked_rank_is_recognised(tmp_path) -> None:
    assert compat.is_forked_rank(quiet(tmp_path, strategy="ddp_fork", devices=2))
    assert not compat.is_forked_rank(quiet(tmp_path))
    assert not compat.is_forked_rank(quiet(tmp_path, strategy="ddp", devices=2))


def test_stores_can_be_asked_by_a_second_thread() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True)
    other = store.clone()
    store.set("key", "value")
    assert other.get("key") == b"value"  # waits: one connection's `set` may arrive behind another's question
    assert other.check(["key"])
    assert callable(compat.default_store)


def test_ddp_leaves_alone_what_it_is_told_to() -> None:
    dist.init_process_group("gloo", store=TCPStore("127.0.0.1", 0, is_master=True), rank=0, world_size=1)
    try:
        module = nn.ModuleDict({"own": nn.Linear(2, 2), "shared": nn.Linear(2, 2)})
        compat.leave_to_ranks(module, ["own.weight", "own.bias"])
        assert compat.left_to_ranks(module) == {"own.weight", "own.bias"}
        DistributedDataParallel(module)
        compat.leave_to_ranks(module, [name for name, _ in module.named_parameters()])
        with pytest.raises(RuntimeError, match="doesn't have any parameter"):
            DistributedDataParallel(module)
    finally:
        dist.destroy_process_group()


class Optimized:
    def __init__(self, optimizer: OptimizerCallable) -> None:
        self.optimizer = optimizer


def test_a_parsed_callable_tells_its_class() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Optimized, "it")
    config = parser.parse_object({"it": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}}})
    optimizer = parser.instantiate_classes(config).it.optimizer
    assert compat.class_of_partial(optimizer) is torch.optim.SGD
    assert optimizer.keywords["lr"] == 0.5
    assert compat.class_of_partial(functools.partial(torch.optim.SGD, lr=0.5)) is None
    assert {"it.optimizer", "config"} & set(compat.parser_keys(cast(Any, parser))) == {"it.optimizer"}


def test_lightnings_command_line_has_the_hooks_that_are_taken() -> None:
    for hook, arguments in {
        "_parse_ckpt_path": ["self"],
        "_instantiate_trainer": ["self", "config", "callbacks"],
        "_prepare_subcommand_kwargs": ["self", "subcommand"],
        "_run_subcommand": ["self", "subcommand"],
    }.items():
        assert list(inspect.signature(getattr(LightningCLI, hook)).parameters) == arguments
        assert f"self.{hook}(" in inspect.getsource(LightningCLI), "nothing calls it any more"
    assert "self._subcommand_parsers" in inspect.getsource(LightningCLI._add_subcommands)
