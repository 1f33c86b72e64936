"""What `framework.compat` leans on is still as it was read: each test fails when the other library changes it."""

import signal
import threading
from typing import Any, cast

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch.distributed import TCPStore
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
    assert other.check(["key"])
    assert other.get("key") == b"value"
    assert callable(compat.default_store)
