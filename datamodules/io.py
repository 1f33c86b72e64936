"""The one place that finds and reads pictures, for every data module.

What a picture's numbers mean is told by its file, never guessed from how many there are:

- Depth: the file's own bits. As RGB of 8 bits, v of b bits becomes 255 v / (2^b - 1), rounded to the nearest; a PNM's
  white is the largest value that it names.
- Alpha, or the one colour of a PNG that stands for it: as RGB, transparent pixels lie on white, as a viewer shows them;
  as channels, alpha is left out. Colours that a TIFF says are multiplied by alpha are not multiplied again.
- Palette: as RGB its colours; as a mask its indices.
- CMYK is converted to RGB. EXIF and TIFF orientation are honoured.
- TIFF's "white is zero": turned round as RGB; stored values are kept as channels and as a mask.
- Axes: from TIFF, OME, ImageJ or OME-Zarr metadata. Pages of which a file says nothing stay unknown (`I` or `Q`).

Only regular files are opened (a pipe would wait for ever), and nothing above `picture.MOST_BYTES` is decoded at once.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.decoders import describe
from datamodules.picture import Picture, unreadable
from framework.errors import DataError

#: endings of pictures, and of the arrays that a segmentation takes beside them
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".webp", ".tif", ".tiff"])
ARRAYS = frozenset([".npy", ".zarr"])

#: axes with a meaning: colour samples, channels, rows, columns; every other axis is one of slices
PLANE = "CSYX"


def open_picture(path: str | Path, axes: str | None = None) -> Picture:
    """Reads a picture's header.

    Args:
        path: the file, or the folder of an OME-Zarr.
        axes: a letter per axis; used where it has as many letters as the file has axes.

    Raises:
        DataError: no regular file, no picture, or a kind whose meaning is not certain.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); restore the file or remove its name") from error
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and path.suffix.lower() == ".zarr"):
        raise DataError(f"{path} is no regular file, so it is not read as a picture; remove it")
    try:
        picture = describe(path)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return with_axes(picture, axes)


def with_axes(picture: Picture, axes: str | None) -> Picture:
    """The picture with axes from the configuration (`data.axes`), where it has as many.

    Raises:
        DataError: `axes` does not fit a file that does not tell its own, or rows and columns are missing.
    """
    if axes is not None and len(axes) == len(picture.shape) and axes != picture.axes:
        colour = picture.colour and axes.find("S") == picture.axes.find("S")
        picture = replace(picture, axes=axes, colour=colour, alpha=picture.alpha and "S" in axes)
    if "Y" not in picture.axes or "X" not in picture.axes:
        raise DataError(
            f"{picture.path} has shape {picture.shape}, and the file does not say which axes are rows and columns; "
            "give data.axes with a letter for each, e.g. YX, CYX (channels), ZYX (slices) or YXC"
        )
    return picture


def read_rgb(path: str | Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8, by the rules at the top of this module; grey is repeated.

    Raises:
        DataError: not readable, or no picture of one plane in grey, RGB, CMYK or a palette of up to 16 bits.
    """
    picture = open_picture(path)
    extra = {a: n for a, n in zip(picture.axes, picture.shape, strict=True) if a not in "YXS" and n > 1}
    if extra:
        shown = " x ".join(f"{n} {_AXES.get(a, 'pages')}" for a, n in extra.items())
        raise DataError(f"{path}: expected one grey, RGB or RGBA picture, got {shown}")
    if not picture.bits or picture.bits > 16:
        raise DataError(f"{path}: expected 8 or 16 bits per channel, whose white is known, got {picture.dtype}")
    values = _as_plane(picture, picture.pixels())
    if picture.palette is not None:
        values = _looked_up(picture, values[..., 0])
    colours = values.shape[-1] - _has_alpha(picture)
    if colours not in (1, 3) or (colours == 3 and not picture.colour and picture.palette is None):
        raise DataError(f"{path}: expected a grey, RGB or RGBA picture, got {colours} channels")
    values = _on_white(picture, values, colours).astype(np.uint8)
    return values if values.shape[-1] == 3 else np.repeat(values, 3, -1)


def _on_white(picture: Picture, values: np.ndarray, colours: int) -> np.ndarray:
    """(H, W, colours) whole numbers 0 to 255 of values that may have alpha behind them."""
    white = picture.white
    if picture.maxval is not None:
        values = np.minimum(values, white)
    if picture.white_is_zero:
        values = np.concatenate([white - values[..., :colours], values[..., colours:]], -1)
    if _has_alpha(picture):
        alpha = values[..., -1:] / white
        values = values[..., :-1] / white
        if not picture.premultiplied:
            values = values * alpha + (1 - alpha)
        elif not picture.white_is_zero:  # there 1 less a share of the ink is what lies on white already
            values = np.minimum(values + (1 - alpha), 1)
        return np.rint(values * 255)
    shown = values if white == 255 else np.rint(values / white * 255)
    if picture.clear is not None:
        shown = np.where((values == np.asarray(picture.clear)).all(-1, keepdims=True), 255, shown)
    return shown


def _has_alpha(picture: Picture) -> bool:
    return picture.alpha or (picture.palette is not None and bool((picture.palette[:, 3] < 255).any()))


def _looked_up(picture: Picture, indices: np.ndarray) -> np.ndarray:
    """(H, W, 3 or 4) uint8 colours of palette indices."""
    palette = picture.palette
    assert palette is not None
    if int(indices.max(initial=0)) >= len(palette):
        raise DataError(f"{picture.path} holds index {int(indices.max())}, but its palette has {len(palette)} colours")
    return palette[indices][..., : 4 if _has_alpha(picture) else 3]


def _as_plane(picture: Picture, pixels: np.ndarray) -> np.ndarray:
    """(H, W, samples) of pixels whose other axes have length 1."""
    order = [picture.axes.index(a) for a in "YX"] + [i for i, a in enumerate(picture.axes) if a not in "YX"]
    plane = pixels.transpose(order)
    return plane.reshape(*plane.shape[:2], -1)


_AXES = {"C": "channels", "Z": "slices", "T": "times", "S": "samples"}


# ---------------------------------------------------------------------- finding files


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts `slice_2` before `slice_10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def is_hidden(name: str) -> bool:
    """Dot files, macOS's `._` companions among them."""
    return name.startswith(".")


def stem(name: str) -> str:
    """A file's name without the ending of its format, `.ome.tif` and the like as a whole."""
    name = os.path.splitext(name)[0]
    return os.path.splitext(name)[0] if name.lower().endswith(".ome") else name


def is_picture(entry: Path, suffixes: Iterable[str] = SUFFIXES) -> bool:
    """Whether a directory's entry is a visible regular file (or a folder `.zarr`) with one of the endings."""
    if is_hidden(entry.name) or entry.suffix.lower() not in suffixes:
        return False
    return entry.is_dir() if entry.suffix.lower() == ".zarr" else entry.is_file()


def list_pictures(folder: str | Path, tree: str | Path | None = None) -> list[str]:
    """Paths of all pictures in a folder and below it, sorted as text; hidden files and folders are passed over.

    Links to folders are followed, each folder once, except those that lead back into `tree` or to a folder above it:
    what they show is listed where it lies.

    Args:
        folder: where to start.
        tree: the whole of which `folder` is a part; None: `folder`.
    """
    root = os.path.realpath(tree or folder)
    found, seen = [], {os.path.realpath(folder)}
    for where, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(where, name)
            if is_hidden(name) or name.lower().endswith(".zarr"):
                continue
            real = os.path.realpath(path)
            if os.path.islink(path) and (_inside(real, root) or _inside(root, real)):
                continue
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [os.path.join(where, name) for name in names if is_picture(Path(where, name))]
    return sorted(found)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
