"""What is white, what is transparent, and in which order bytes lie: numbers of a file that are not its pixels'."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import framework
from datamodules import ImageFolderDataModule, SegmentationDataModule
from datamodules.io import open_picture, read_rgb, stem
from datamodules.pairing import Pair
from datamodules.planes import image_of, read_image, white_of
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized
from datamodules.statistics import of_files
from datamodules.windows import windows
from framework.errors import DataError
from models import KMUNet
from tests.datamodules.test_formats import zarr_of
from tests.datamodules.test_predictions import QUIET

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------- alpha


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [2, 4])
def test_colours_multiplied_by_alpha_are_not_multiplied_again(tmp_path: Path, dtype: Any, samples: int) -> None:
    top = np.iinfo(dtype).max
    straight = RNG.integers(0, top, (6, 8, samples), dtype=dtype, endpoint=True)
    alpha = straight[..., -1:] / top
    stored = straight.copy()
    stored[..., :-1] = np.rint(straight[..., :-1] * alpha)
    files = {"straight.tif": (straight, "unassalpha"), "associated.tif": (stored, "assocalpha")}
    shown = {}
    for name, (pixels, kind) in files.items():
        how = "rgb" if samples == 4 else "minisblack"
        tifffile.imwrite(tmp_path / name, pixels, photometric=how, extrasamples=[kind], planarconfig="contig")
        shown[name] = read_rgb(tmp_path / name).astype(int)
    expected = (straight[..., :-1] / top * alpha + 1 - alpha) * 255
    assert np.array_equal(shown["straight.tif"], np.broadcast_to(np.rint(expected), (6, 8, 3)))
    assert np.abs(shown["associated.tif"] - expected).max() <= 1  # as well as 8 bits can hold it


def test_red_at_half_is_pink(tmp_path: Path) -> None:
    for kind, red in (("assocalpha", 128), ("unassalpha", 255)):
        pixels = np.full((4, 4, 4), (red, 0, 0, 128), np.uint8)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=[kind])
        assert read_rgb(tmp_path / "x.tif")[0, 0].tolist() == [255, 127, 127], kind


def test_ink_that_is_multiplied_by_alpha_lies_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0], [255, 255], [128, 128], [0, 255]]], np.uint8).repeat(4, 0)
    tifffile.imwrite(
        tmp_path / "x.tif", pixels, photometric="miniswhite", extrasamples=["assocalpha"], planarconfig="contig"
    )
    assert read_rgb(tmp_path / "x.tif")[0, :, 0].tolist() == [255, 0, 127, 255]


def png(path: Path, bits: int, kind: int, rows: list[bytes], width: int, clear: tuple[int, ...]) -> None:
    """A PNG with a tRNS chunk, written by the standard alone."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)),
        (b"tRNS", struct.pack(f">{len(clear)}H", *clear)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


#: bits, colour type, one row, its width, the transparent value, what is stored and what is shown
CLEAR: dict[str, tuple[int, int, bytes, int, tuple[int, ...], list[Any], list[Any]]] = {
    "rgb 8": (8, 2, bytes([10, 20, 30, 10, 20, 31]), 2, (10, 20, 30), [[10, 20, 30], [10, 20, 31]],
              [[255, 255, 255], [10, 20, 31]]),
    "grey 8": (8, 0, bytes([7, 8]), 2, (7,), [7, 8], [[255] * 3, [8] * 3]),
    "grey 4": (4, 0, bytes([0x5A]), 2, (5,), [5, 10], [[255] * 3, [170] * 3]),
    "grey 2": (2, 0, bytes([0b01100000]), 2, (1,), [1, 2], [[255] * 3, [170] * 3]),
    "grey 1": (1, 0, bytes([0b01000000]), 2, (0,), [0, 1], [[255] * 3, [255] * 3]),
    "grey 1, white": (1, 0, bytes([0b01000000]), 2, (1,), [0, 1], [[0] * 3, [255] * 3]),
    "grey 16": (16, 0, struct.pack(">HH", 300, 0x0101), 2, (300,), [300, 257], [[255] * 3, [1] * 3]),
    "rgb 16": (16, 2, struct.pack(">6H", 256, 2, 3, 256, 2, 0), 2, (256, 2, 3), [[256, 2, 3], [256, 2, 0]],
               [[255] * 3, [1, 0, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_the_transparent_colour_of_a_png_lies_on_white(tmp_path: Path, name: str) -> None:
    bits, kind, row, width, clear, stored, shown = CLEAR[name]
    png(tmp_path / "x.png", bits, kind, [row], width, clear)
    assert read_rgb(tmp_path / "x.png")[0].tolist() == shown
    channels = read_image(tmp_path / "x.png", None, None)[:, 0]  # alpha is left out
    assert channels.T.tolist() == [np.atleast_1d(value).tolist() for value in stored]
    with Image.open(tmp_path / "x.png") as file:
        assert "transparency" in file.info  # the file is what it is meant to be


# ---------------------------------------------------------------------- depth


@pytest.mark.parametrize("top", [1, 100, 254, 255, 1000, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6", "P2"])
def test_white_of_a_pnm_is_the_largest_value_that_it_names(tmp_path: Path, top: int, kind: str) -> None:
    values = np.array([top, top // 2, 0])
    pixels = values if kind != "P6" else values.repeat(3)
    packed = pixels.astype(">u2" if top > 255 else ">u1").tobytes()
    body = " ".join(map(str, pixels)).encode() if kind == "P2" else packed
    (tmp_path / "x.pnm").write_bytes(f"{kind}\n3 1\n{top}\n".encode() + body)
    expected = np.rint(values / top * 255)
    assert np.array_equal(read_rgb(tmp_path / "x.pnm")[0], expected[:, None].repeat(3, 1))
    assert np.array_equal(read_image(tmp_path / "x.pnm", 1 if kind != "P6" else 3, None)[0, 0], values)


def test_depth_of_a_pnm_is_its_white(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "images" / "a.pgm").write_bytes(b"P5 2 1 100\n" + bytes([100, 50]))
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "masks" / "a.png")
    words: dict[str, Any] = {"normalize": "depth", "val_fraction": 0, "test_fraction": 0, "flip": False}
    for on_device in (False, True):
        data = SegmentationDataModule(str(tmp_path), on_device=on_device, **words)
        data.setup("fit")
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert batch["image"].flatten().tolist() == [1, 0.5], on_device
        assert set(batch) == {"image", "mask", "index"}
    bright = SegmentationDataModule(str(tmp_path), exposure=[3.0, 3.0], **words).configure_dataset("train")[0]
    assert bright["image"].flatten().tolist() == [1, 1]  # cut at the file's white


@pytest.mark.parametrize(("top", "bits"), [(100, None), (127, 7), (255, 8), (65535, 16)])
def test_a_checkpoint_knows_the_bits_of_its_files_where_white_is_their_largest_number(
    tmp_path: Path, top: int, bits: int | None
) -> None:
    (tmp_path / "a.pgm").write_bytes(f"P2 2 1 {top} {top} 0".encode())
    found = of_files([Pair(0, tmp_path / "a.pgm")], Reading(normalize="depth"))
    assert found == ({} if bits is None else {"bits_of_files": bits})


def test_depth_of_a_palette_is_that_of_its_colours(tmp_path: Path) -> None:
    table = np.zeros((3, 65536), np.uint16)
    table[:, 300] = 65535
    tifffile.imwrite(tmp_path / "x.tif", np.full((4, 4), 300, np.uint16), photometric="palette", colormap=table)
    picture = open_picture(tmp_path / "x.tif")
    reading = Reading(normalize="depth", channels=3)
    found = normalized(image_of(picture, 3, None), reading, white_of(picture, reading))
    assert np.array_equal(found, np.ones((3, 4, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
@pytest.mark.parametrize("way", ["samples", "windows", "load", "load by windows", "array"])
def test_depth_needs_a_depth_wherever_pictures_are_read(tmp_path: Path, dtype: Any, way: str, loaded: Any) -> None:
    pixels = RNG.integers(0, 100, (24, 24)).astype(dtype)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    path = tmp_path / "images" / "a.tif"
    tifffile.imwrite(path, pixels)
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "masks" / "a.png")
    name = "the array" if way == "array" else r".*a\.tif"
    message = rf"data\.normalize: depth needs .*8 or 16 bits, but {name} holds {np.dtype(dtype)}"
    words: dict[str, Any] = {"normalize": "depth", "val_fraction": 0, "test_fraction": 0}
    ways: dict[str, Callable[[], Any]] = {
        "samples": lambda: SegmentationDataModule(str(tmp_path), **words).configure_dataset("train")[0],
        "windows": lambda: windows(open_picture(path), Reading(normalize="depth")),
        "load": lambda: loaded.predict(path, tile=None),
        "load by windows": lambda: loaded.predict(path, tile=16),
        "array": lambda: loaded.predict(pixels),
    }
    with pytest.raises(DataError, match=message):
        ways[way]()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A network that was trained on pictures by their depth."""
    from lightning.pytorch import Trainer

    root = tmp_path_factory.mktemp("trained")
    for part in ("images", "masks"):
        (root / part).mkdir()
        for i in range(2):
            values = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
            values = values if part == "images" else np.where(values > 99, 255, 0).astype(np.uint8)
            Image.fromarray(values).save(root / part / f"{i}.png")
    trainer = Trainer(**QUIET, default_root_dir=root)
    data = SegmentationDataModule(str(root), normalize="depth", val_fraction=0, test_fraction=0, batch_size=1)
    trainer.fit(KMUNet(width=2, stages=1), data)
    trainer.save_checkpoint(root / "x.ckpt")
    return framework.load(root / "x.ckpt")


def test_arrays_of_either_order_of_bytes_are_one(loaded: Any) -> None:
    pixels = RNG.integers(0, 2**16, (16, 16), dtype=np.uint16)
    assert np.array_equal(loaded.predict(pixels), loaded.predict(pixels.astype(">u2")))


# ---------------------------------------------------------------------- order of bytes


@pytest.mark.parametrize("kind", ["npy", "v04.ome.zarr", "v05.ome.zarr", "tif"])
def test_the_order_of_bytes_says_nothing_of_a_depth(tmp_path: Path, kind: str) -> None:
    pixels = RNG.integers(0, 2**16, (20, 28), dtype=np.uint16).astype(">u2")
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    path = tmp_path / "images" / f"a.{kind}"
    if kind == "npy":
        np.save(path, pixels)
    elif kind == "tif":
        tifffile.imwrite(path, pixels, byteorder=">")
    else:
        zarr_of(pixels, "yx", "0.4" if "04" in kind else "0.5")(path)
    picture = open_picture(path)
    assert picture.dtype == np.uint16
    for read in (picture.pixels(), picture.cropped(0, 20, 0, 28).pixels()):
        assert np.array_equal(read, pixels)
    assert np.array_equal(read_image(path, 1, 16)[0], pixels.astype(np.float32))
    Image.fromarray(np.zeros((20, 28), np.uint8)).save(tmp_path / "masks" / f"{stem(path.name)}.png")
    data = SegmentationDataModule(str(tmp_path), normalize="none", val_fraction=0, test_fraction=0)
    data.datasets["train"] = data.configure_dataset("train")
    assert data.preprocessing()["bit_depth"] == 16


# ---------------------------------------------------------------------- large pictures, and Pillow's limit


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "pbm"])
def test_pillows_limit_is_not_ours(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.full((40, 50), 200, np.uint8)).convert("1" if kind == "pbm" else "L").save(path)
    for most in (1500, 900):  # Pillow warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert open_picture(path).size == (40, 50)
        assert read_rgb(path).shape == (40, 50, 3)
        assert most == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_a_format_that_looks_at_pillows_limit_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "x.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(
        DataError, match=r"x\.webp has more pixels than Pillow takes in this format, 1800; save it as PNG"
    ):
        read_rgb(tmp_path / "x.webp")


def test_a_large_png_is_no_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(imagecodecs.png_encode(np.zeros((1, 1), np.uint8)))
    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 0, 0, 0, 0)
    head = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(path.read_bytes()[:8] + head + path.read_bytes()[33:])
    assert open_picture(path).size == (14000, 14000)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture at all, but some words")
    with pytest.raises(DataError, match=r"x\.png cannot be read as a picture \(UnidentifiedImageError: cannot"):
        read_rgb(tmp_path / "x.png")


# ---------------------------------------------------------------------- labels that are not there


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_flat_part_beside_class_folders_is_refused(tmp_path: Path, split: str) -> None:
    for part in ("train", "val", "test"):
        for name in "ab":
            folder = tmp_path / part if part == split else tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (len(part), ord(name), 0)).save(folder / f"{name}.png")
    data = ImageFolderDataModule(str(tmp_path), 8)
    message = rf"data\.root: expected class folders in the {split} part of .* got a flat folder"
    with pytest.raises(DataError, match=message):
        data.setup("fit" if split == "val" else "test")
    if split == "test":
        data.setup("fit")
        assert "label" not in data.configure_dataset("predict")[0]
