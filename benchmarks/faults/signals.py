"""Ctrl-C, SIGTERM and SIGKILL to runs of one, two and three processes."""

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from benchmarks.faults.methods import METHODS
from benchmarks.faults.record import Row, look_at_files, look_at_output
from benchmarks.faults.runs import Run, as_typed, room, without_figures
from framework.checkpoints import load_checkpoint

#: seconds after the signal that are called a hang
LIMIT = 40
ENDLESS = ("--trainer.max_epochs=2000", "--trainer.callbacks+=benchmarks.faults.ranks.Ranks")


@dataclasses.dataclass(frozen=True)
class Try:
    """One kind of try.

    Args:
        signum: what is sent.
        to: process, group, launcher (or torchrun's agent), or `rank N`.
        processes: of the run.
        torchrun: started by torchrun's agent; otherwise Lightning forks the ranks.
        early: sent while the run starts, not while it trains.
    """

    signum: signal.Signals
    to: str
    processes: int
    torchrun: bool = False
    early: bool = False


def tries() -> list[Try]:
    """Forty."""
    found = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        found += [Try(signum, "process", 1, early=early) for early in (False, True)]
        for processes in (2, 3):
            targets = ("group", "launcher", "rank 0", f"rank {processes - 1}")
            found += [Try(signum, to, processes) for to in targets]
            found += [Try(signum, to, processes, torchrun=True) for to in ("group", "launcher", "rank 1")]
            found += [Try(signum, "group", processes, early=True)]
        found += [Try(signum, "group", 2, torchrun=True, early=True)]
    found += [Try(signal.SIGKILL, to, 2) for to in ("rank 0", "rank 1")]
    return found


def torchrun(processes: int, restarts: int = 0) -> Callable[[Sequence[str]], None]:
    """What `torchrun --standalone --nproc-per-node N -m framework ...` does, with forked workers."""

    def entry(words: Sequence[str]) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        settings = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=str(os.getpid()), rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=restarts, start_method="fork", monitor_interval=0.1,
        )  # fmt: skip
        try:
            elastic_launch(settings, _worker)(list(words))
        except (ChildFailedError, SignalException, KeyboardInterrupt) as error:
            # torchrun prints its traceback and ends with status 1
            print(f"torchrun: {type(error).__name__}")
            raise SystemExit(1) from None

    return entry


def _worker(words: Sequence[str]) -> None:
    """One of torchrun's; Lightning has looked for the rank when it was imported, before there was one."""
    rank_zero_only.rank = int(os.environ["RANK"])  # type: ignore[attr-defined]
    as_typed(words)


def send(case: int) -> Row:
    """One try."""
    rng = random.Random(f"signal {case}")
    every = tries()
    one = every[case % len(every)]
    method = rng.choice(list(METHODS)) if one.processes == 1 else rng.choice(["korigins", "kmunet", "finola"])
    row = Row("signals", case, method, f"{one.signum.name} to {one.to}", one.processes)
    several = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp_fork", f"--trainer.devices={one.processes}"]
    words = ["fit", *METHODS[method], *ENDLESS]
    if one.processes > 1 and not one.torchrun:
        words += several
    with room() as folder:
        run = Run(folder, words, without_figures, torchrun(one.processes) if one.torchrun else None)
        ranks = await_training(run, folder, one, rng)
        row.moment = f"{time.monotonic() - run.began:.2f} s, {'starting' if one.early else 'training'}"
        if one.torchrun:
            row.moment += ", torchrun"
        if run.over() or (not one.early and not ranks):
            row.blame(True, "ended or stood still before the signal")
        run.since()
        target(run, one, ranks)
        ended = run.wait(LIMIT)
        row.status, row.seconds = ended.status, ended.seconds
        look_at_output(row, ended.said)
        judge(row, one, ended.left, folder)
    return row


def await_training(run: Run, folder: Path, one: Try, rng: random.Random) -> list[int]:
    """Waits for the moment; process ids of the ranks, as far as they are known."""
    until = time.monotonic() + (rng.uniform(0.05, 3) if one.early else 90)
    files = [folder / f"rank{rank}.pid" for rank in range(one.processes)]
    while time.monotonic() < until and not run.over():
        if all(file.is_file() and file.stat().st_size for file in files):
            if not one.early:
                time.sleep(rng.uniform(0, 1.5))
            return [int(file.read_text()) for file in files]
        time.sleep(0.005)
    return []


def target(run: Run, one: Try, ranks: list[int]) -> None:
    """Sends it."""
    with contextlib.suppress(ProcessLookupError):
        if one.to == "group":
            os.killpg(run.pid, one.signum)
        elif one.to in ("process", "launcher"):
            os.kill(run.pid, one.signum)
        elif ranks:
            os.kill(ranks[int(one.to.removeprefix("rank "))], one.signum)


def judge(row: Row, one: Try, left: int, folder: Path) -> None:
    """What must hold after a signal."""
    row.blame(row.status is None, "hangs")
    row.blame(left, f"{left} processes live on")
    files = look_at_files(row, folder)
    if one.signum == signal.SIGKILL:
        row.blame(row.status == 0, "status 0")
        return
    # torchrun has statuses of its own: 1, or that of the signal it received
    expected = {128 + one.signum} | ({1} if one.torchrun else set())
    row.blame(row.status is not None and row.status not in expected, f"status {row.status}")
    saved = [path for path in files if path.name == "interrupted.ckpt"]
    row.blame(not one.early and not saved, "no interrupted.ckpt")
    for path in saved:
        states = load_checkpoint(path)["optimizer_states"]
        steps = {int(s["step"]) for o in states for s in o["state"].values() if "step" in s}
        row.blame(len(steps) > 1, f"steps {sorted(steps)} in one state")
