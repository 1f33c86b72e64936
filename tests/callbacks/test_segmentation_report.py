"""What a test says of every image: tables against the formulas, figures of every kind, one process and two."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from callbacks import SegmentationReport, segmentation_report
from datamodules import SegmentationDataModule
from datamodules.masks import instance_classes
from framework.errors import ConfigError
from framework.instances import objects_of
from framework.metrics import match_objects
from models import KMUNet, KOriginsSegmentation
from tests.test_contracts import Line
from tests.test_loading import picture
from tests.test_metrics import of_class

PAIR = ["--trainer.strategy=ddp_fork", "--trainer.devices=2"]


def shifted(objects: np.ndarray, by: int) -> np.ndarray:
    return np.roll(objects, by, 1)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Twelve pictures whose first channel recites what Reciting says: their objects, moved by 0, 1, 2, ... pixels."""
    for i in range(12):
        objects = picture(i, (40, 44 + i))[1]
        said = instance_classes(shifted(objects, i), 1)
        for part, values in (("images", said), ("masks", objects)):
            (tmp_path / "cells" / part).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "cells" / part / f"c{i:02d}.tif", values)
    return tmp_path / "cells"


def says(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(image[:, 0].long(), 3).movedim(-1, 1).float() * 9


class RecitingKMUNet(KMUNet):
    """Says what is in the picture."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return says(image)


class RecitingKOrigins(KOriginsSegmentation):
    """Says what is in the picture."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return says(image)


WORDS = ["--model.num_classes=3", "--model.width=2", "--data=SegmentationDataModule", "--data.masks_are=instances",
         "--data.normalize=none", "--data.batch_size=1", "--data.test_fraction=0.6", "--trainer.accelerator=cpu",
         "--trainer.enable_progress_bar=false"]  # fmt: skip


def words(cells: Path, kind: str, *more: str) -> list[str]:
    own = (
        ["--model.stages=1", "--model.baseline=2"]
        if kind == "RecitingKMUNet"
        else ["--model.rfl=8", "--model.origins=none"]
    )
    return ["test", f"--model={__name__}.{kind}", *own, *WORDS, f"--data.root={cells}", *more]


@pytest.mark.parametrize("kind", ["RecitingKMUNet", "RecitingKOrigins"])
def test_tables_hold_every_image_and_the_whole(cells: Path, run: Any, kind: str) -> None:
    cli = run(*words(cells, kind))
    folder = Path(cli.trainer.log_dir)
    table = pd.read_csv(folder / "test_images.csv").set_index("image")
    names = [f"c{i:02d}" for i in range(5, 12)]
    assert table.index.tolist() == [*names, "all"]
    truths, founds = [], []
    for name in names:
        objects = tifffile.imread(cells / "masks" / f"{name}.tif").astype(np.int64)
        said = tifffile.imread(cells / "images" / f"{name}.tif")
        truth, row = instance_classes(objects, 1), table.loc[name]
        for c in range(3):
            iou, dice = of_class(said, truth, c)
            assert [row[f"iou_{c}"], row[f"dice_{c}"]] == pytest.approx([iou, dice], nan_ok=True, abs=1e-6)
        matches = match_objects(objects, objects_of(said))
        assert [row[k] for k in ("f1_50", "ap", "pq")] == pytest.approx(list(matches.figures().values()), abs=1e-6)
        assert (row["objects"], row["objects_true"]) == (matches.found, matches.true)
        truths.append(truth.ravel())
        founds.append(said.ravel())
    logged = {k: float(v) for k, v in cli.trainer.callback_metrics.items()}
    for c in range(3):
        expected = of_class(np.concatenate(founds), np.concatenate(truths), c)
        assert [table.loc["all", f"{k}_{c}"] for k in ("iou", "dice")] == pytest.approx(list(expected), abs=1e-6)
    whole = table.loc["all"]
    pairs = {"iou": "iou", "instance_f1_50": "f1_50", "instance_ap": "ap", "instance_pq": "pq"}
    pairs |= {"instance_count": "objects", "instance_count_true": "objects_true"}
    for name, column in pairs.items():
        assert logged[f"test/{name}"] == pytest.approx(whole[column], abs=1e-6), name
    assert 0 < logged["test/instance_ap"] < logged["test/instance_f1_50"] < 1
    by_iou = pd.read_csv(folder / "test_instances.csv")
    assert by_iou["ap"].mean() == pytest.approx(whole["ap"], abs=1e-6)
    assert by_iou["tp"].iloc[0] > by_iou["tp"].iloc[-1]


def test_worst_median_and_best_are_drawn(cells: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    named: list[Any] = []
    drawn = segmentation_report.confusion_matrix
    monkeypatch.setattr(
        segmentation_report, "confusion_matrix", lambda counts, names: (named.append(names), drawn(counts, names))[1]
    )
    plain = RecitingKMUNet.sample_figures
    monkeypatch.setattr(
        RecitingKMUNet, "sample_figures", lambda self, s, t: (seen.append((s, t)), plain(self, s, t))[1]
    )
    cli = run(*words(cells, "RecitingKMUNet"))
    folder = Path(cli.trainer.log_dir)
    assert {"confusion.png", "instances.png", "worst_median_best.png", "worst_median_best_objects.png"} <= {
        p.name for p in (folder / "figures").iterdir()
    }
    table = pd.read_csv(folder / "test_images.csv").iloc[:-1].set_index("image").sort_values(["ap", "dice"])
    assert named == [["background", "inside", "border"]]
    ((samples, titles),) = seen
    chosen = [table.index[0], table.index[3], table.index[-1]]
    assert [t.split("\n")[0] for t in titles] == [
        f"{w}: {n}" for w, n in zip(("worst", "median", "best"), chosen, strict=True)
    ]
    for sample, name in zip(samples, chosen, strict=True):
        assert np.array_equal(sample["image"][0], tifffile.imread(cells / "images" / f"{name}.tif"))


def test_two_processes_write_the_same_tables(cells: Path, run: Any) -> None:
    one, two = run(*words(cells, "RecitingKMUNet")), run(*words(cells, "RecitingKMUNet", *PAIR))
    for name in ("test_images.csv", "test_instances.csv"):
        first, second = (pd.read_csv(Path(cli.trainer.log_dir) / name) for cli in (one, two))
        pd.testing.assert_frame_equal(first, second)
    alone, pair = one.trainer.callback_metrics, two.trainer.callback_metrics
    assert set(pair) == set(alone)
    for name in pair:
        assert float(pair[name]) == pytest.approx(float(alone[name]), rel=1e-6), name
        assert "instance_f1" not in name or float(pair[name]) == float(alone[name])
    assert {p.name for p in Path(two.trainer.log_dir, "figures").iterdir()} == {
        p.name for p in Path(one.trainer.log_dir, "figures").iterdir()
    }


def test_classes_have_no_objects_and_a_second_test_starts_anew(cells: Path, tmp_path: Path) -> None:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    model = RecitingKMUNet(num_classes=3, width=2, stages=1, baseline=2)
    keys = []
    for kind in ("instances", "classes", "instances"):
        trainer = Trainer(
            accelerator="cpu",
            logger=CSVLogger(tmp_path / "log"),
            callbacks=[SegmentationReport(figures=False)],
            **quiet,
        )
        masks = "masks" if kind == "instances" else "images"
        data = SegmentationDataModule(
            str(cells), masks=masks, images="images" if kind == "instances" else "masks", normalize="none",
            masks_are=kind, labels=[0, 1, 2], batch_size=1,
        )  # fmt: skip
        if kind == "classes":
            data = SegmentationDataModule(
                str(cells), images="images", masks="classes", normalize="none", labels=[0, 1, 2], batch_size=1
            )
            (cells / "classes").mkdir()
            for path in (cells / "images").iterdir():
                (cells / "classes" / path.name).write_bytes(path.read_bytes())
        (figures,) = trainer.test(model, data, verbose=False)
        keys.append({k for k in figures if "instance" in k})
        table = pd.read_csv(Path(trainer.loggers[0].log_dir) / "test_images.csv")
        assert ("objects" in table) == (kind == "instances")
        assert len(table) == 3
        assert kind == "instances" or table["dice"].tolist() == [1, 1, 1]
    assert keys[0] == keys[2]
    assert len(keys[0]) == 10
    assert not keys[1]


def test_a_module_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[SegmentationReport()], default_root_dir=tmp_path)
    with pytest.raises(ConfigError, match="Line keeps no counts of its samples"):
        trainer.test(Line(), verbose=False)
