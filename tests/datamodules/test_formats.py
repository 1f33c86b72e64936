"""A zoo of formats: every file is written by a library that is not ours and read back against the array written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules.io import open_picture
from datamodules.planes import BT601, count_slices, read_image
from framework.errors import DataError

RNG = np.random.default_rng(0)
SIZE = (20, 28)


def numbers(dtype: Any, *shape: int) -> np.ndarray:
    """Noise over the whole range of a type, the ends included; floats within a thousand."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.normal(0, 300, shape).astype(kind)
    info = np.iinfo(kind)
    values = RNG.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
    values.flat[:2] = info.min, info.max
    return values


U8, U16 = numbers(np.uint8, *SIZE), numbers(np.uint16, *SIZE)
RGB, RGB16 = numbers(np.uint8, *SIZE, 3), numbers(np.uint16, *SIZE, 3)
RGBA, RGBA16 = numbers(np.uint8, *SIZE, 4), numbers(np.uint16, *SIZE, 4)
FIVE, STACK = numbers(np.uint16, 5, *SIZE), numbers(np.uint16, 4, *SIZE)
ZCYX = numbers(np.uint16, 4, 2, *SIZE)
CMYK = np.dstack([U8 * 0] * 3 + [U8])
FIRST = lambda a: np.moveaxis(a, -1, 0)  # noqa: E731

Write = Callable[[Path], Any]


def tiff(array: np.ndarray, **options: Any) -> Write:
    options.setdefault("photometric", "rgb" if array.ndim == 3 and array.shape[-1] in (3, 4) else "minisblack")
    return lambda path: tifffile.imwrite(path, array, **options)


def pillow(array: np.ndarray, mode: str | None = None, **options: Any) -> Write:
    return lambda path: Image.fromarray(array, mode).save(path, **options)


def codec(name: str, array: np.ndarray, **options: Any) -> Write:
    return lambda path: path.write_bytes(getattr(imagecodecs, f"{name}_encode")(array, **options))


def zarr_of(array: np.ndarray, axes: str, version: str) -> Write:
    def write(path: Path) -> None:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
        group.create_array("0", data=array, chunks=array.shape)
        units = {"y": "micrometer", "x": "micrometer"}
        kinds = {"t": "time", "c": "channel"}
        described = [
            {"name": a, "type": kinds.get(a, "space"), **({"unit": units[a]} if a in units else {})} for a in axes
        ]
        scale = [{"type": "scale", "scale": [0.5 if a in "yx" else 1.0 for a in axes]}]
        content = {"axes": described, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
        multiscales = [{"version": version, **content}] if version == "0.4" else [content]
        group.attrs.update(
            {"multiscales": multiscales}
            if version == "0.4"
            else {"ome": {"version": version, "multiscales": multiscales}}
        )

    return write


#: name -> (writer, arguments of read_image, the channels (C, H, W) that must come out)
ZOO: dict[str, tuple[Write, dict[str, Any], np.ndarray]] = {
    # depths
    **{
        f"{kind}.tif": (tiff(a), {}, a[None])
        for kind, a in {
            k: numbers(k, *SIZE)
            for k in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
        }.items()
    },
    "float16.tif": (tiff(half := numbers(np.float16, *SIZE)), {}, half[None]),
    "bool.tif": (tiff(U8 > 99, photometric=None), {}, (U8 > 99)[None]),
    "4bit.tif": (tiff(U8 >> 4, bitspersample=4), {}, (U8 >> 4)[None]),
    "12bit.tif": (tiff(U16 >> 4, bitspersample=12), {}, (U16 >> 4)[None]),
    # compressions
    **{
        f"{name}.tif": (tiff(U16, compression=name), {}, U16[None])
        for name in ("lzw", "zlib", "packbits", "lzma", "zstd", "jpegxl", "jpeg2000")
    },
    "predictor.tif": (tiff(U16, compression="zlib", predictor=True), {}, U16[None]),
    "predictor_lzw.tif": (tiff(U16, compression="lzw", predictor=True), {}, U16[None]),
    "jpeg_lossless.tif": (tiff(U8, compression="jpeg", compressionargs={"lossless": True}), {}, U8[None]),
    # structure
    "tiled.tif": (tiff(U16, tile=(16, 16)), {}, U16[None]),
    "tiled_zlib.tif": (tiff(U16, tile=(16, 16), compression="zlib"), {}, U16[None]),
    "strips.tif": (tiff(U16, rowsperstrip=3), {}, U16[None]),
    "big.tif": (tiff(U16, bigtiff=True), {}, U16[None]),
    "bigendian.tif": (tiff(U16, byteorder=">"), {}, U16[None]),
    "white.tif": (tiff(U8, photometric="miniswhite"), {}, U8[None]),
    "pyramid.tif": (lambda p: pyramid(p), {}, U16[None]),
    # colour and channels
    "rgb.tif": (tiff(RGB), {"channels": 3}, FIRST(RGB)),
    "rgb16.tif": (tiff(RGB16), {"channels": 3}, FIRST(RGB16)),
    "rgba16.tif": (tiff(RGBA16, extrasamples=["unassalpha"]), {"channels": 3}, FIRST(RGBA16)[:3]),
    "planar.tif": (tiff(FIRST(RGB), photometric="rgb", planarconfig="separate"), {"channels": 3}, FIRST(RGB)),
    "grey_of_rgb.tif": (tiff(RGB), {"channels": 1}, FIRST(RGB.astype(np.float32) @ BT601)),
    "red_and_blue.tif": (tiff(RGB), {"channels": [0, 2]}, FIRST(RGB)[[0, 2]]),
    "contig5.tif": (tiff(FIVE.transpose(1, 2, 0).copy(), planarconfig="contig"), {"channels": 5}, FIVE),
    "planar5.tif": (tiff(FIVE, planarconfig="separate"), {"channels": None}, FIVE),
    "two.tif": (tiff(RGB[..., :2].copy(), planarconfig="contig"), {"channels": 2}, FIRST(RGB)[:2]),
    "grey_and_alpha.tif": (
        tiff(RGB[..., :2].copy(), planarconfig="contig", extrasamples=["unassalpha"]), {}, FIRST(RGB)[:1]
    ),
    # stacks and metadata
    "ome_c.ome.tif": (tiff(FIVE, metadata={"axes": "CYX"}), {"channels": [4, 0]}, FIVE[[4, 0]]),
    "ome_zc.ome.tif": (tiff(ZCYX, metadata={"axes": "ZCYX"}), {"channels": 2, "slices": "max"}, ZCYX.max(0)),
    "imagej_c.tif": (tiff(FIVE, imagej=True, metadata={"axes": "CYX"}), {"channels": 5}, FIVE),
    "imagej_z.tif": (tiff(STACK, imagej=True, metadata={"axes": "ZYX"}), {"slices": 2}, STACK[2:3]),
    "imagej_tzc.tif": (
        tiff(numbers(np.uint16, 3, 1, 1, *SIZE), imagej=True, metadata={"axes": "TZCYX"}), {"slices": 0}, None
    ),
    "axes.tif": (tiff(ZCYX, metadata={"axes": "ZCYX"}), {"channels": 2, "slices": 3}, ZCYX[3]),
    "pages_as_channels.tif": (tiff(STACK, metadata=None), {"axes": "CYX", "channels": 4}, STACK),
    "pages_as_slices.tif": (tiff(STACK), {"axes": "ZYX", "slices": 1}, STACK[1:2]),
    "apart.tif": (lambda p: apart(p), {"axes": "ZYX", "slices": 3}, STACK[3:]),
    # PNG
    "u8.png": (pillow(U8), {}, U8[None]),
    "u16.png": (codec("png", U16), {}, U16[None]),
    "la16.png": (codec("png", RGB16[..., :2].copy()), {}, FIRST(RGB16)[:1]),
    "rgb.png": (pillow(RGB), {"channels": 3}, FIRST(RGB)),
    "rgb16.png": (codec("png", RGB16), {"channels": 3}, FIRST(RGB16)),
    "rgba16.png": (codec("png", RGBA16), {"channels": 3}, FIRST(RGBA16)[:3]),
    "rgba.png": (pillow(RGBA), {"channels": 3}, FIRST(RGBA)[:3]),
    "bit.png": (pillow(U8 > 99), {}, (U8 > 99)[None]),
    "interlaced.png": (codec("png", RGB), {"channels": 3}, FIRST(RGB)),
    # others
    "u8.bmp": (pillow(U8), {}, U8[None]),
    "rgb.bmp": (pillow(RGB), {"channels": 3}, FIRST(RGB)),
    "u8.pgm": (pillow(U8), {}, U8[None]),
    "rgb.ppm": (pillow(RGB), {"channels": 3}, FIRST(RGB)),
    "u16.pgm": (lambda p: p.write_bytes(b"P5 28 20 65535\n" + U16.astype(">u2").tobytes()), {}, U16[None]),
    "rgb.webp": (pillow(RGB, lossless=True), {"channels": 3}, FIRST(RGB)),
    "cmyk.tif": (
        lambda p: Image.fromarray(CMYK, "CMYK").save(p), {}, FIRST(np.dstack([255 - U8] * 3).astype(np.float32) @ BT601)
    ),
    "imageio.png": (lambda p: imageio.imwrite(p, RGB), {"channels": 3}, FIRST(RGB)),
    "imageio.tiff": (lambda p: imageio.imwrite(p, U16), {}, U16[None]),
    "u16.npy": (lambda p: np.save(p, U16), {}, U16[None]),
    "channels.npy": (lambda p: np.save(p, FIVE), {"axes": "CYX", "channels": 5}, FIVE),
    "last.npy": (lambda p: np.save(p, RGB16), {"axes": "YXC", "channels": 3}, FIRST(RGB16)),
    "v04.ome.zarr": (zarr_of(FIVE, "cyx", "0.4"), {"channels": 5}, FIVE),
    "v05.ome.zarr": (zarr_of(ZCYX, "zcyx", "0.5"), {"channels": 2, "slices": 1}, ZCYX[1]),
}  # fmt: skip


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(U16, subifds=1, tile=(16, 16))
        file.write(U16[::2, ::2].copy(), subfiletype=1, tile=(16, 16))


def apart(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in STACK:
            file.write(page)


def test_the_zoo_has_at_least_forty_animals() -> None:
    assert len(ZOO) >= 60


@pytest.mark.parametrize("name", ZOO)
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    write, arguments, expected = ZOO[name]
    path = tmp_path / name
    write(path)
    image = read_image(path, arguments.get("channels", 1), None, arguments.get("axes"), arguments.get("slices"))
    if expected is None:
        expected = tifffile.imread(path).reshape(-1, 1, *SIZE)[0]
    assert image.dtype == np.float32
    assert np.array_equal(image, expected.astype(np.float32))


@pytest.mark.parametrize("name", ["photo.jpg", "grey.jpg", "photo.webp"])
def test_lossy_pictures_are_decoded_as_by_pillow(tmp_path: Path, name: str) -> None:
    smooth = np.cumsum(np.cumsum(RGB, 0, dtype=np.float64), 1)
    picture = Image.fromarray((smooth / smooth.max() * 255).astype(np.uint8))
    picture = picture.convert("L") if name.startswith("grey") else picture
    picture.save(tmp_path / name, quality=80)
    with Image.open(tmp_path / name) as file:
        expected = np.atleast_3d(np.asarray(file))
    assert np.array_equal(read_image(tmp_path / name, None, None), FIRST(expected))


def test_a_grey_cmyk_jpeg_is_grey(tmp_path: Path) -> None:
    flat = np.zeros((*SIZE, 4), np.uint8)
    flat[..., 3] = 55
    Image.fromarray(flat, "CMYK").save(tmp_path / "x.jpg")
    assert np.rint(read_image(tmp_path / "x.jpg", 1, 8)).tolist() == np.full((1, *SIZE), 200).tolist()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("three.tif", tiff(STACK[:3], photometric="minisblack"), "does not say whether its pages are channels"),
        ("four.tif", tiff(STACK, metadata=None), r"data\.axes: .*four\.tif has shape \(4, 20, 28\)"),
        ("z.tif", tiff(STACK, imagej=True, metadata={"axes": "ZYX"}), r"has 4 slices \(axes ZYX\); give data\.slices"),
        ("two.tif", tiff(RGB[..., :2].copy(), planarconfig="contig"), r"data\.channels: expected 1, but .* has 2"),
        ("array.npy", lambda p: np.save(p, RGB), r"give data\.axes with a letter for each"),
        ("complex.tif", tiff(U8.astype(np.complex64)), "expected whole or floating numbers, got complex64"),
        ("nan.tif", tiff(np.full(SIZE, np.nan, np.float32)), "holds NaN or infinite"),
        ("huge.tif", tiff(np.full(SIZE, 1e39)), r"holds values beyond 3\.403e\+38, the largest of float32"),
        ("lab.tif", lambda p: Image.new("LAB", (4, 4)).save(p), "TIFF in CIELAB"),
        ("moving.png", lambda p: Image.fromarray(U8).save(p, save_all=True, append_images=[Image.fromarray(U8.T)]),
         "animation of 2 pictures"),
        ("objects.npy", lambda p: np.save(p, np.array([{}], dtype=object)), "cannot be read as a picture"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused_by_name(tmp_path: Path, name: str, write: Write, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as raised:
        read_image(tmp_path / name, 1, None)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("name", "write", "size"),
    [
        ("ome.ome.tif", tiff(U16, metadata={"axes": "YX", "PhysicalSizeX": 200.0, "PhysicalSizeXUnit": "nm",
                                            "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}), (0.25, 0.2)),
        ("imagej.tif", tiff(U16, imagej=True, resolution=(5.0, 4.0), metadata={"unit": "um"}), (0.25, 0.2)),
        ("cm.tif", tiff(U16, resolution=(50000, 40000), resolutionunit="CENTIMETER"), (0.25, 0.2)),
        ("unknown.tif", tiff(U16), None),
        ("inch.tif", tiff(U16, resolution=(72, 72), resolutionunit="INCH"), None),
        ("v04.ome.zarr", zarr_of(U16, "yx", "0.4"), (0.5, 0.5)),
        ("v05.ome.zarr", zarr_of(U16, "yx", "0.5"), (0.5, 0.5)),
    ],
)  # fmt: skip
def test_pixel_size_is_in_micrometres(
    tmp_path: Path, name: str, write: Write, size: tuple[float, float] | None
) -> None:
    write(tmp_path / name)
    assert open_picture(tmp_path / name).pixel_size == (None if size is None else pytest.approx(size))


def test_headers_tell_size_and_slices_without_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiff(ZCYX, metadata={"axes": "ZCYX"}, compression="zlib")(tmp_path / "x.tif")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("decoded"))
    picture = open_picture(tmp_path / "x.tif")
    assert (picture.size, count_slices(picture), picture.axes, picture.bits) == (SIZE, 4, "ZCYX", 16)
