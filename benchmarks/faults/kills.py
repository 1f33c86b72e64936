"""SIGKILL at random moments, and the resumed run beside the uninterrupted one."""

import functools
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.methods import METHODS
from benchmarks.faults.record import Row, look_at_files, look_at_output
from benchmarks.faults.runs import Run, room, without_figures
from framework.checkpoints import load_checkpoint

#: what is done, with its weight
FAULTS = {"at any moment": 10, "while writing": 5, "TMPDIR on another file system": 3, "slow disk": 2}
#: a file system of its own
ELSEWHERE = Path("/dev/shm")
#: seconds that a slow disk takes for every piece of a checkpoint
SLOWNESS = 0.02
#: a checkpoint's parts that a resumed run must bring to the same end
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "loops")


class SlowFile:
    """A file on a slow disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "SlowFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        time.sleep(SLOWNESS)
        return self.file.write(data)


def slow_disk() -> None:
    """In a forked process: every file opened by its descriptor for writing bytes is slow, as checkpoints are."""
    fast = os.fdopen
    os.fdopen = lambda fd, mode="r", *rest, **more: (  # type: ignore[assignment]
        SlowFile(fast(fd, mode, *rest, **more)) if mode == "wb" else fast(fd, mode, *rest, **more)
    )


def tmpdir_elsewhere(folder: Path) -> None:
    """In a forked process: temporary files lie on another file system than the run."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None


def prepared(fault: str, folder: Path) -> Callable[[], None]:
    """What the process does to itself first."""

    def prepare() -> None:
        without_figures()
        if fault != "at any moment":
            slow_disk()
        if fault == "TMPDIR on another file system":
            tmpdir_elsewhere(ELSEWHERE / folder.parent.name)

    return prepare


def same(one: Any, other: Any) -> bool:
    """Whether two values of a checkpoint are bitwise the same."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def newest(folder: Path, name: str) -> dict[str, Any]:
    """The newest run's checkpoint of a name."""
    return load_checkpoint(max(folder.rglob(f"{name}.ckpt"), key=lambda path: path.stat().st_mtime_ns))


def end_of(folder: Path) -> dict[str, Any]:
    """What the newest run in a folder came to: all of its last state, and the weights of its best."""
    last = newest(folder, "last")
    return {**{part: last.get(part) for part in PARTS}, "best": newest(folder, "best")["state_dict"]}


@functools.cache
def uninterrupted(method: str) -> tuple[dict[str, Any], float]:
    """The end of a whole run, and its seconds."""
    with room() as folder:
        ended = Run(folder, ["fit", *METHODS[method]], without_figures).wait(300)
        if ended.status != 0:
            raise RuntimeError(f"{method}: the run itself fails: {ended.said[-2000:]}")
        return end_of(folder), ended.seconds


def faults() -> list[str]:
    """Twenty tries."""
    return [fault for fault, times in FAULTS.items() for _ in range(times)]


def kill(case: int) -> Row:
    """One kill with its resumption."""
    rng = random.Random(f"kill {case}")
    method = list(METHODS)[case % len(METHODS)]
    fault = faults()[case // len(METHODS) % len(faults())]
    row = Row("kills", case, method, fault)
    whole, seconds = uninterrupted(method)
    with room() as folder:
        run = Run(folder, ["fit", *METHODS[method]], prepared(fault, folder))
        row.moment = await_moment(run, folder, fault, seconds, rng)
        ended = run.kill()
        row.status = ended.status
        row.blame("Traceback" in ended.said, "traceback")
        files = look_at_files(row, folder)
        words = ["fit", *METHODS[method], *(["--ckpt_path", "last"] if files else [])]
        resumed = Run(folder, words, without_figures).wait(300)
        row.seconds = resumed.seconds
        look_at_output(row, resumed.said)
        row.blame(resumed.status is None, "the resumed run hangs")
        row.blame(resumed.status not in (0, None), f"the resumed run ends with status {resumed.status}")
        if resumed.status == 0:
            row.equal = same(end_of(folder), whole)
            row.blame(not row.equal, "not equal to the uninterrupted run")
        look_at_files(row, folder)
    return row


def await_moment(run: Run, folder: Path, fault: str, seconds: float, rng: random.Random) -> str:
    """Waits until the run is to be killed; the moment in words."""
    if fault == "at any moment":
        at = rng.uniform(0.05, 1.0) * seconds
        while time.monotonic() - run.began < at and not run.over():
            time.sleep(0.002)
        return f"{time.monotonic() - run.began:.2f} s"
    # inside the n-th file that is being written
    nth, seen = rng.randrange(1, 10), set[str]()
    more = rng.uniform(0, 10 * SLOWNESS)
    while not run.over():
        seen |= {path.name for path in folder.rglob(".*.part")}
        if len(seen) >= nth:
            time.sleep(more)
            return f"in file {nth}, after {more:.2f} s"
        time.sleep(0.001)
    return "at the end"
