"""What other systems do otherwise: their locale, their way to start processes, their paths."""

import ast
import locale
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.faults.fuzz import QUIET, small
from benchmarks.faults.runs import Run, room, without_figures
from datamodules import (
    CellsDataModule,
    GeneratedImagesDataModule,
    ImageFolderDataModule,
    KodakDataModule,
    PhotographsDataModule,
    SegmentationDataModule,
    SquaresDataModule,
)
from framework.distributed import EpochIndex
from tests.test_structure import MODULES

HERE = Path(__file__).parents[1]
#: what these libraries call `open` has another meaning
NOT_TEXT = ("os.open", "Image.open", "zarr.open")


def text_files(path: Path) -> Iterator[str]:
    """Calls that read or write text in whatever encoding the platform likes best."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] not in ("open", "fdopen", "read_text", "write_text") or name in NOT_TEXT:
            continue
        modes = [str(a.value) for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        if not any(keyword.arg == "encoding" for keyword in node.keywords) and not any("b" in mode for mode in modes):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("name", MODULES)
def test_text_is_utf_8_whatever_the_locale(name) -> None:
    assert list(text_files(MODULES[name])) == []


def test_text_without_an_encoding_is_found(tmp_path) -> None:
    lines = ["a.open()", "open(x, 'w')", "p.read_text()", "p.write_text('b', encoding='utf-8')", "os.open(p, 0)",
             "p.open('rb')", "open(x, mode='wb')", "os.fdopen(fd, 'wb')", "Image.open(p)"]  # fmt: skip
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert [line.split(":")[0] for line in text_files(tmp_path / "x.py")] == ["line 1", "line 2", "line 3"]


# ---------------------------------------------------------------------- processes that are not forked


def folder_of_pairs(folder: Path) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for i in range(5):
            values = np.random.default_rng(i).integers(0, 256, (12, 12)).astype(np.uint8)
            Image.fromarray(values if part == "images" else (values > 127).astype(np.uint8) * 255).save(
                folder / part / f"{i}.png"
            )
    return folder


def folder_of_classes(folder: Path) -> Path:
    for i in range(4):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 10), (i * 20, 0, 0)).save(folder / f"{i % 2}" / f"{i}.png")
    return folder


DATA = {
    "squares": lambda folder: SquaresDataModule(images=10, side=24, shapes_per_class=[1], radius_range=[3, 5]),
    "cells": lambda folder: CellsDataModule(images=8, side=16),
    "generated": lambda folder: GeneratedImagesDataModule(image_size=16, train_images=8, val_images=8),
    "photographs": lambda folder: PhotographsDataModule(image_size=16, crops=2),
    "kodak": lambda folder: KodakDataModule(images="scikit-image", scale=0.25, crop=[16, 24], steps_per_epoch=2),
    "segmentation": lambda folder: SegmentationDataModule(str(folder_of_pairs(folder)), crop=8, elastic=1.0),
    "tree": lambda folder: ImageFolderDataModule(str(folder_of_classes(folder)), 8, val_fraction=0.5),
}


@pytest.mark.parametrize("name", DATA)
def test_datasets_reach_spawned_loader_processes(name, tmp_path) -> None:
    data = DATA[name](tmp_path / "data")
    for split in ("train", "val"):
        dataset = data.configure_dataset(split)
        index = EpochIndex(0, 1) if split == "train" else 0
        here, there = dataset[index], pickle.loads(pickle.dumps(dataset))[index]
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(there[key])), key


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    every = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "framework", *words], cwd=folder, env=every, capture_output=True, timeout=280,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


FIT = ["fit", *small("trainer.max_epochs"), *QUIET, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]


@pytest.mark.slow
def test_spawned_ranks_and_loaders(tmp_path) -> None:
    words = ["--trainer.strategy=ddp_spawn", "--trainer.devices=2", "--data.num_workers=1"]
    ended = command(tmp_path, *FIT, *words)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    assert list(tmp_path.rglob("last.ckpt"))


# ---------------------------------------------------------------------- locale and paths


def in_ascii() -> None:
    """In a forked process: a locale and a terminal that know no umlauts."""
    without_figures()
    locale.setlocale(locale.LC_ALL, "C")
    assert locale.getpreferredencoding(False) != "UTF-8"
    sys.stdout = open(1, "w", encoding="ascii", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="ascii", closefd=False)  # noqa: SIM115


@pytest.mark.skipif(sys.flags.utf8_mode == 1, reason="Python has been told not to look at the locale")
@pytest.mark.timeout(200)
def test_a_run_under_another_locale_in_a_folder_of_any_name() -> None:
    with room() as above:
        folder = above / "Größe mit\nZeile"
        folder.mkdir()
        (folder / "mein Lauf ä.yaml").write_text("# Größe\ntrainer: {max_epochs: 1}\n", encoding="utf-8")
        ended = Run(folder, [*FIT, "-c", "mein Lauf ä.yaml", "--name=größe"], in_ascii).wait(100)
        assert ended.status == 0, ended.said[-2000:]
        (saved,) = folder.rglob("config.yaml")
        assert "größe" in saved.read_text(encoding="utf-8")
        ended = Run(folder, ["test", "-c", str(saved), "--ckpt_path=last"], in_ascii).wait(100)
        assert ended.status == 0, ended.said[-2000:]
        ended = Run(folder, ["fit", "-c", "nicht da ä.yaml"], in_ascii).wait(100)
        assert ended.status == 2
        assert "Traceback" not in ended.said
