"""A prediction that goes on takes nothing as done that was made of other pictures or with other settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from datamodules.pairing import Pair
from datamodules.prediction_files import PredictionFiles
from datamodules.reading import Reading
from datamodules.unfinished import identity
from framework.errors import ConfigError
from tests.datamodules.test_predictions import QUIET, Threshold


class Stops(Threshold):
    """Is stopped in place of so many pictures and all behind them."""

    pictures = 1000

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx >= self.pictures:
            raise KeyboardInterrupt
        return super().predict_step(batch, batch_idx)


def pictures(folder: Path, values: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        image = np.zeros((12, 12), np.uint8)
        image[2:6, 2:6] = value
        tifffile.imwrite(folder / f"{name}.tif", image)
    return folder


def predict(folder: Path, out: Path, pictures: int = 1000, **options: Any) -> None:
    data = SegmentationDataModule(str(folder), normalize="none", batch_size=1)
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(out), **options)], default_root_dir=out.parent)
    torch.manual_seed(0)
    model = Stops(width=2, stages=1)
    model.pictures = pictures
    trainer.predict(model, data, return_predictions=False)


def stopped(folder: Path, out: Path, pictures: int = 1, **options: Any) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(folder, out, pictures, **options)
    assert [p.name for p in out.glob("*_mask.tif")] == ["a_mask.tif"]


def means(out: Path) -> dict[str, int]:
    table = pd.read_csv(out / "objects.csv")
    assert not (out / ".unfinished").exists()
    return dict(zip(table["image"], table["mean_0"], strict=True))


def test_pictures_of_one_name_in_another_folder_begin_anew(tmp_path: Path, capsys: Any) -> None:
    first = pictures(tmp_path / "day1", {"a": 150, "b": 160})
    second = pictures(tmp_path / "day2", {"a": 210, "b": 220})
    stopped(first, tmp_path / "out")
    predict(second, tmp_path / "out")
    words = "1 of 2 pictures have changed since they were predicted, first a.tif: they begin anew"
    assert words in capsys.readouterr().out
    assert means(tmp_path / "out") == {"a": 210, "b": 220}


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_picture_that_has_changed_begins_anew(tmp_path: Path, change: str) -> None:
    folder = pictures(tmp_path / "new", {"a": 150, "b": 160})
    stopped(folder, tmp_path / "out")
    before = (folder / "a.tif").stat()
    pictures(folder, {"a": 240})
    if change == "size":
        with (folder / "a.tif").open("ab") as file:
            file.write(b"\0")
        os.utime(folder / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(folder / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))
    predict(folder, tmp_path / "out")
    assert means(tmp_path / "out") == {"a": 240, "b": 160}


def test_a_picture_that_is_the_same_is_done(tmp_path: Path, capsys: Any) -> None:
    folder = pictures(tmp_path / "new", {"a": 150, "b": 160})
    stopped(folder, tmp_path / "out")
    written = (tmp_path / "out" / "a_mask.tif").stat().st_mtime_ns
    predict(folder, tmp_path / "out")
    assert (tmp_path / "out" / "a_mask.tif").stat().st_mtime_ns == written
    assert "1 of 2 pictures in" in capsys.readouterr().out
    assert means(tmp_path / "out") == {"a": 150, "b": 160}


def test_a_redone_picture_that_is_stopped_again_is_not_done(tmp_path: Path) -> None:
    first = pictures(tmp_path / "day1", {"a": 150, "b": 160})
    second = pictures(tmp_path / "day2", {"a": 210, "b": 220})
    stopped(first, tmp_path / "out")
    stopped(second, tmp_path / "out", 0)
    predict(second, tmp_path / "out")
    assert means(tmp_path / "out") == {"a": 210, "b": 220}


@pytest.mark.parametrize("option", ["overlays", "probabilities"])
def test_other_files_are_another_plan(tmp_path: Path, option: str) -> None:
    folder = pictures(tmp_path / "new", {"a": 150, "b": 160})
    stopped(folder, tmp_path / "out")
    predict(folder, tmp_path / "other", **{option: True})
    with pytest.raises(ConfigError, match=r"\.unfinished was begun with another network or other settings; remove it"):
        predict(folder, tmp_path / "out", **{option: True})


def test_slices_of_a_picture_that_has_changed_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"probabilities": False, "overlays": False, "grid": lambda size: None}

    def begun(value: int) -> PredictionFiles:
        tifffile.imwrite(path, np.full((2, 8, 8), value, np.uint8), photometric="minisblack", metadata={"axes": "ZYX"})
        os.utime(path, ns=(0, value))
        pairs = [Pair(i, path, (), f"a_slice{i}", i) for i in range(2)]
        return PredictionFiles(tmp_path / "out", pairs, Reading(slices="each"), options, {}, False)

    (tmp_path / "out").mkdir()
    files = begun(1)
    files.write(0, "mask", np.zeros((8, 8), np.uint8))
    files.end(False)
    files = begun(2)
    assert [pair.part for pair in files.remaining()] == [0, 1]
    files.end(False)


def test_a_folder_that_is_a_picture_is_known_by_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "x.zarr" / "0"
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / name).write_bytes(b"12")
        os.utime(folder / name, ns=(0, 10**9))
    before = identity(tmp_path / "x.zarr")
    assert before == [str((tmp_path / "x.zarr").resolve()), 4, 10**9]
    os.utime(folder / "a", ns=(0, 10**9 + 1))
    assert identity(tmp_path / "x.zarr")[1:] == [4, 10**9 + 1]
    shutil.copytree(tmp_path / "x.zarr", tmp_path / "y.zarr")
    assert identity(tmp_path / "y.zarr")[0] != before[0]


def test_data_modules_are_imported_where_there_are_no_locks(tmp_path: Path) -> None:
    words = (
        "import sys; sys.modules['fcntl'] = None; import datamodules; from pathlib import Path; "
        "from datamodules.unfinished import Unfinished; Unfinished(Path(sys.argv[1]), {}).leave()"
    )
    ended = subprocess.run([sys.executable, "-c", words, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
