"""What a format says of its pixels: TIFF by tifffile, deep PNG by imagecodecs, OME-Zarr by zarr, the rest by Pillow."""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.picture import Picture
from datamodules.pillow import clear_in_png, opened
from framework.errors import DataError, few

_MICROMETRES = {
    "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4,
    "m": 1e6, "meter": 1e6, "inch": 25400.0, "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4,
}  # fmt: skip


def describe(path: Path) -> Picture:
    """A file's header, by its content and not by its name."""
    if path.is_dir():
        return _zarr(path)
    with open(path, "rb") as file:
        head = file.read(32)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(path)
    if head.startswith(b"\x93NUMPY"):
        return _npy(path)
    if re.match(rb"P[2356]\s", head):
        return _pnm(path)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[24:25] == b"\x10":
        return _deep_png(path, head)
    return _pillow(path, head)


# ---------------------------------------------------------------------- TIFF


def _tiff(path: Path) -> Picture:
    import tifffile

    with tifffile.TiffFile(path) as file:
        shape, axes = _series(path, file)
        page: Any = file.series[0].keyframe
        kind = _photometric(path, page)
        alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
        colour = kind in ("RGB", "YCBCR", "SEPARATED")
        turn = int(page.tags[274].value) if 274 in page.tags else 1
        if not colour and not alpha:
            axes = axes.replace("S", "C")
        shape, axes, turned = _turned_header(shape, axes, turn)
        if kind == "SEPARATED":
            shape = tuple(3 if a == "S" else n for n, a in zip(shape, axes, strict=True))
        plain = turned is _same and kind != "SEPARATED" and file.series[0].ndim == len(axes)
        dtype = np.dtype(page.dtype)
        return Picture(
            path=path,
            shape=shape,
            axes=axes,
            dtype=dtype,
            bits=_bits(dtype, page.bitspersample),
            decode=_tiff_decoder(path, turned, kind == "SEPARATED"),
            colour=colour,
            alpha=alpha,
            premultiplied=alpha and int(page.extrasamples[-1]) == 1,
            palette=_tiff_palette(page) if kind == "PALETTE" else None,
            white_is_zero=kind == "MINISWHITE",
            pixel_size=_tiff_pixel_size(file, page),
            window=_tiff_window(path) if plain else None,
        )


def _series(path: Path, file: Any) -> tuple[tuple[int, ...], str]:
    """Shape and axes of all pages together; equal pictures that are stored apart are pages without a meaning."""
    series = [s for s in file.series if not s.keyframe.is_reduced]
    series = series or file.series[:1]
    first = series[0]
    if any((s.shape, s.dtype, s.axes) != (first.shape, first.dtype, first.axes) for s in series) or (
        len(series) > 1 and file.is_ome
    ):
        sizes = few([" x ".join(map(str, s.shape)) for s in series])
        raise DataError(f"{path} holds {len(series)} pictures ({sizes}); save each as a file of its own")
    _check_complete(path, series)
    if len(series) > 1:
        return (len(series), *first.shape), "I" + first.axes
    return first.shape, first.axes


def _photometric(path: Path, page: Any) -> str:
    """What the samples of a pixel are."""
    import tifffile

    kind = tifffile.PHOTOMETRIC(page.photometric).name
    known = kind in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "MASK")
    known |= kind == "SEPARATED" and page.samplesperpixel == 4
    known |= kind == "YCBCR" and int(page.compression) in (6, 7, 33003, 33005, 34712, 34892)  # decoded to RGB
    if not known:
        raise DataError(f"{path} is a TIFF in {kind}, whose channels are not known; save it as RGB or grey")
    return kind


def _tiff_palette(page: Any) -> np.ndarray:
    table = np.asarray(page.colormap)
    table = (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)
    return np.concatenate([table.T, np.full((table.shape[1], 1), 255, np.uint8)], 1)


def _tiff_decoder(path: Path, turned: Callable[[np.ndarray], np.ndarray], cmyk: bool) -> Callable[[], np.ndarray]:
    def decode() -> np.ndarray:
        import tifffile

        with tifffile.TiffFile(path) as file:
            series = [s for s in file.series if not s.keyframe.is_reduced] or file.series[:1]
            pixels = series[0].asarray() if len(series) == 1 else np.stack([s.asarray() for s in series])
            if cmyk:
                pixels = _from_cmyk(path, pixels, series[0].axes)
        return turned(pixels)

    return decode


def _tiff_window(path: Path) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """A part of the mapped file where it is not compressed, else of the tiles or strips that hold it."""

    def window(where: tuple[slice, ...]) -> np.ndarray:
        import tifffile

        with contextlib.suppress(ValueError):  # compressed
            return np.array(tifffile.memmap(path, mode="r")[where])
        try:
            import zarr
        except ImportError:  # an extra
            return _tiff_decoder(path, _same, False)()[where]
        with tifffile.imread(path, aszarr=True, level=0) as store:
            return np.asarray(zarr.open_array(store, mode="r")[where])

    return window


def _from_cmyk(path: Path, pixels: np.ndarray, axes: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or axes != "YXS":
        raise DataError(f"{path} is a CMYK picture of {pixels.dtype} in axes {axes}; only 8 bits and YXS are converted")
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB"))


def _check_complete(path: Path, series: Sequence[Any]) -> None:
    """Some codecs return what there is of a file that ends early."""
    length = path.stat().st_size
    for page in (page for one in series for page in one.pages if page is not None):
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > length:
            raise ValueError(f"the file ends at byte {length}, its pixels at {end}")


def _tiff_pixel_size(file: Any, page: Any) -> tuple[float, float] | None:
    if file.is_ome and file.ome_metadata:
        found = dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)="([^"]*)"', file.ome_metadata))
        if "PhysicalSizeX" in found and "PhysicalSizeY" in found:
            y, x = (
                float(found[f"PhysicalSize{a}"]) * _MICROMETRES.get(found.get(f"PhysicalSize{a}Unit", "µm").lower(), 0)
                for a in "YX"
            )
            return (y, x) if y > 0 and x > 0 else None
    if 282 not in page.tags or 283 not in page.tags:
        return None
    per_unit = [n / d if n and d else 0.0 for n, d in (page.tags[283].value, page.tags[282].value)]
    if file.is_imagej:
        unit = _MICROMETRES.get(str((file.imagej_metadata or {}).get("unit", "")).lower(), 0.0)
    else:
        # inches are what programs write that know of no size at all
        unit = {3: 1e4}.get(int(page.resolutionunit), 0.0)
    if not unit or min(per_unit) <= 0:
        return None
    return unit / per_unit[0], unit / per_unit[1]


# ---------------------------------------------------------------------- the others


def _zarr(path: Path) -> Picture:
    try:
        import zarr
    except ImportError as error:
        raise DataError(f"{path} needs the package zarr; install the extra: explicit-vision[microscopy]") from error

    group: Any = zarr.open(str(path), mode="r")
    attributes = dict(group.attrs)
    attributes = attributes.get("ome", attributes)
    if not attributes.get("multiscales"):
        raise DataError(f"{path} is no OME-Zarr (no multiscales in its attributes)")
    scales = attributes["multiscales"][0]
    level = scales["datasets"][0]
    array = group[level["path"]]
    described = scales.get("axes") or list("tczyx")[-array.ndim :]
    named = [a if isinstance(a, dict) else {"name": a} for a in described]
    axes = "".join(a["name"][0].upper() for a in named)
    scale = next((t["scale"] for t in level.get("coordinateTransformations", ()) if t.get("type") == "scale"), None)
    pixel_size = None
    if scale is not None:
        sizes = {a["name"]: s * _MICROMETRES.get(a.get("unit", ""), 0.0) for a, s in zip(named, scale, strict=True)}
        if sizes.get("y") and sizes.get("x"):
            pixel_size = sizes["y"], sizes["x"]

    dtype = np.dtype(array.dtype).newbyteorder("=")  # the order of the bytes says nothing of the numbers
    return Picture(
        path, tuple(array.shape), axes, dtype, _bits(dtype), lambda: np.asarray(array[...], dtype),
        pixel_size=pixel_size, window=lambda where: np.asarray(array[where], dtype),
    )  # fmt: skip


def _npy(path: Path) -> Picture:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    axes, dtype = "YX" if array.ndim == 2 else "Q" * array.ndim, array.dtype.newbyteorder("=")
    return Picture(
        path, array.shape, axes, dtype, _bits(dtype),
        lambda: np.load(path, allow_pickle=False).astype(dtype, copy=False),
        window=lambda where: np.array(np.load(path, mmap_mode="r", allow_pickle=False)[where], dtype),
    )  # fmt: skip


def _pnm(path: Path) -> Picture:
    """Pillow stretches whatever its largest value is to 255, which changes ids."""
    head = path.read_bytes()[:4096]
    header = re.match(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s", head)
    if header is None:
        raise ValueError("no width, height and largest value after its first letters")
    kind, width, height, highest = (int(v) for v in header.groups())
    if not 0 < highest < 65536:
        raise ValueError(f"its largest value is {highest}, expected 1 to 65535")
    samples = 3 if kind in (3, 6) else 1
    shape = (height, width, 3) if samples == 3 else (height, width)
    dtype = np.dtype(np.uint8 if highest < 256 else np.uint16)

    def decode() -> np.ndarray:
        data = path.read_bytes()[header.end() :]
        count = height * width * samples
        if kind in (2, 3):
            values = np.array(re.sub(rb"#[^\n]*", b"", data).split()[:count], np.int64)
        else:
            values = np.frombuffer(data, dtype.newbyteorder(">"), count)
        if len(values) != count:
            raise ValueError(f"expected {count} values, got {len(values)}")
        return values.reshape(shape).astype(dtype)

    return Picture(
        path, shape, "YXS"[: len(shape)], dtype, highest.bit_length(), decode, colour=samples == 3, maxval=highest
    )  # fmt: skip


def _deep_png(path: Path, head: bytes) -> Picture:
    """16 bits per channel: Pillow, and scikit-image through it, cuts colour to 8."""
    import imagecodecs

    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    samples = {0: 1, 4: 2, 2: 3, 6: 4}.get(head[25] if len(head) > 25 else -1)
    if samples is None:
        raise ValueError("a PNG of 16 bits with an unknown colour type")
    shape = (height, width) if samples == 1 else (height, width, samples)

    def decode() -> np.ndarray:
        pixels = imagecodecs.png_decode(path.read_bytes())
        if pixels.shape != shape:  # a transparent colour comes as a channel more
            pixels = pixels.reshape(height, width, -1)[..., :samples].reshape(shape)
        return pixels

    return Picture(
        path, shape, "YXS"[: len(shape)], np.dtype(np.uint16), 16, decode, colour=samples > 2, alpha=samples in (2, 4),
        clear=clear_in_png(path, samples) if samples in (1, 3) else None,
    )  # fmt: skip


def _pillow(path: Path, head: bytes) -> Picture:
    with opened(path) as file:
        mode, (width, height) = file.mode, file.size
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format in ("PNG", "WEBP"):
            raise DataError(f"{path} is an animation of {frames} pictures; save each as a file of its own")
        # asking a PNG without it decodes the whole picture
        turn = int(file.getexif().get(274) or 1) if "exif" in file.info or file.format != "PNG" else 1
        palette = _palette(file) if mode == "P" else None
        is_png = file.format == "PNG"
    if mode not in _MODES:
        raise DataError(f"{path} is a picture in mode {mode}, whose channels are not known; save it as RGB or grey")
    into, samples, dtype, bits = _MODES[mode]
    stored = head[24] if is_png and mode == "L" else bits
    step = (2**bits - 1) // (2**stored - 1) if stored in (2, 4) else 1
    shape: tuple[int, ...] = (height, width) if samples == 1 else (height, width, samples)
    axes = "YXS"[: len(shape)]
    shape, axes, turned = _turned_header(shape, axes, turn)

    def decode() -> np.ndarray:
        with opened(path) as file:
            pixels = np.asarray(file.convert(into) if into != mode else file)
        return turned(pixels if step == 1 else pixels // step)

    return Picture(
        path, shape, axes, np.dtype(dtype), stored, decode, colour=samples > 2, alpha=samples in (2, 4),
        palette=palette, clear=clear_in_png(path, samples) if is_png and mode in ("1", "L", "RGB") else None,
    )  # fmt: skip


#: Pillow's mode -> (mode to read it in, samples, dtype, bits)
_MODES: dict[str, tuple[str, int, Any, int]] = {
    "1": ("1", 1, np.bool_, 1),
    "L": ("L", 1, np.uint8, 8),
    "P": ("P", 1, np.uint8, 8),
    "LA": ("LA", 2, np.uint8, 8),
    "PA": ("RGBA", 4, np.uint8, 8),
    "RGB": ("RGB", 3, np.uint8, 8),
    "RGBA": ("RGBA", 4, np.uint8, 8),
    "RGBX": ("RGB", 3, np.uint8, 8),
    "CMYK": ("RGB", 3, np.uint8, 8),
    "YCbCr": ("RGB", 3, np.uint8, 8),
    "F": ("F", 1, np.float32, 0),
    "I": ("I", 1, np.int32, 0),
    "I;16": ("I;16", 1, np.uint16, 16),
    "I;16B": ("I;16", 1, np.uint16, 16),
}


def _palette(file: Image.Image) -> np.ndarray:
    colours = np.array(file.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    alpha = np.full((len(colours), 1), 255, np.uint8)
    transparent = file.info.get("transparency")
    if isinstance(transparent, bytes):
        known = np.frombuffer(transparent, np.uint8)[: len(alpha)]
        alpha[: len(known), 0] = known
    elif isinstance(transparent, int) and transparent < len(alpha):
        alpha[transparent] = 0
    return np.concatenate([colours, alpha], 1)


# ---------------------------------------------------------------------- what they share


def _bits(dtype: np.dtype, stored: int | tuple[int, ...] | None = None) -> int:
    if dtype.kind == "b":
        return 1
    if dtype.kind != "u":
        return 0
    stored = max(stored) if isinstance(stored, tuple) else stored
    return min(stored or 64, 8 * dtype.itemsize)


def _turned_header(
    shape: tuple[int, ...], axes: str, orientation: int
) -> tuple[tuple[int, ...], str, Callable[[np.ndarray], np.ndarray]]:
    """Shape, axes and a function that sets pixels upright, from the EXIF orientation 1 to 8."""
    if orientation not in range(2, 9) or "Y" not in axes or "X" not in axes:
        return shape, axes, _same
    y, x = axes.index("Y"), axes.index("X")
    if orientation >= 5:
        swapped = list(shape)
        swapped[y], swapped[x] = shape[x], shape[y]
        shape = tuple(swapped)

    def turned(pixels: np.ndarray) -> np.ndarray:
        if orientation >= 5:
            pixels = pixels.swapaxes(y, x)
        flipped = {2: (x,), 3: (y, x), 4: (y,), 5: (), 6: (x,), 7: (y, x), 8: (y,)}[orientation]
        return np.ascontiguousarray(np.flip(pixels, flipped))

    return shape, axes, turned


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels
