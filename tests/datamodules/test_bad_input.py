"""What cannot be segmented is refused by name and reason: at the start where a header or a first mask tells it."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from framework.distributed import EpochIndex
from framework.errors import ConfigError, DataError
from models import KMUNet
from tests.datamodules.test_predictions import QUIET

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 4000, (20, 24), dtype=np.uint16)
MASK = (IMAGE > 2000).astype(np.uint8) * 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs `a.tif` to `d.tif`, all of them for training but one."""
    for part, values in (("images", IMAGE), ("masks", MASK)):
        (tmp_path / part).mkdir()
        for name in "abcd":
            tifffile.imwrite(tmp_path / part / f"{name}.tif", values)
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


Spoil = Callable[[Path], Any]
AT_THE_START: dict[str, tuple[Spoil, dict[str, Any], str]] = {
    "channels that differ": (
        lambda f: tifffile.imwrite(f / "images" / "b.tif", np.stack([IMAGE] * 2), metadata={"axes": "CYX"},
                                   photometric="minisblack"),
        {"channels": None}, r"data\.channels: b\.tif has 2 channels, a\.tif has 1; a network takes one number",
    ),
    "channels that are not asked for": (
        lambda f: tifffile.imwrite(f / "images" / "b.tif", np.stack([IMAGE] * 2), metadata={"axes": "CYX"},
                                   photometric="minisblack"),
        {}, r"data\.channels: expected 1, but .*b\.tif has 2",
    ),
    "sizes that differ": (
        lambda f: tifffile.imwrite(f / "images" / "b.tif", IMAGE[:9]), {},
        r"data\.images: b\.tif is \(9, 24\), a\.tif is \(20, 24\); one batch needs one size, give data\.crop",
    ),
    "a picture below the crop": (
        lambda f: tifffile.imwrite(f / "images" / "b.tif", IMAGE[:9]), {"crop": 12},
        r"data\.crop: .*b\.tif is \(9, 24\) .* smaller than the crop of 12",
    ),
    "a file that ends early": (
        lambda f: cut(f / "images" / "b.tif"), {}, r"b\.tif cannot be read as a picture .* may be truncated",
    ),
    "a first mask that ends early": (
        lambda f: cut(f / "masks" / "a.tif"), {}, r"a\.tif cannot be read as a picture .* may be truncated",
    ),
    "an empty mask folder": (
        lambda f: empty(f / "masks"), {},
        r"data\.masks: 4 of the files in .*images have no counterpart of the same name in .*masks, first a\.tif",
    ),
    "an empty image folder": (lambda f: empty(f / "images"), {}, r"data\.images: no image in .*images"),
    "axes that cannot be told": (
        lambda f: [tifffile.imwrite(f / "images" / f"{n}.tif", np.stack([IMAGE] * 3), photometric="minisblack")
                   for n in "abcd"],
        {"batch_size": 1}, r"data\.axes: .*a\.tif has shape \(3, 20, 24\), and the file does not say",
    ),
    "no foreground": (
        lambda f: [tifffile.imwrite(f / "masks" / f"{n}.tif", MASK * 0) for n in "abcd"], {},
        r"data\.masks: none of the 2 training masks holds .*background \(0 \(mask value 0\)\), first .*a\.tif;",
    ),
    "no object": (
        lambda f: [tifffile.imwrite(f / "masks" / f"{n}.tif", MASK * 0) for n in "abcd"],
        {"masks_are": "instances"}, r"none of the 2 training masks holds anything but background \(0\)",
    ),
    "a first label that is no class": (
        lambda f: tifffile.imwrite(f / "masks" / "a.tif", MASK // 3), {},
        r"data\.labels: .*a\.tif holds \[85\], which are not among the labels \[0, 255\]",
    ),
    "a first mask of another size": (
        lambda f: tifffile.imwrite(f / "masks" / "a.tif", MASK[:, 1:]), {},
        r"data\.masks: .*a\.tif: expected its image's size \(20, 24\), got \(20, 23\)",
    ),
}  # fmt: skip
WHEN_READ: dict[str, tuple[Spoil, str]] = {
    "a mask of another size": (
        lambda f: tifffile.imwrite(f / "masks" / "b.tif", MASK[:, 1:]),
        r"data\.masks: .*b\.tif: expected its image's size .*, got \(20, 23\)",
    ),
    "a label that is no class": (
        lambda f: tifffile.imwrite(f / "masks" / "b.tif", MASK // 3), r"data\.labels: .*b\.tif holds \[85\]",
    ),
    "a mask that ends early": (lambda f: cut(f / "masks" / "b.tif"), r"b\.tif cannot be read as a picture"),
    "a float picture with NaN": (
        lambda f: tifffile.imwrite(f / "images" / "b.tif", np.where(IMAGE > 9, IMAGE, np.nan).astype(np.float32)),
        r"data: .*b\.tif holds NaN or infinite values",
    ),
}  # fmt: skip


def data_of(folder: Path, **arguments: Any) -> SegmentationDataModule:
    common: dict[str, Any] = {"val_fraction": 0.25, "test_fraction": 0.25, "batch_size": 2}
    return SegmentationDataModule(str(folder), **{**common, **arguments})


@pytest.mark.parametrize("what", AT_THE_START)
def test_refused_at_the_start(folder: Path, what: str) -> None:
    data_of(folder).setup("fit")
    spoil, arguments, message = AT_THE_START[what]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        data_of(folder, **arguments).setup("fit")


@pytest.mark.parametrize("crop", [None, 12])
@pytest.mark.parametrize("what", WHEN_READ)
def test_refused_when_it_is_read(folder: Path, what: str, crop: int | None) -> None:
    spoil, message = WHEN_READ[what]
    spoil(folder)
    data = data_of(folder, crop=crop, cache=False)
    data.setup("fit")
    with pytest.raises(DataError, match=message):
        [data.datasets["train"][EpochIndex(1, epoch)] for epoch in range(99)]  # a crop sees a part only


def test_headers_alone_are_read_at_the_start_and_one_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = tifffile.TiffPageSeries.asarray
    monkeypatch.setattr(
        tifffile.TiffPageSeries, "asarray", lambda self, *a, **k: (read.append(1), original(self, *a, **k))[1]
    )
    data_of(folder).setup("fit")
    data_of(folder).setup("test")
    assert len(read) == 1


def test_a_picture_smaller_than_the_poolings(folder: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        for file in (folder / part).iterdir():
            tifffile.imwrite(file, tifffile.imread(file)[:5, :7])
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    said = r"data\.images: expected at least 8 x 8 pixels for the network's poolings, got 5 x 7 in .*\.tif; leave"
    with pytest.raises(DataError, match=said):
        trainer.fit(KMUNet(width=2, stages=3), data_of(folder))
    with pytest.raises(ConfigError, match=r"model\.stages: 3 poolings need images of at least 8 x 8, got 5 x 7"):
        KMUNet(width=2, stages=3)(torch.zeros(1, 1, 5, 7))


def test_a_full_disk_while_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"II*\0")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(DataError, match=r"d_mask\.tif cannot be written \(No space left on device\); make room"):
        trainer.predict(KMUNet(width=2, stages=1), data_of(folder), return_predictions=False)
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert left == [".unfinished"]  # the prediction goes on from there
