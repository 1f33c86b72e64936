"""`python -m benchmarks.faults`: a try of every kind ends as promised, and what is not as promised is seen."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.faults import disks, fuzz, kills, signals
from benchmarks.faults.record import GOOD, Row, look_at_files, look_at_output
from benchmarks.faults.runs import Run, room

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


def test_there_are_enough_tries() -> None:
    assert len(signals.tries()) == 40
    assert sum(fuzz.KINDS.values()) == 700
    assert len(kills.faults()) * len(kills.METHODS) == 100


@pytest.mark.parametrize("case", [0, pytest.param(51, marks=pytest.mark.slow)])
def test_a_kill(case) -> None:
    row = kills.kill(case)
    assert (row.outcome, row.status, row.equal) == (GOOD, 128 + 9, True)


@pytest.mark.parametrize("to", ["launcher", "rank 1"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_two_forked_processes(name, to) -> None:
    (case,) = (
        n
        for n, one in enumerate(signals.tries())
        if (one.signum.name, one.to, one.processes, one.torchrun, one.early) == (name, to, 2, False, False)
    )
    row = signals.send(case)
    assert row.outcome == GOOD, row.output[-2000:]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_full_disk() -> None:
    row = disks.disk(0)
    assert (row.outcome, row.equal) == (GOOD, True), row.output[-2000:]


@pytest.mark.parametrize("case", range(0, 700, 100))
def test_an_input(case) -> None:
    row = fuzz.fuzz(case)
    assert row.outcome == GOOD, (row.fault, row.output[-2000:])


@pytest.mark.slow
def test_what_is_not_as_promised_is_seen(tmp_path) -> None:
    row = Row("kills", 0, "x", "y")
    (tmp_path / "half.ckpt").write_bytes(b"PK")
    look_at_files(row, tmp_path)
    look_at_output(row, "Traceback (most recent call last):\n  ...\nValueError: x")
    assert row.outcome == "unreadable: half.ckpt; traceback"
    assert row.columns()["status"] == ""
    with room() as folder:
        ended = Run(folder, [], entry=lambda _: os.system("sleep 100")).wait(0.5)
        assert ended.status is None
        ended = Run(folder, [], entry=lambda _: (os.fork() or __import__("time").sleep(100)) and None).wait(20)
        assert (ended.status, ended.left) == (0, 1)
        (folder / "x.py").write_text("import subprocess\n\nsubprocess.Popen(['true'])\n")
        words = ["fit", "--import", "x"]
        Run(folder, words, lambda: fuzz._watch(folder / "code")).wait(60)
        assert "subprocess.Popen" in (folder / "code").read_text()
    assert not folder.exists()
    assert isinstance(folder, Path)
