"""Signals and failures: one process and several, the command as people start it. No try may hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException

from callbacks import InterruptCheckpoint
from framework import signals
from tests.helpers.small import Line, PointsData, quiet

HERE = Path(__file__).parents[2]
PAIR = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]
SLOWLY = "tests.distributed.slowly.Slowly"


class Sends(Callback):
    """Sends a signal to its own process inside a step, an evaluation or a sanity check."""

    def __init__(self, where: str, signum: int, rank: int = 0, epoch: int = 1) -> None:
        self.where, self.signum, self.rank, self.epoch = where, signum, rank, epoch

    def _send(self, trainer, where: str) -> None:
        if where == self.where and trainer.global_rank == self.rank and trainer.current_epoch == self.epoch:
            self.where = "done"
            signal.raise_signal(self.signum)

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self._send(trainer, "train")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._send(trainer, "sanity" if trainer.sanity_checking else "validation")

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._send(trainer, "test")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._send(trainer, "epoch end")


def steps_of(path: Path) -> set[int]:
    states = torch.load(path, weights_only=True)["optimizer_states"][0]["state"].values()
    return {int(state["step"]) for state in states}


@pytest.mark.parametrize(
    ("where", "steps"), [("train", 3), ("validation", 4), ("epoch end", 4), ("sanity", None), ("test", None)]
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_behind_a_finished_step(tmp_path, where, steps, signum) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    sends = Sends(where, signum, epoch=0 if where in ("sanity", "test") else 1)
    trainer = quiet(tmp_path, max_epochs=3, callbacks=[sends, InterruptCheckpoint()])
    with pytest.raises(SystemExit) as ended:
        (trainer.test if where == "test" else trainer.fit)(Line(), PointsData(batch_size=5, eval_batch_size=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert isinstance(ended.value, SIGTERMException) == (signum == signal.SIGTERM)
    assert signals.exit_status(ended.value) == 128 + signum
    saved = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert saved.is_file() == (steps is not None)
    if steps is not None:
        assert steps_of(saved) == {steps}
        again = quiet(tmp_path, max_epochs=3, enable_checkpointing=False)
        again.fit(Line(), PointsData(batch_size=5), ckpt_path=saved)
        assert again.current_epoch == 3


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["train", "validation", "epoch end"])
def test_a_signal_to_one_forked_rank_ends_both_with_a_checkpoint(tmp_path, where, rank, signum) -> None:
    # 3 validation samples on 2 ranks: they do not have equally many batches
    callbacks = [Sends(where, signum, rank), InterruptCheckpoint()]
    trainer = quiet(tmp_path, max_epochs=3, callbacks=callbacks, strategy="ddp_fork", devices=2)
    with pytest.raises(ProcessExitedException) as ended:
        trainer.fit(Line(), PointsData(batch_size=5, eval_batch_size=1))
    assert signals.exit_status(ended.value) == 128 + signum
    assert len(steps_of(tmp_path / "checkpoints" / "interrupted.ckpt")) == 1


def test_a_second_interrupt_raises_at_once_but_not_the_same_one_passed_on() -> None:
    flag = signals._Flag()
    flag.note(signal.SIGINT, None)
    flag.note(signal.SIGINT, None)
    assert flag.signum == signal.SIGINT
    flag.at -= 2 * signals.SAME_PRESS
    with pytest.raises(KeyboardInterrupt):
        flag.note(signal.SIGINT, None)
    flag.note(signal.SIGTERM, None)
    assert flag.signum == signal.SIGTERM


def test_slurms_signal_saves_between_two_steps_and_goes_on(tmp_path, monkeypatch) -> None:
    seen = []

    def requeue(signum, frame) -> None:
        seen.append(trainer.global_step)

    monkeypatch.setattr(signals, "lightning_requeue", lambda trainer: (requeue, int(signal.SIGUSR1)))
    trainer = quiet(tmp_path, max_epochs=2, callbacks=[Sends("train", signal.SIGUSR1)], enable_checkpointing=False)
    before = signal.getsignal(signal.SIGUSR1)
    trainer.fit(Line(), PointsData(batch_size=5))
    assert seen == [3]
    assert trainer.global_step == 4
    assert signal.getsignal(signal.SIGUSR1) == before


# ---------------------------------------------------------------------- the command, in processes of its own


def start(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """The command in a session of its own, so that its group can be signalled."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "LOGLEVEL": "ERROR"}
    module = ["-m", *launcher, "-m", "framework"] if launcher else ["-m", "framework"]
    command = [sys.executable, *module, "fit", "-c", "korigins/quickstart", *QUICK, *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


QUICK = ["--model.rfl=8", "--model.width=2", "--data.side=24", "--data.images=40", "--data.shapes_per_class=[1,1]",
         "--data.radius_range=[3,5]", "--data.batch_size=4", "--trainer.max_epochs=1000", "--trainer.logger=true",
         f"--trainer.callbacks+={SLOWLY}"]  # fmt: skip


def workers(folder: Path, count: int) -> list[int]:
    """The process ids of the ranks, once all of them train."""
    deadline = time.monotonic() + 150
    files = [folder / f"rank{rank}.pid" for rank in range(count)]
    while time.monotonic() < deadline:
        if all(file.is_file() and file.read_text() for file in files):
            return [int(file.read_text()) for file in files]
        time.sleep(0.1)
    raise AssertionError("the ranks did not begin to train")


def end(process: subprocess.Popen, limit: float = 40) -> tuple[int, float, str]:
    """Status, seconds and words of a process that is about to end; kills its group when it hangs."""
    began = time.monotonic()
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hung after the signal: {process.communicate()[0][-2000:]}") from None
    return process.returncode, time.monotonic() - began, printed


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["one process", "group", "rank 0", "rank 1"])
def test_signals_to_the_command(tmp_path, signum, to) -> None:
    pair = [] if to == "one process" else PAIR
    process = start(tmp_path, *pair)
    pids = workers(tmp_path, 1 if to == "one process" else 2)
    if to == "group":
        os.killpg(process.pid, signum)
    else:
        os.kill(pids[1 if to == "rank 1" else 0], signum)
    status, _, printed = end(process)
    assert status == 128 + signum, printed[-2000:]
    (saved,) = tmp_path.rglob("interrupted.ckpt")
    assert len(steps_of(saved)) == 1
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_failure_on_one_rank_ends_both_with_one_message(tmp_path) -> None:
    (tmp_path / "fails").write_text("1")
    process = start(tmp_path, *PAIR)
    status, _, printed = end(process, 200)
    assert status == 2, printed[-2000:]
    assert printed.count("error on rank 1 of 2: a picture is broken") == 1
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(("file", "code", "expected"), [("leaves", "0", 1), ("leaves", "7", 7), ("stops", "", 1)])
def test_a_rank_that_ends_by_itself_is_named(tmp_path, file, code, expected) -> None:
    """Somebody's code calls sys.exit, or raises what Ctrl-C raises: the others do not speak of their connections."""
    (tmp_path / file).write_text(code)
    process = start(tmp_path, *PAIR)
    status, _, printed = end(process, 200)
    raised = "SystemExit" if file == "leaves" else "KeyboardInterrupt"
    assert status == expected, printed[-2000:]
    assert printed.count(f"error on rank 1 of 2: {raised} was raised; it ends the other ranks") == 1
    assert printed.count("error") == 1
    assert "Traceback" not in printed


@pytest.mark.slow
def test_ctrl_c_while_starting_prints_one_line(tmp_path) -> None:
    process = start(tmp_path)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    status, _, printed = end(process)
    assert status == 130
    assert len(printed.strip().splitlines()) <= 1, printed


@pytest.mark.slow
def test_torchrun_starts_a_killed_group_again_where_it_was(tmp_path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    process = start(tmp_path, *PAIR, "--trainer.max_epochs=6", launcher=launcher)
    pids = workers(tmp_path, 2)
    deadline = time.monotonic() + 100
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(pids[1], signal.SIGKILL)
    status, _, printed = end(process, 200)
    assert status == 0, printed[-3000:]
    assert "started again by torchrun: going on from" in printed
