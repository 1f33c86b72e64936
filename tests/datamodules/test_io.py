"""One picture layer: one file gives one picture to every data module, and nothing that is no picture is opened."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules import ImageFolderDataModule, KodakDataModule, picture
from datamodules.io import list_pictures, natural, open_picture, read_rgb, stem
from framework.errors import DataError
from tests.png import write_png16

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 8, 4), dtype=np.uint16)
SMALL = RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)


def png_of(bits: int, values: np.ndarray, path: Path) -> Path:
    """A grey PNG of 1, 2 or 4 bits."""
    height, width = values.shape
    rows = b""
    for row in values:
        binary = "".join(f"{v:0{bits}b}" for v in row)
        binary += "0" * (-len(binary) % 8)
        rows += b"\0" + int(binary, 2).to_bytes(len(binary) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# ---------------------------------------------------------------------- RGB of 8 bits


def write_every_kind(folder: Path) -> dict[str, np.ndarray]:
    """Files of every kind that is a picture to look at, and their colours as float64 in [0, 255]."""
    grey = SMALL[..., 0]
    over = lambda colour, alpha: colour * alpha + 255 * (1 - alpha)  # noqa: E731
    expected: dict[str, np.ndarray] = {}
    Image.fromarray(grey).save(folder / "grey.png")
    expected["grey.png"] = grey[..., None].repeat(3, 2)
    Image.fromarray(SMALL[..., :3]).save(folder / "rgb.png")
    expected["rgb.png"] = SMALL[..., :3]
    Image.fromarray(SMALL).save(folder / "rgba.png")
    expected["rgba.png"] = over(SMALL[..., :3], SMALL[..., 3:] / 255)
    Image.fromarray(SMALL[..., :2].copy(), "LA").save(folder / "la.png")
    expected["la.png"] = over(grey[..., None], SMALL[..., 1:2] / 255).repeat(3, 2)
    write_png16(folder / "deep.png", DEEP[..., :3])
    expected["deep.png"] = DEEP[..., :3] / 257
    write_png16(folder / "deep_grey.png", DEEP[..., 0])
    expected["deep_grey.png"] = (DEEP[..., :1] / 257).repeat(3, 2)
    tifffile.imwrite(folder / "deep.tif", DEEP, photometric="rgb", extrasamples=["unassalpha"])
    expected["deep.tif"] = over(DEEP[..., :3] / 257, DEEP[..., 3:] / 65535)
    twelve = DEEP[..., 0] >> 4
    tifffile.imwrite(folder / "twelve.tif", twelve, bitspersample=12, photometric="minisblack")
    expected["twelve.tif"] = (twelve / 4095 * 255)[..., None].repeat(3, 2)
    tifffile.imwrite(folder / "white.tif", grey, photometric="miniswhite")
    expected["white.tif"] = 255 - expected["grey.png"]
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indexed = Image.fromarray(grey, "P")
    indexed.putpalette(palette.tobytes())
    indexed.save(folder / "palette.png")
    indexed.save(folder / "palette.tif")
    expected["palette.png"] = expected["palette.tif"] = palette[grey]
    indexed.save(folder / "clear.png", transparency=bytes(range(256)))
    expected["clear.png"] = over(palette[grey], grey[..., None] / 255)
    flat = np.zeros((6, 8, 4), np.uint8)
    flat[..., 3] = 55
    Image.fromarray(flat, "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(flat, "CMYK").save(folder / "cmyk.tif")
    expected["cmyk.jpg"] = expected["cmyk.tif"] = np.full((6, 8, 3), 200)
    for bits in (1, 2, 4):
        values = grey >> (8 - bits)
        png_of(bits, values, folder / f"bits{bits}.png")
        expected[f"bits{bits}.png"] = (values / (2**bits - 1) * 255)[..., None].repeat(3, 2)
    (folder / "deep.ppm").write_bytes(b"P6\n# a comment\n8 6\n65535\n" + DEEP[..., :3].astype(">u2").tobytes())
    expected["deep.ppm"] = DEEP[..., :3] / 257
    return expected


def test_one_file_is_one_picture_in_every_data_module(tmp_path: Path) -> None:
    expected = write_every_kind(tmp_path)
    assert len(expected) >= 18
    folder = ImageFolderDataModule(str(tmp_path), image_size=6, resize=6, eval_crop="center", val_fraction=1)
    dataset = folder.configure_dataset("val")
    in_folder = {Path(p).name: dataset[i]["image"] for i, p in enumerate(list_pictures(tmp_path))}
    for name, values in expected.items():
        right = np.rint(values).astype(np.uint8)
        assert np.array_equal(read_rgb(tmp_path / name), right), name
        kodak = KodakDataModule(str(tmp_path), images=name)
        kodak.setup("fit")
        assert np.array_equal(kodak.datasets["train"].pixels[0], right), name  # type: ignore[attr-defined]
        assert np.array_equal((in_folder[name] * 255).round().numpy(), right[:, 1:7].transpose(2, 0, 1)), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_orientation_is_honoured(tmp_path: Path, orientation: int, kind: str) -> None:
    blocks = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, blocks, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    else:
        Image.fromarray(blocks).save(path, exif=exif, **({"quality": 100} if kind == "jpg" else {}))
    # numpy's own turns, by the definition of the tag: which side of the scene row 0 and column 0 show
    upright = {
        1: blocks,
        2: blocks[:, ::-1],
        3: np.rot90(blocks, 2),
        4: blocks[::-1],
        5: blocks.T,
        6: np.rot90(blocks, -1),
        7: np.rot90(blocks, 2).T,
        8: np.rot90(blocks),
    }[orientation]
    assert open_picture(path).size == upright.shape
    assert np.abs(read_rgb(path)[..., 0].astype(int) - upright).max() <= 2


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("float", lambda p: tifffile.imwrite(p, np.full((4, 4), np.nan, np.float32)), "8 or 16 bits .*, got float32"),
        ("signed", lambda p: tifffile.imwrite(p, np.zeros((4, 4), np.int16)), "8 or 16 bits .*, got int16"),
        ("pages", lambda p: tifffile.imwrite(p, SMALL[:3], photometric="minisblack"),
         "one grey, RGB or RGBA picture, got 3 pages"),
        ("five", lambda p: tifffile.imwrite(p, SMALL[:5], metadata={"axes": "CYX"}, photometric="minisblack"),
         "one grey, RGB or RGBA picture, got 5 channels"),
        ("lab", lambda p: Image.new("LAB", (4, 4)).save(p), "CIELAB"),
        ("scenes", lambda p: _two_pictures(p), "holds 2 pictures"),
    ],
)  # fmt: skip
def test_what_is_no_picture_to_look_at_is_refused_by_name(tmp_path: Path, name: str, write, message: str) -> None:
    path = tmp_path / f"{name}.tif"
    write(path)
    with pytest.raises(DataError, match=rf"{name}\.tif:? .*{message}"):
        read_rgb(path)


def _two_pictures(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((4, 4), np.uint8))
        file.write(np.zeros((8, 8), np.uint8))


# ---------------------------------------------------------------------- files that are broken or no files


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_a_tiff_that_ends_early_is_named(tmp_path: Path, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", RNG.integers(0, 99, (64, 64), dtype=np.uint8), compression=compression)
    data = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:-200])
    with pytest.raises(DataError, match=r"cut\.tif cannot be read as a picture .*restore or remove it"):
        read_rgb(tmp_path / "cut.tif")


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert [Path(p).name for p in list_pictures(tmp_path)] == ["a.png"]
    with pytest.raises(DataError, match=r"pipe\.png is no regular file"):
        read_rgb(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file"):
        read_rgb(tmp_path / "gone.png")


def test_size_is_looked_at_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST_BYTES", 2**20)
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((2048, 2048), np.uint8), compression="zlib")
    Image.new("RGB", (1024, 1024)).save(tmp_path / "bomb.png")
    for name in ("bomb.tif", "bomb.png"):
        with pytest.raises(DataError, match=rf"{name} is \d+ x .* GiB when decoded; at most"):
            read_rgb(tmp_path / name)


def test_each_folder_is_listed_once_and_links_into_the_tree_are_passed_over(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "a", root / "b" / "deep", other):
        folder.mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / "x.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "again").symlink_to(root / "a")
    (root / "a" / "sibling").symlink_to(root / "b")
    (root / "b" / "deep" / "top").symlink_to(tmp_path)
    (root / "b" / "outside").symlink_to(other)
    (root / "b" / "outside2").symlink_to(other)
    (root / "b" / "gone").symlink_to(tmp_path / "nowhere")
    listed = [os.path.relpath(p, root) for p in list_pictures(root)]
    assert listed == ["a/x.png", "b/deep/x.png", "b/outside/x.png"]
    assert [os.path.relpath(p, root) for p in list_pictures(root / "a", root)] == ["a/x.png"]
    data = ImageFolderDataModule(str(root), val_fraction=1)
    assert [len(p[1]) for p in data.parts().values()] == [3]


def test_names() -> None:
    assert sorted(["s_10", "s_2", "s_1b", "S_3"], key=natural) == ["s_1b", "s_2", "S_3", "s_10"]
    assert [stem(n) for n in ("a.tif", "a.ome.tif", "a.OME.TIFF", "scan.001.png")] == ["a", "a", "a", "scan.001"]
