"""Training crops: only the window of the file is read where the format allows it, and the sample is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from datamodules import SegmentationDataModule
from datamodules.augmentation import Augmentation, changed, cut, draw
from datamodules.segmentation_data import SegmentationFiles
from framework.distributed import EpochIndex
from tests.datamodules.test_formats import zarr_of

RNG = np.random.default_rng(0)
SIDES = (150, 190)
GREY = RNG.integers(0, 60000, SIDES, dtype=np.uint16)
TWO = RNG.integers(0, 60000, (2, *SIDES), dtype=np.uint16)
RGB = RNG.integers(0, 256, (*SIDES, 3), dtype=np.uint8)
OBJECTS = (np.add.outer(np.arange(SIDES[0]) // 11 * 20, np.arange(SIDES[1]) // 13) * (GREY > 9000)).astype(np.uint16)

Write = Callable[[Path], Any]
TILED: dict[str, Any] = {"tile": (32, 32), "compression": "zlib"}
FILES: dict[str, tuple[str, Write, dict[str, Any]]] = {
    "mapped": ("x.tif", lambda p: tifffile.imwrite(p, GREY), {}),
    "tiles": ("x.tif", lambda p: tifffile.imwrite(p, GREY, **TILED), {}),
    "strips": ("x.tif", lambda p: tifffile.imwrite(p, GREY, rowsperstrip=8, compression="lzw"), {}),
    "channels": (
        "x.tif", lambda p: tifffile.imwrite(p, TWO, photometric="minisblack", metadata={"axes": "CYX"}, **TILED),
        {"channels": [1, 0]},
    ),
    "grey of colour": ("x.tif", lambda p: tifffile.imwrite(p, RGB, photometric="rgb", **TILED), {"channels": 1}),
    "floats": ("x.tif", lambda p: tifffile.imwrite(p, GREY.astype(np.float32) / 7, **TILED), {}),
    "array": ("x.npy", lambda p: np.save(p, np.moveaxis(TWO, 0, -1)), {"channels": 2, "axes": "YXC"}),
    "zarr": ("x.ome.zarr", zarr_of(TWO, "cyx", "0.5"), {"channels": None}),
    "shrunk": ("x.tif", lambda p: tifffile.imwrite(p, GREY, **TILED), {"downscale": 3}),
}  # fmt: skip
STRENGTHS = {
    "crop": {"flip": False},
    "all": {"rotate": 60.0, "scale": 0.4, "elastic": 3.0, "intensity": 0.3},
}


def data_of(root: Path, name: str, **arguments: Any) -> SegmentationFiles:
    """One picture of `FILES` and its objects, as the training set."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    file, write, own = FILES[name]
    if not (root / "images" / file).exists():
        write(root / "images" / file)
        tifffile.imwrite(root / "masks" / "x_labels.tif", OBJECTS, **TILED)
    common: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0, "batch_size": 1, "masks_are": "instances"}
    module = SegmentationDataModule(str(root), **common, **own, **arguments)
    return module.configure_dataset("train")  # type: ignore[return-value]


@pytest.mark.parametrize("strengths", STRENGTHS)
@pytest.mark.parametrize("name", FILES)
def test_a_window_gives_the_sample_of_the_whole_picture_bit_by_bit(tmp_path: Path, name: str, strengths: str) -> None:
    arguments: dict[str, Any] = {"crop": 33, "normalize": "zscore", "border": 2, **STRENGTHS[strengths]}
    windowed = data_of(tmp_path, name, cache=False, **arguments)
    whole = data_of(tmp_path, name, cache=True, **arguments)
    decoded = []
    read = SegmentationFiles._read
    for epoch in range(12):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SegmentationFiles, "_read", lambda self, *a: (decoded.append(len(a)), read(self, *a))[1])
            part = windowed[EpochIndex(0, epoch)]
        full = whole[EpochIndex(0, epoch)]
        assert torch.equal(part["image"], full["image"]), epoch
        assert torch.equal(part["mask"], full["mask"]), epoch
        assert part["image"].shape[1:] == (33, 33)
    assert set(decoded) == {3}, "the whole picture was read"


@pytest.mark.parametrize("seed", range(40))
def test_the_box_of_a_change_holds_whatever_it_looks_at(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(5, 60, 2).tolist())
    crop = int(rng.integers(1, min(size) + 1))
    settings = Augmentation(True, rng.uniform(0, 180), rng.uniform(0, 3), rng.uniform(0, 8))
    image = rng.random((2, *size), np.float32)
    mask = rng.integers(0, 9, size, dtype=np.uint8)
    change = draw(size, settings, crop, np.random.default_rng(seed))  # type: ignore[arg-type]
    outside = np.full_like(image, np.nan)
    y0, y1, x0, x1 = change.box
    outside[:, y0:y1, x0:x1] = cut(image, change.box)
    got = changed(cut(outside, change.box), cut(mask, change.box), change)
    assert change.places is not None
    places = change.places + np.array([y0, x0])[:, None, None]  # of the whole picture, by scipy's own mirroring
    expected = np.stack([ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in image])
    classes = ndimage.map_coordinates(mask, places, order=0, mode="reflect")
    for axis in (0, 1):
        if change.mirror[axis]:
            expected, classes = np.flip(expected, axis + 1), np.flip(classes, axis)
    assert np.array_equal(got[0], expected)
    assert np.array_equal(got[1], classes)


def test_a_crop_of_a_tiled_picture_reads_the_tiles_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data_of(tmp_path, "tiles", crop=32, cache=False, flip=False)
    read: list[int] = []
    original = tifffile.FileHandle.read

    def counted(self: Any, *args: Any, **kwargs: Any) -> bytes:
        data = original(self, *args, **kwargs)
        read.append(len(data))
        return data

    monkeypatch.setattr(tifffile.FileHandle, "read", counted)
    for epoch in range(8):
        dataset[EpochIndex(0, epoch)]
    tiles = [n for n in read if n > 600]  # of 2048 bytes noise does not become fewer; objects become few
    image_bytes = GREY.nbytes
    # 32 pixels touch at most 2 x 2 tiles of 30; the mask's window is a border wider and touches at most 3 x 3
    assert sum(tiles) <= 8 * (4 * 2300 + 9 * 2300) < 8 * 2 * image_bytes
    assert len([n for n in tiles if n > 1900]) <= 8 * 4


@pytest.mark.parametrize("name", ["mapped", "array"])
def test_a_crop_of_a_mapped_picture_decodes_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data_of(tmp_path, name, crop=16, cache=False)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("decoded"))
    load = np.load

    def mapped(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["mmap_mode"] == "r"
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", mapped)
    assert dataset[EpochIndex(0, 3)]["image"].shape[1:] == (16, 16)


def test_a_crop_of_a_zarr_reads_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr = pytest.importorskip("zarr")
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    group = zarr.open_group(str(tmp_path / "images" / "x.ome.zarr"), mode="w", zarr_format=2)
    group.create_array("0", data=GREY, chunks=(16, 16))
    axes = [{"name": a, "type": "space"} for a in "yx"]
    group.attrs.update({"multiscales": [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]})
    tifffile.imwrite(tmp_path / "masks" / "x.tif", OBJECTS)
    dataset = data_of(tmp_path, "zarr", crop=16, cache=False, flip=False)
    asked: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    dataset[EpochIndex(0, 1)]
    chunks = [key for key in asked if key[-1].isdigit()]
    assert 1 <= len(chunks) <= 4


def test_the_cache_is_bounded_and_what_has_no_room_is_read_by_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    sides = {"a": 300, "b": 600, "c": 300}  # 0.43, 1.7 and 0.43 MB with their masks
    for name, side in sides.items():
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", RNG.integers(0, 999, (side, side), dtype=np.uint16))
        tifffile.imwrite(tmp_path / "masks" / f"{name}.tif", RNG.integers(0, 2, (side, side), dtype=np.uint8))
    arguments: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0, "crop": 24, "labels": [0, 1]}
    bounded, free = (
        SegmentationDataModule(str(tmp_path), cache=cache, **arguments).configure_dataset("train")
        for cache in (1, True)
    )
    for epoch in range(3):
        for i in range(3):
            assert torch.equal(bounded[EpochIndex(i, epoch)]["image"], free[EpochIndex(i, epoch)]["image"])
    assert set(bounded._kept) == {0, 2}  # type: ignore[attr-defined]
    held = sum(image.nbytes + mask.nbytes for image, mask, _ in bounded._kept.values())  # type: ignore[attr-defined]
    assert held == bounded._used <= 2**20  # type: ignore[attr-defined]
    assert set(free._kept) == {0, 1, 2}  # type: ignore[attr-defined]
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("decoded"))
    bounded[EpochIndex(1, 9)]
