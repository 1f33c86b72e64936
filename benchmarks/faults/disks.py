"""Disks that are full, read-only, elsewhere or gone, and folders that may not be written."""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.kills import end_of, same, tmpdir_elsewhere, uninterrupted
from benchmarks.faults.methods import METHODS
from benchmarks.faults.record import Row, look_at_files, look_at_output
from benchmarks.faults.runs import Run, room

#: more than a run needs
ROOMY = "32m"
NOBODY = 65534
FAULTS = (
    "full disk", "full disk", "full disk", "full TMPDIR", "read-only in the middle", "denied", "runs is a file",
    "run folder taken away",
)  # fmt: skip


@contextlib.contextmanager
def mounted(folder: Path, size: str = ROOMY) -> Iterator[None]:
    """A file system of its own in a folder; needs root."""
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def disk(case: int) -> Row:
    """One try."""
    rng = random.Random(f"disk {case}")
    method = list(METHODS)[case % len(METHODS)]
    fault = FAULTS[case // len(METHODS) % len(FAULTS)]
    row = Row("disks", case, method, fault)
    words = ["fit", *METHODS[method]]
    seconds = uninterrupted(method)[1]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(room())
        if fault.startswith(("full disk", "read-only")):
            stack.enter_context(mounted(folder))
        elif fault == "full TMPDIR":
            stack.enter_context(full(folder.with_name("tmp")))
        run = Run(folder, words, _prepare(fault, folder))
        _do(fault, run, folder, seconds, rng, row)
        ended = run.wait(200)
        row.status, row.seconds = ended.status, ended.seconds
        look_at_output(row, ended.said)
        row.blame(ended.status is None, "hangs")
        row.blame(ended.left, "processes live on")
        goes_on = fault in ("full TMPDIR", "run folder taken away")
        row.blame(goes_on and ended.status != 0, f"status {ended.status}")
        row.blame(not goes_on and ended.status not in (0, 2), f"status {ended.status}")
        row.blame(fault in ("denied", "runs is a file") and ended.status != 2, f"status {ended.status}")
        _mend(fault, folder)
        files = look_at_files(row, folder)
        if fault != "run folder taken away":
            _resume(row, folder, [*words, *(["--ckpt_path", "last"] if files else [])])
    return row


def _prepare(fault: str, folder: Path) -> Callable[[], None] | None:
    if fault == "denied":
        folder.parent.chmod(0o755)
        return lambda: os.setuid(NOBODY)
    if fault == "runs is a file":
        (folder / "runs").write_text("mine")
    return (lambda: tmpdir_elsewhere(folder.with_name("tmp"))) if fault == "full TMPDIR" else None


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """A file system without any room."""
    folder.mkdir()
    with mounted(folder, "64k"):
        with contextlib.suppress(OSError), (folder / "everything").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        yield


def _do(fault: str, run: Run, folder: Path, seconds: float, rng: random.Random, row: Row) -> None:
    """At a random moment."""
    at = rng.uniform(0.1, 0.95) * seconds
    waits = fault not in ("denied", "runs is a file", "full TMPDIR")
    while waits and time.monotonic() - run.began < at and not run.over():
        time.sleep(0.005)
    row.moment = f"{time.monotonic() - run.began:.2f} s" if waits else "from the start"
    if fault == "full disk":
        # a few kilobytes are left: the next file fits in part
        room_left = rng.randrange(0, 200)
        _shrink(folder, room_left)
        row.moment += f", {room_left} kB left"
    elif fault == "read-only in the middle":
        # what is open for writing would forbid it: the whole mount is made read-only, not the file system
        _mount("-o", "remount,bind,ro", str(folder))
    elif fault == "run folder taken away":
        shutil.rmtree(folder / "runs", ignore_errors=True)


def _shrink(folder: Path, room_left: int) -> None:
    for attempt in range(20):  # files may have grown since they were counted
        state = os.statvfs(folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize // 1024
        try:
            _mount("-o", f"remount,size={used + room_left + 8 * attempt}k", str(folder))
        except subprocess.CalledProcessError:
            continue
        return
    raise RuntimeError(f"{folder} cannot be made smaller")


def _mend(fault: str, folder: Path) -> None:
    if fault == "full disk":
        _mount("-o", f"remount,size={ROOMY}", str(folder))
    elif fault == "read-only in the middle":
        _mount("-o", "remount,bind,rw", str(folder))
    elif fault == "runs is a file":
        (folder / "runs").unlink()


def _resume(row: Row, folder: Path, words: list[str]) -> None:
    resumed = Run(folder, words).wait(300)
    row.blame(resumed.status != 0, f"afterwards status {resumed.status}")
    if resumed.status == 0:
        row.equal = same(end_of(folder), uninterrupted(row.what)[0])
        row.blame(not row.equal, "not equal to the uninterrupted run")
    look_at_files(row, folder)
