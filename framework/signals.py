"""Ctrl-C, SIGTERM and failures of runs with any number of processes.

A signal only sets a flag. The ranks take the flag's maximum where all of them come by, at the end of a training step or
epoch, of an evaluation batch that all have, of an evaluation, and raise at the same place: what is saved there is the
state of a finished step. A rank that fails tells the others, which end with it instead of waiting in a collective.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException

from framework.compat import default_store, forked_processes, is_forked_rank, lightning_requeue, release_children
from framework.distributed import is_distributed, ranks
from framework.elastic import launch_id
from framework.errors import FrameworkError

#: exit statuses as a shell gives them
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
#: a second Ctrl-C within this time is the same one: torchrun passes it on to its workers, which have had it already
SAME_PRESS = 1.0
#: seconds that the other ranks have to end by themselves after one has failed, and that the failed one waits for them
GRACE, NOTICE = 8.0, 2.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised on all ranks at the same place, behind a finished step."""


class _Flag:
    """What has arrived in this process."""

    def __init__(self) -> None:
        self.signum = 0
        self.at = 0.0
        self.requeue: Callable[[int, Any], Any] | None = None
        self.requeue_signum = 0

    def note(self, signum: int, _frame: Any) -> None:
        """The handler of every signal."""
        now = time.monotonic()
        again, self_at = self.signum == signal.SIGINT == signum, self.at
        if again and now - self_at > SAME_PRESS:
            raise KeyboardInterrupt
        if not again:
            self.at = now
        self.signum = max(self.signum, signum)
        if signum == signal.SIGINT and not again and ranks()[1] == 0:
            # not print: the interrupted code may be in the middle of one
            os.write(2, b"\nstopping behind this step; Ctrl-C again stops at once\n")


_flag = _Flag()
_failure: tuple[int, int, str] | None = None


def arrived() -> bool:
    """Whether a signal has come that all ranks will agree on behind this step: what takes long may leave off."""
    return bool(_flag.signum)


class StopTogether(Callback):
    """Ends a run with several processes, or with one, in one piece; see this module."""

    def __init__(self) -> None:
        self._group: Any = None
        self._common = 0
        self._watch: threading.Event | None = None
        self._listening = False

    # ------------------------------------------------------------------ what has arrived

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepares what the ranks agree by."""
        _flag.signum, self._group, self._watch, self._listening = 0, None, None, False
        if not is_distributed():
            return
        if dist.get_backend() != "gloo":  # on the CPU, so that no step waits for the accelerator
            self._group = dist.new_group(backend="gloo", timeout=getattr(trainer.strategy, "_timeout", None))
        self._watch = threading.Event()
        threading.Thread(target=_watch_others, args=(default_store().clone(), self._watch), daemon=True).start()

    def _listen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Behind Lightning's own handlers, which it restores together with these.
        if threading.current_thread() is not threading.main_thread():
            return
        _flag.requeue, _flag.requeue_signum = lightning_requeue(trainer)
        for signum in (signal.SIGINT, signal.SIGTERM, _flag.requeue_signum):
            if signum:
                signal.signal(signum, _flag.note)
        self._listening = True
        self.agree(trainer)

    on_sanity_check_start = on_train_start = on_test_start = on_predict_start = _listen

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As the others, when validation is the verb."""
        if trainer.state.fn != "fit":
            self._listen(trainer, pl_module)

    # ------------------------------------------------------------------ where all ranks come by

    def agree(self, trainer: Trainer) -> None:
        """Raises on all ranks what has arrived on any.

        Raises:
            Interrupted: Ctrl-C. SIGTERMException: SIGTERM; its exit status is 143.
        """
        signum = _flag.signum
        if is_distributed():
            highest = torch.tensor(signum)
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
            signum = int(highest)
        if not signum:
            return
        _flag.signum = 0
        if signum == _flag.requeue_signum and _flag.requeue is not None:
            _flag.requeue(signum, None)  # saves and queues the job again; SIGTERM follows
            return
        _flag.signum = signum
        release_children()
        if is_forked_rank(trainer):  # there Lightning tells no callback, and torch takes an interrupt for success
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_exception(trainer, trainer.lightning_module, Interrupted())
            raise SystemExit(128 + signum)
        if signum == signal.SIGTERM:
            raise SIGTERMException(TERMINATED)
        raise Interrupted

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """A finished step."""
        self.agree(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A finished epoch, or the end of an evaluation."""
        self.agree(trainer)

    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = on_train_epoch_end

    def _begin_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Ranks may hold different numbers of batches; they agree at those that all have.
        counts = {
            "sanity_check": trainer.num_sanity_val_batches,
            "validate": trainer.num_val_batches,
            "test": trainer.num_test_batches,
            "predict": trainer.num_predict_batches,
        }[str(trainer.state.stage.value)]  # type: ignore[union-attr]
        fewest = min([int(c) if c != float("inf") else 0 for c in counts], default=0)
        common = torch.tensor(fewest)
        if is_distributed():
            dist.all_reduce(common, dist.ReduceOp.MIN, group=self._group)
        self._common = int(common)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _begin_evaluation

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A finished batch, where every rank has one of that number."""
        if batch_idx < self._common:
            self.agree(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says whose launch it was, for a restart by torchrun."""
        if (launch := launch_id()) is not None:
            checkpoint["launch"] = launch

    # ------------------------------------------------------------------ a rank that fails

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tells the others why this rank ends, or learns why another did."""
        ends_by_itself = isinstance(exception, KeyboardInterrupt | SystemExit)
        # a signal is agreed upon already; without one, somebody's code has raised it, on this rank alone
        if self._watch is None or (ends_by_itself and (_flag.signum or not self._listening)):
            self._end_watch()
            return
        if is_consequence(exception):
            deadline = time.monotonic() + NOTICE
            while _failure is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if _failure is not None:
                exception.add_note(f"rank {_failure[0]} failed first: {_failure[2]}")
                self._end_watch()
                return
            # nobody says why: a rank stalls or was killed, and whoever still waits must not wait for ever
        self._end_watch()
        rank = ranks()[1]
        status = 2 if isinstance(exception, FrameworkError) else 1
        if isinstance(exception, SystemExit):
            # success it is not: the others cannot go on
            exception.code = status = exception.code if isinstance(exception.code, int) and exception.code else 1
        try:
            store = default_store()
            if store.add("framework/failures", 1) > 1:
                _learn(store)  # all ranks fail alike; one of them says it
                return
            store.set("framework/failure", f"{rank}|{status}|{type(exception).__name__}: {exception}")
        except RuntimeError:
            return  # the store went with its rank
        exception.add_note(which_rank().strip())
        if ends_by_itself:  # nobody else says it
            words = f"{type(exception).__name__} was raised; it ends the other ranks, which would wait for this one"
            print(f"error{which_rank()}: {words}", file=sys.stderr)
        release_children()
        time.sleep(NOTICE)  # for the others to read it, before sockets and store are gone

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run has ended."""
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.set()
        self._watch = None


def which_rank() -> str:
    """` on rank R of N`, or nothing on one process."""
    world_size, rank = ranks()
    return f" on rank {rank} of {world_size}" if world_size > 1 else ""


def is_consequence(exception: BaseException) -> bool:
    """Whether an exception says no more than that another rank is not there, or not where it should be."""
    text = str(exception)
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe", "process group")
    return isinstance(exception, dist.DistError) or (
        isinstance(exception, RuntimeError) and any(word in text for word in words)
    )


def _watch_others(store: Any, done: threading.Event) -> None:
    """A thread: learns of another rank's failure while the main thread may be waiting in a collective."""
    while not done.wait(0.3):
        try:
            if not store.check(["framework/failure"]):
                continue
            _learn(store)
        except RuntimeError:
            return
        if _failure is None:
            return
        release_children()
        if not done.wait(GRACE):  # still waiting for a rank that will not come
            os._exit(_failure[1])
        return


def _learn(store: Any) -> None:
    global _failure
    rank, status, message = store.get("framework/failure").decode().split("|", 2)
    if int(rank) != ranks()[1]:
        _failure = (int(rank), int(status), message)


# ---------------------------------------------------------------------- the command line


@contextlib.contextmanager
def handed_on(trainer: Trainer | None) -> Iterator[None]:
    """Hands signals on to the ranks that this process forks and waits for; it has nothing else to stop.

    Left alone, it would wait for ever after a Ctrl-C of its own, and leave its ranks behind after a SIGTERM.
    """
    if trainer is None or not is_forked_rank(trainer) or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def hand_on(signum: int, _frame: Any) -> None:
        ranks_ = forked_processes(trainer) if os.getpid() == owner else []
        for pid in ranks_:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        if ranks_:
            return
        # before there are ranks, and in a rank that does not listen yet
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    for signum in before:
        signal.signal(signum, hand_on)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def force_on_second_interrupt() -> None:
    """Lets a second Ctrl-C end a process whose main thread waits in a collective and sees no signal.

    The C level writes every signal's number to a file descriptor at once; a thread reads it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        first = 0.0
        while data := os.read(reader, 1):
            if data[0] != signal.SIGINT:
                continue
            if first and time.monotonic() - first > SAME_PRESS:
                time.sleep(3)
                os._exit(INTERRUPTED)
            first = first or time.monotonic()

    threading.Thread(target=watch, daemon=True).start()


def exit_status(error: BaseException) -> int | None:
    """Status of a process that ends by a signal or by another rank's failure; None: by something else."""
    if isinstance(error, Interrupted | KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SIGTERMException):
        return TERMINATED
    if isinstance(error, ProcessExitedException) and error.exit_code in (INTERRUPTED, TERMINATED):
        return error.exit_code  # forked ranks
    return None if _failure is None else _failure[1]


def status_of(error: BaseException) -> int:
    """Exit status of a command that failed: that of a rank that ended by itself, else 2."""
    if isinstance(error, ProcessExitedException) and 0 < error.exit_code < 256:
        return int(error.exit_code)
    return 2
