"""Masks of every kind, folders as people lay them out, and the habits of spreadsheets."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from datamodules import SegmentationDataModule
from datamodules.masks import IGNORED, instance_classes, read_instances, read_mask
from datamodules.reading import Reading
from framework.errors import DataError

CLASSES = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 2]], np.uint8)
IDS = {"labels": [0, 1, 2, 3]}
COLORS = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 0]]
PALETTE = np.array(COLORS, np.uint8)


def mask_of(path: Path, **reading) -> np.ndarray:
    return read_mask([path], Reading(**reading), CLASSES.shape)


def palette_png(path: Path, bits: int = 8) -> None:
    picture = Image.fromarray(CLASSES, "P")
    picture.putpalette(PALETTE.tobytes())
    picture.save(path, bits=bits)


#: file, its writer, the keys with which it gives `CLASSES`
KINDS = [
    ("ids.png", lambda p: Image.fromarray(CLASSES).save(p), IDS),
    ("palette.png", palette_png, IDS),
    ("palette2.png", lambda p: palette_png(p, 2), IDS),
    ("palette.png", palette_png, {"colors": COLORS}),
    ("palette.tif", palette_png, IDS),
    ("rgb.png", lambda p: Image.fromarray(PALETTE[CLASSES]).save(p), {"colors": COLORS}),
    ("rgb.tif", lambda p: tifffile.imwrite(p, PALETTE[CLASSES], photometric="rgb"), {"colors": COLORS}),
    ("grey_as_rgb.png", lambda p: Image.fromarray(np.dstack([CLASSES] * 3)).save(p), IDS),
    ("opaque.png", lambda p: Image.fromarray(np.dstack([*[CLASSES] * 3, CLASSES * 0 + 255])).save(p), IDS),
    ("i16.tif", lambda p: tifffile.imwrite(p, CLASSES.astype(np.int16)), IDS),
    ("u32.tif", lambda p: tifffile.imwrite(p, CLASSES * np.uint32(70000)), {"labels": [0, 70000, 140000, 210000]}),
    ("f32.tif", lambda p: tifffile.imwrite(p, CLASSES.astype(np.float32)), IDS),
    ("bits4.tif", lambda p: tifffile.imwrite(p, CLASSES, bitspersample=4), IDS),
    ("white.tif", lambda p: tifffile.imwrite(p, CLASSES, photometric="miniswhite"), IDS),
    ("array.npy", lambda p: np.save(p, CLASSES), IDS),
    ("ids.pgm", lambda p: p.write_bytes(b"P5 4 3 3\n" + CLASSES.tobytes()), IDS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "reading"), KINDS)
def test_every_kind_of_mask_gives_its_classes(tmp_path: Path, name: str, write, reading: dict) -> None:
    write(tmp_path / name)
    assert np.array_equal(mask_of(tmp_path / name, **reading), CLASSES)


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
@pytest.mark.parametrize(("labels", "flipped"), [([0, 255], 0), ([0, 1], 0), ([255, 0], 1)])
def test_one_bit_is_white_or_one(tmp_path: Path, suffix: str, labels: list[int], flipped: int) -> None:
    bits = CLASSES > 1
    path = tmp_path / f"mask.{suffix}"
    if suffix == "png":
        Image.fromarray(bits).save(path)
    else:
        tifffile.imwrite(path, bits) if suffix == "tif" else np.save(path, bits)
    assert np.array_equal(mask_of(path, labels=labels), bits ^ flipped)


@pytest.mark.parametrize(
    ("write", "reading", "message"),
    [
        (lambda p: Image.fromarray(PALETTE[CLASSES]).save(p), IDS, r"is a mask in colours; give data\.colors"),
        (lambda p: Image.fromarray(np.dstack([CLASSES * 0] * 3 + [CLASSES * 60])).save(p), IDS, "transparent pixels"),
        (lambda p: Image.fromarray(PALETTE[CLASSES]).save(p), {"colors": COLORS[:3]}, r"holds \[\[255, 255, 0\]\]"),
        (lambda p: Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(p), {},
         r"give data\.masks_are: instances"),
        (lambda p: Image.fromarray(CLASSES // 3 * 254).save(p), {}, r"holds \[254\].*in the order of the classes"),
    ],
)  # fmt: skip
def test_masks_that_are_not_certain_are_refused_by_name(tmp_path: Path, write, reading: dict, message: str) -> None:
    write(tmp_path / "x.png")
    with pytest.raises(DataError, match=rf"x\.png .*{message}|.*{message}"):
        mask_of(tmp_path / "x.png", **reading)


@pytest.mark.parametrize("values", [CLASSES + 0.5, np.where(CLASSES == 1, np.nan, CLASSES)])
def test_fractions_are_no_classes(tmp_path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values.astype(np.float32))
    with pytest.raises(DataError, match="with fractions or NaN"):
        mask_of(tmp_path / "x.tif", **IDS)


def test_ignored_pixels_are_class_255(tmp_path: Path) -> None:
    Image.fromarray(np.where(CLASSES == 3, 255, CLASSES).astype(np.uint8)).save(tmp_path / "x.png")
    found = mask_of(tmp_path / "x.png", labels=[0, 1, 2], ignore_label=255)
    assert np.array_equal(found == IGNORED, CLASSES == 3)
    assert np.array_equal(found[CLASSES < 3], CLASSES[CLASSES < 3])


# ---------------------------------------------------------------------- instances


def test_objects_become_inside_and_border_where_they_touch() -> None:
    objects = np.zeros((8, 12), np.int64)
    objects[2:6, 1:5], objects[2:6, 5:9], objects[0, 11] = 7, 90000, 3
    classes = instance_classes(objects, 1)
    border = np.zeros(objects.shape, bool)
    for y in range(8):  # by the definition: two objects within one pixel
        for x in range(12):
            near = objects[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            border[y, x] = len(set(near[near > 0].tolist())) > 1
    assert border.any()
    assert np.array_equal(classes == 2, border)
    assert np.array_equal(classes == 1, (objects > 0) & ~border)


def test_several_files_of_one_image_are_its_objects(tmp_path: Path) -> None:
    paths = []
    for n, columns in enumerate((slice(0, 2), slice(3, 5), slice(6, 7))):
        one = np.zeros((4, 8), np.uint8)
        one[1:3, columns] = 255
        Image.fromarray(one).save(tmp_path / f"{n}.png")
        paths.append(tmp_path / f"{n}.png")
    objects = read_instances(paths, Reading(masks_are="instances"), (4, 8))
    assert objects[1].tolist() == [1, 1, 0, 2, 2, 0, 3, 0]
    assert read_mask(paths, Reading(), (4, 8))[1].tolist() == [1, 1, 0, 1, 1, 0, 1, 0]
    with pytest.raises(DataError, match=r"0\.png and 2 more belong to one image.*two labels"):
        read_mask(paths, Reading(labels=[0, 1, 255]), (4, 8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_labels_of_any_depth_are_objects(tmp_path: Path, dtype: type) -> None:
    top = min(np.iinfo(dtype).max, 2**31 - 1)
    stored = np.array([[0, 1, top], [top, 1, 0]], dtype)
    tifffile.imwrite(tmp_path / "x.tif", stored)
    objects = read_instances([tmp_path / "x.tif"], Reading(masks_are="instances"), (2, 3))
    assert objects.tolist() == [[0, 1, 2], [2, 1, 0]]


# ---------------------------------------------------------------------- folders


def save(path: Path, value: int, side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), value, np.uint8)).save(path)


def names(root: Path, split: str, **arguments) -> list[str]:
    """Names of a split's images; every mask must hold what its image holds."""
    data = SegmentationDataModule(
        str(root), labels=list(range(100)), normalize="none", flip=False, batch_size=1, eval_batch_size=1, **arguments
    )
    dataset = data.configure_dataset(split)  # type: ignore[arg-type]
    for i in range(len(dataset)):  # type: ignore[arg-type]
        sample = dataset[i]
        assert torch.equal(sample["image"][0].long(), sample["mask"])
    return [pair.name for pair in dataset.pairs]  # type: ignore[attr-defined]


LAYOUTS = {
    "one name": ("images/{n}.png", "masks/{n}.png", {}),
    "mask": ("images/{n}.png", "masks/{n}_mask.png", {}),
    "labels, other format": ("images/{n}.tif", "masks/{n}_labels.png", {}),
    "both have an ending": ("images/{n}_img.png", "masks/{n}_mask.png", {}),
    "image has an ending": ("images/{n}_img.png", "masks/{n}.png", {}),
    "cellpose": ("all/{n}.tif", "all/{n}_cp_masks.png", {"images": "all", "masks": "all"}),
    "one folder": ("{n}.png", "{n}_mask.png", {}),
    "a folder for each": ("{n}/images/{n}.png", "{n}/masks/a.png", {}),
    "folder of masks": ("images/{n}.png", "masks/{n}/object.png", {}),
    "own names": ("raw data/{n}.png", "ground truth/{n}.png", {"images": "raw data", "masks": "ground truth"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    image, mask, arguments = LAYOUTS[layout]
    for i, n in enumerate(("s1", "s2", "s10", "s9")):
        save(tmp_path / image.format(n=n), i + 1)
        save(tmp_path / mask.format(n=n), i + 1)
    for folder in {(tmp_path / p.format(n="s1")).parent for p in (image, mask)}:
        (folder / "._s1.png").write_bytes(b"\0\5\x16\7Mac OS X")
        (folder / ".DS_Store").write_bytes(b"x")
    found = names(tmp_path, "train", val_fraction=0.25, test_fraction=0.25, **arguments)
    assert [n.removesuffix("_img") for n in found] == ["s1", "s2"]  # s10 is not before s2
    assert [
        n.removesuffix("_img") for n in names(tmp_path, "test", val_fraction=0.25, test_fraction=0.25, **arguments)
    ] == ["s10"]


@pytest.mark.parametrize("layout", ["{split}/images/{n}.png {split}/masks/{n}.png", "images/{split}/{n}.png "
                                    "masks/{split}/{n}.png", "{split}/{n}.png {split}/{n}_mask.png"])  # fmt: skip
def test_folders_decide_the_split(tmp_path: Path, layout: str) -> None:
    for split, value in (("train", 1), ("Validation", 2), ("test", 3)):
        for path in layout.split():
            save(tmp_path / path.format(split=split, n=f"n{value}"), value)
    assert [names(tmp_path, s) for s in ("train", "val", "test")] == [["n1"], ["n2"], ["n3"]]


def test_an_image_is_never_its_own_mask(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 1)
    with pytest.raises(DataError, match=r"images and masks are both in .*call them x\.png and x_mask\.png"):
        names(tmp_path, "train", images=".", masks=".")
    save(tmp_path / "a_mask.png", 1)
    with pytest.raises(DataError, match="1 of the files .* have no counterpart .*first b.png"):
        names(tmp_path, "train", images=".", masks=".")


def test_folds_part_all_images_and_stay_when_some_are_added(tmp_path: Path) -> None:
    for i in range(11):
        for part in ("images", "masks"):
            save(tmp_path / part / f"{i}.png", i)
    tested = []
    for fold in range(4):
        parts = [set(names(tmp_path, s, fold=fold, folds=4)) for s in ("train", "val", "test")]
        assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts)) == 11
        tested.append(parts[2])
        assert parts == [set(names(tmp_path, s, fold=fold, folds=4, seed=9)) for s in ("train", "val", "test")]
    assert sorted(n for part in tested for n in part) == sorted(map(str, range(11)))
    assert parts[1] == tested[0]
    with pytest.raises(DataError, match="data.folds: 12 folds need as many images, got 11"):
        names(tmp_path, "train", fold=0, folds=12)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffid;split\r\na;Train\r\nb;validation\r\nc;test\r\n",
        "id\tkind\tsplit\na\tx\ttrain \nb\tx\t Val\nc\tx\ttest\n",
        "ID, Split\na.png, train\nb.png, val\nc.png, test\n\n",
        "split,id\ntrain,a\ntrain,a\nvalid,b\ntest,c\n",
    ],
)
def test_habits_of_spreadsheets(tmp_path: Path, text: str) -> None:
    for n in "abc":
        for part in ("images", "masks"):
            save(tmp_path / part / f"{n}.png", 1)
    (tmp_path / "split.csv").write_text(text, encoding="utf-8", newline="")
    assert [names(tmp_path, s, split_file="split.csv") for s in ("train", "val", "test")] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_unicode_text_of_spreadsheets(tmp_path: Path, coding: str) -> None:
    for n in ("ä", "b"):
        for part in ("images", "masks"):
            save(tmp_path / part / f"{n}.png", 1)
    mark = "" if coding == "utf-16" else "\ufeff"
    (tmp_path / "split.csv").write_text(f"{mark}id\tsplit\r\nä\ttrain\r\nb\tval\r\n", encoding=coding, newline="")
    assert [names(tmp_path, s, split_file="split.csv") for s in ("train", "val")] == [["ä"], ["b"]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,train\na,test\nb,val\n", "puts a into train and into test"),
        ("a,train\nb\n", "row 3 .* lacks its split"),
        ("a,train\n", "has no row for 1 images, first b"),
    ],
)
def test_a_split_file_that_contradicts_itself_is_named(tmp_path: Path, rows: str, message: str) -> None:
    for n in "ab":
        for part in ("images", "masks"):
            save(tmp_path / part / f"{n}.png", 1)
    (tmp_path / "split.csv").write_text("id,split\n" + rows)
    with pytest.raises(DataError, match=message):
        names(tmp_path, "train", split_file="split.csv")


def test_images_of_another_split_are_left_out_with_a_warning(tmp_path: Path) -> None:
    for n in "abc":
        for part in ("images", "masks"):
            save(tmp_path / part / f"{n}.png", 1)
    (tmp_path / "split.csv").write_text("id,split\na,train\nb,trian\nc,val\n")
    with pytest.warns(UserWarning, match=r"split.csv leaves 1 of 3 images out, their split is 'trian'"):
        assert names(tmp_path, "train", split_file="split.csv") == ["a"]


def test_rows_of_images_that_are_not_there_are_warned_of(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        save(tmp_path / part / "a.png", 1)
    (tmp_path / "split.csv").write_text("id,split\na,train\nb10,val\nb9,trian\n")
    with pytest.warns(
        UserWarning, match=r"2 of the 3 images that .*split.csv names are not there, first b9; their rows"
    ):
        assert names(tmp_path, "train", split_file="split.csv") == ["a"]


def test_without_a_folder_val_the_last_training_pictures_validate(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("test", 3)):
        for i in range(count):
            for part in ("images", "masks"):
                save(tmp_path / split / part / f"{split}{i}.png", 1)
    assert names(tmp_path, "train", val_fraction=0.3) == [f"train{i}" for i in range(7)]
    assert names(tmp_path, "val", val_fraction=0.3) == ["train7", "train8", "train9"]
    assert names(tmp_path, "test", val_fraction=0.3) == ["test0", "test1", "test2"]
    assert len(names(tmp_path, "train", val_fraction=0)) == 10


def test_a_class_that_training_never_shows_is_named(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "images" / f"{i}.png", i)
        save(tmp_path / "masks" / f"{i}.png", 2 if i == 17 else 0)
    arguments = {"normalize": "none", "val_fraction": 0, "test_fraction": 0}
    mean, _ = SegmentationDataModule(str(tmp_path), labels=[0, 2], **arguments).class_statistics()
    assert mean[1, 0] == 17
    assert 15 < mean[0, 0] < 25  # spread over all images, not the first
    with pytest.raises(DataError, match=r"no training mask holds class 2 \(mask value 9\)"):
        SegmentationDataModule(str(tmp_path), labels=[0, 2, 9], **arguments).class_statistics()
