"""Samples that can be told apart, and masks that go with their images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from lightning.pytorch import Trainer
from PIL import Image

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from datamodules.io import natural
from datamodules.masks import IGNORED, read_instances, read_mask
from datamodules.pairing import find_pairs
from datamodules.reading import Reading
from framework.errors import DataError
from tests.datamodules.test_masks import names, save
from tests.datamodules.test_predictions import QUIET, Threshold


def samples(root: Path, count: int, image: str = "image") -> None:
    """A folder for each sample; what an image holds says whose it is."""
    for i in range(1, count + 1):
        save(root / f"s{i}" / "images" / f"{image}.png", i)
        save(root / f"s{i}" / "masks" / "mask.png", i)


# ---------------------------------------------------------------------- names


def test_folders_of_samples_name_images_that_share_a_name(tmp_path: Path) -> None:
    samples(tmp_path, 11)
    assert [p.name for p in find_pairs(tmp_path, "images", "masks")] == sorted(f"s{i}" for i in range(1, 12))
    found = [n for s in ("train", "val", "test") for n in names(tmp_path, s, val_fraction=0.2, test_fraction=0.2)]
    assert found == [f"s{i}" for i in range(1, 12)]  # s10 behind s9


def test_a_prediction_of_folders_of_samples_has_a_mask_for_each(tmp_path: Path) -> None:
    samples(tmp_path / "set", 4)
    split: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0.9}
    data = SegmentationDataModule(
        str(tmp_path / "set"), normalize="none", batch_size=1, labels=[0, 1, 2, 3, 4], **split
    )
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.predict(Threshold(width=2, stages=1), data, return_predictions=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "objects.csv", "s1_mask.tif", "s2_mask.tif", "s3_mask.tif", "s4_mask.tif",
    ]  # fmt: skip


def test_folds_part_folders_of_samples(tmp_path: Path) -> None:
    samples(tmp_path, 6)
    tested = [names(tmp_path, "test", fold=fold, folds=3) for fold in range(3)]
    assert [len(part) for part in tested] == [2, 2, 2]
    assert sorted(name for part in tested for name in part) == [f"s{i}" for i in range(1, 7)]


def test_a_split_file_knows_folders_of_samples(tmp_path: Path) -> None:
    samples(tmp_path, 3)
    (tmp_path / "split.csv").write_text("id,split\ns3,train\ns1,val\ns2,test\n")
    assert [names(tmp_path, s, split_file="split.csv") for s in ("train", "val", "test")] == [["s3"], ["s1"], ["s2"]]


def test_folds_of_images_with_names_of_their_own_stay_what_they_were(tmp_path: Path) -> None:
    root, flat = tmp_path / "root", tmp_path / "flat"
    for i in range(7):
        save(root / f"{i}" / "images" / f"cell{i}.png", i)
        save(root / f"{i}" / "masks" / "mask.png", i)
    assert [(p.name, p.folder) for p in find_pairs(root, "images", "masks")] == [(f"cell{i}", "") for i in range(7)]
    for i in range(7):
        save(flat / "images" / f"cell{i}.png", i)
        save(flat / "masks" / f"cell{i}.png", i)
    for fold in range(3):
        assert names(root, "test", fold=fold, folds=3) == names(flat, "test", fold=fold, folds=3)


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_name_twice_in_a_split_is_refused(tmp_path: Path, split: str) -> None:
    folders = {"train": "train", "val": "val", "test": "test"}
    for folder in (*folders, {"val": "valid", "test": "testing"}[split]):
        for part in ("images", "masks"):
            save(tmp_path / folder / part / "a.png", 1)
    assert names(tmp_path, "train") == ["a"]  # one name in several splits is none of it
    with pytest.raises(DataError, match=rf"data\.images: expected samples of different names in the {split} split, got "
                                        r"2 called a, .*a\.png and .*a\.png; rename"):  # fmt: skip
        names(tmp_path, split)


def test_slices_have_names_of_their_own(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.tif", np.zeros((2, 8, 8), np.uint8), metadata={"axes": "ZYX"})
        tifffile.imwrite(tmp_path / part / "a_slice1.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match="got 2 called a_slice1"):
        names(tmp_path, "train", slices="each", val_fraction=0, test_fraction=0)


def test_a_folder_of_one_sample_has_one_image(tmp_path: Path) -> None:
    samples(tmp_path, 2)
    save(tmp_path / "s2" / "images" / "other.png", 2)
    with pytest.raises(DataError, match=r"data\.images: expected one image in .*s2/images, .* such as other\.png"):
        names(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("cells_10²", ["cells_", 10, "²"]), ("a①", ["a①"]), ("x٣", ["x", 3]), ("10_B", [10, "_b"])],
)
def test_digits_of_every_kind_are_names(name: str, parts: list[str | int]) -> None:
    assert natural(name) == [(int(isinstance(part, str)), part) for part in parts]


# ---------------------------------------------------------------------- several masks of one image


def read_several(folder: Path, values: list[list[int]], **reading: Any) -> list[int]:
    paths = []
    for i, row in enumerate(values):
        paths.append(folder / f"{i}.png")
        Image.fromarray(np.array([row], np.uint8)).save(paths[-1])
    return read_mask(paths, Reading(**reading), (1, len(values[0])))[0].tolist()


@pytest.mark.parametrize("turned", [False, True])
def test_several_masks_are_read_as_each_of_them(tmp_path: Path, turned: bool) -> None:
    rows = [[0, 255, 0, 255, 128, 128, 0], [0, 0, 255, 255, 0, 255, 128]]
    rows = rows[::-1] if turned else rows
    found = read_several(tmp_path, rows, ignore_label=128)
    assert found == [0, 1, 1, 1, IGNORED, 1, IGNORED]
    # with the labels the other way round: a pixel is class 1 where any of them is 0
    assert read_several(tmp_path, rows, labels=[255, 0], ignore_label=128)[:4] == [1, 1, 1, 0]
    with pytest.raises(DataError, match=r"data\.labels: .*holds \[128\]"):
        read_several(tmp_path, rows)


def test_several_masks_of_colours_need_two_of_them(tmp_path: Path) -> None:
    paths = []
    for i, colour in enumerate(([255, 0, 0], [0, 0, 0])):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.array([[colour]], np.uint8)).save(paths[-1])
    assert read_mask(paths, Reading(colors=[[0, 0, 0], [255, 0, 0]]), (1, 1)).tolist() == [[1]]
    with pytest.raises(DataError, match="several masks need two labels or colours"):
        read_mask(paths, Reading(colors=[[0, 0, 0], [255, 0, 0], [0, 255, 0]]), (1, 1))


@pytest.mark.parametrize("turned", [False, True])
def test_an_object_of_one_file_is_one_whatever_another_leaves_open(tmp_path: Path, turned: bool) -> None:
    paths = []
    for i, row in enumerate(([0, 7, 128, 128], [128, 128, 0, 9])):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.array([row], np.uint8)).save(paths[-1])
    reading = Reading(masks_are="instances", ignore_label=128)
    objects = read_instances(paths[::-1] if turned else paths, reading, (1, 4))[0]
    assert (objects > 0).tolist() == [False, True, False, True]
    assert objects[[0, 2]].tolist() == [-1, -1]


# ---------------------------------------------------------------------- slices


@pytest.mark.parametrize(("slices", "planes"), [(3, 5), (3, 1), (1, 3), (3, 2)])
def test_a_mask_has_as_many_slices_as_its_image(tmp_path: Path, slices: int, planes: int) -> None:
    for part, count in (("images", slices), ("masks", planes)):
        (tmp_path / part).mkdir()
        for name, n in (("a", 3), ("b", count)):
            options = {"metadata": {"axes": "ZYX"}} if n > 1 else {}
            pixels = np.ones((n, 8, 8), np.uint8).squeeze()
            tifffile.imwrite(tmp_path / part / f"{name}.tif", pixels, photometric="minisblack", **options)
    data = SegmentationDataModule(
        str(tmp_path), slices="each", labels=[0, 1], val_fraction=0, test_fraction=0, batch_size=1
    )
    message = rf"data\.slices: expected {slices} slices in the mask .*b\.tif, as many as its image .* got {planes}"
    with pytest.raises(DataError, match=message):
        data.setup("fit")
