"""A rank that fails, stalls or never comes: the others end with it, within the stated time, with one message."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.fuzz import QUIET, small
from benchmarks.faults.runs import Run, room, without_figures
from benchmarks.faults.signals import torchrun

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
FORKED = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.accelerator=cpu"]
WORDS = ["fit", *small("trainer.max_epochs"), *QUIET, "--trainer.max_epochs=50", "--trainer.accelerator=cpu"]
TEN_SECONDS = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:10"]


@pytest.mark.slow
def test_a_rank_that_stalls_ends_the_others_at_the_stated_time() -> None:
    with room() as folder:
        words = ["--trainer.devices=2", "--trainer.strategy.start_method=fork",
                 "--trainer.callbacks+=tests.distributed.slowly.Stalls"]  # fmt: skip
        ended = Run(folder, [*WORDS, *TEN_SECONDS, *words]).wait(160)
    assert (ended.status, ended.left) == (2, 0), ended.said[-2000:]
    assert "another rank has not come to an operation of all within the time-out" in ended.said
    assert "Traceback" not in ended.said


def test_a_second_node_that_never_comes_is_named() -> None:
    with room() as folder:
        ended = Run(folder, [*WORDS, *TEN_SECONDS, "--trainer.num_nodes=2", "--trainer.devices=1"]).wait(160)
    assert (ended.status, ended.left) == (2, 0), ended.said[-2000:]
    assert "trainer.num_nodes, trainer.devices: 1 of 2 processes have come together" in ended.said
    assert "Traceback" not in ended.said


def fails(folder: Path) -> list[str]:
    (folder / "fails").touch()
    return [*WORDS, "--trainer.callbacks+=tests.distributed.slowly.Slowly"]


def spoilt(folder: Path) -> list[str]:
    return [*WORDS, "--trainer.callbacks+=tests.distributed.slowly.Spoils"]


def corrupt(folder: Path) -> list[str]:
    """One of four pictures is cut off behind its header."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for i in range(12):
            values = np.random.default_rng(i).integers(0, 256, (16, 16)).astype(np.uint8)
            values = values if part == "images" else (values > 127).astype(np.uint8) * 255
            Image.fromarray(values).save(folder / part / f"{i}.png")
    path = folder / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return ["fit", "--model=KOriginsSegmentation", "--model.rfl=8", "--model.width=2", "--model.origins=none",
            "--data=SegmentationDataModule", f"--data.root={os.curdir}", "--data.batch_size=1", *QUIET]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (fails, r"process 1: a picture is broken"),
        (spoilt, r"process 1: .*(not finite|nan)"),
        (corrupt, r"process [01]: .*1\.png"),
    ],
    ids=["exception", "not finite", "corrupt picture"],
)
def test_a_failure_on_one_rank_is_one_message_that_names_it(words, said) -> None:
    with room() as folder:
        ended = Run(folder, [*words(folder), *FORKED]).wait(160)
    assert (ended.status, ended.left) == (2, 0), ended.said[-2000:]
    assert len(re.findall(r"^error", ended.said, re.MULTILINE)) == 1, ended.said[-2000:]
    assert re.search(rf"error: {said}", ended.said), ended.said[-2000:]
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_torchrun_starts_killed_ranks_again_where_they_were() -> None:
    with room() as folder:
        words = [*WORDS, "--trainer.callbacks+=benchmarks.faults.ranks.Ranks"]
        run = Run(folder, words, without_figures, torchrun(2, restarts=1))
        victim, until = folder / "rank1.pid", time.monotonic() + 120
        while not (list(folder.rglob("last.ckpt")) and victim.is_file()) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(int(victim.read_text()), signal.SIGKILL)
        ended = run.wait(200)
        runs = len(list(folder.rglob("version_*")))
    assert (ended.status, ended.left, runs) == (0, 0, 2), ended.said[-3000:]
    assert "started again by torchrun: going on from" in ended.said
