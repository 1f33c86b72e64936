"""What Windows, macOS, spreadsheets and people do to names and files."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from callbacks import PredictionWriter
from callbacks.prediction_writer import _write
from datamodules import ImageFolderDataModule, SegmentationDataModule
from datamodules.tables import read_table
from framework.errors import ConfigError, DataError
from models import KOriginsSegmentation
from tests.helpers.small import quiet

NAMES = ["ein Bild", "Öffnung", "two\nlines", "комета", "tab\there"]


def pair(folder, name: str, seed: int = 0, masks: str = "masks") -> None:
    for part in ("images", masks):
        (folder / part).mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (12, 12)).astype(np.uint8)
    Image.fromarray(values).save(folder / "images" / f"{name}.png")
    Image.fromarray(np.where(values > 127, 255, 0).astype(np.uint8)).save(folder / masks / f"{name}.png")


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("above", ["with space", "Größe", "line\nend"])
def test_folders_and_files_of_any_name(tmp_path, above) -> None:
    for seed, name in enumerate(NAMES):
        pair(tmp_path / above, name, seed)
    data = SegmentationDataModule(str(tmp_path / above), val_fraction=0.2, test_fraction=0.2)
    data.setup("fit")
    data.setup("predict")
    assert sum(len(data.datasets[split]) for split in ("train", "val", "predict")) == len(NAMES)
    assert data.sample_name(int(data.datasets["predict"][0]["index"])) in NAMES


def test_companions_of_macos_are_no_pictures(tmp_path) -> None:
    for seed in range(5):
        pair(tmp_path, f"{seed}", seed)
        for part in ("images", "masks"):
            (tmp_path / part / f"._{seed}.png").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    data = SegmentationDataModule(str(tmp_path))
    data.setup("fit")
    train: Any = data.datasets["train"]
    assert [p.name for p in train.pairs] == ["0", "1", "2"]
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / name / "0.png")
        (tmp_path / "tree" / name / "._0.png").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert len(ImageFolderDataModule(str(tmp_path / "tree"), 8, val_fraction=1).configure_dataset("val")) == 2


def test_names_with_dots_stay_three_predictions(tmp_path) -> None:
    for seed in range(3):
        pair(tmp_path, f"scan.00{seed + 1}", seed)
    data = SegmentationDataModule(str(tmp_path), predict_images="images")
    trainer = quiet(tmp_path, callbacks=[PredictionWriter(str(tmp_path / "out"))])
    trainer.predict(KOriginsSegmentation(width=2, origins="none"), data, return_predictions=False)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == [f"scan.00{i}_mask.tif" for i in (1, 2, 3)]
    for name in ("scan.001", "scan.002"):
        _write(tmp_path, f"{name}_image", np.zeros((4, 4), np.uint8))
        _write(tmp_path, f"{name}_image", np.zeros((4, 4), np.float32))
    assert sorted(p.name for p in tmp_path.glob("*_image.*")) == [
        f"scan.00{i}_image.{kind}" for i in (1, 2) for kind in ("npy", "png")
    ]


@pytest.mark.parametrize("value", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros(4, np.float32)])
def test_no_prediction_replaces_a_file(tmp_path, value) -> None:
    _write(tmp_path, "x", value)
    (written,) = tmp_path.iterdir()
    before = written.read_bytes()
    with pytest.raises(ConfigError, match=r"is there already, and no file is replaced"):
        _write(tmp_path, "x", value + 1)
    _write(tmp_path, "x", value)  # a run that goes on
    assert written.read_bytes() == before


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "mark"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_tables_as_spreadsheets_write_them(tmp_path, mark, delimiter, end) -> None:
    rows = [["Path", "Class", " Split "], ["a/ö.png", "a", "train"], ["b/0.png", "b", " val"], ["", "", ""]]
    text = mark + end.join(delimiter.join(row) for row in rows) + end
    (tmp_path / "split.csv").write_bytes(text.encode())
    read = read_table(tmp_path / "split.csv", ("path", "split"))
    assert [row["split"] for row in read] == ["train", "val", ""]
    for name in ("a/ö.png", "b/0.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    data = ImageFolderDataModule(str(tmp_path), 8, split_file="split.csv")
    assert {s: len(part[1]) for s, part in data.parts().items()} == {"train": 1, "val": 1}
    assert data.class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path\na.png\n", "columns path and split"),
        (b"", "cannot be read"),
        (b"path,split\n", "has no rows"),
        (b"path,class,split\na.png,a,train\nb.png\n", "'b.png' is no whole row"),
        (b"path,split\na.png,\n", "'a.png', '' is no whole row"),
        ("path,split\nö,val\n".encode("latin-1"), "cannot be read as a CSV .*utf-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, text, message) -> None:
    (tmp_path / "split.csv").write_bytes(text)
    with pytest.raises(DataError, match=rf"data.split_file: .*split.csv.*{message}"):
        ImageFolderDataModule(str(tmp_path), 8, split_file="split.csv").parts()


# ---------------------------------------------------------------------- one picture on both sides


def test_a_picture_in_train_and_val_is_warned_of(tmp_path) -> None:
    for split, seeds in (("train", (0, 1, 2)), ("val", (3, 1))):
        for seed in seeds:
            pair(tmp_path / split, f"{split}{seed}", seed)
    with pytest.warns(UserWarning, match=r"1 of the 2 pictures of the val split .*val1.png = .*train1.png"):
        SegmentationDataModule(str(tmp_path)).setup("fit")


def test_a_picture_of_a_tree_in_train_and_val_is_warned_of(tmp_path) -> None:
    for split, colours in (("train", (1, 2)), ("val", (2, 3))):
        for colour in colours:
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (colour, 0, 0)).save(tmp_path / split / "a" / f"{split}{colour}.png")
    with pytest.warns(UserWarning, match=r"1 of the 2 pictures of the val split .*val2.png = .*train2.png"):
        ImageFolderDataModule(str(tmp_path), 8).setup("fit")


def test_pictures_that_differ_are_not_warned_of(tmp_path, recwarn) -> None:
    for seed in range(5):
        pair(tmp_path, f"{seed}", seed)
    SegmentationDataModule(str(tmp_path)).setup("fit")
    assert not [w for w in recwarn if "in the train split too" in str(w.message)]
