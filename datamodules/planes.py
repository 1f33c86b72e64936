"""One plane of a picture: which axes are slices, which are channels, and how many channels a sample gets."""

from pathlib import Path

import numpy as np

from datamodules.io import PLANE, open_picture
from datamodules.picture import Picture
from datamodules.reading import Reading, Slices
from framework.errors import DataError

BT601 = np.array([[0.299], [0.587], [0.114]], np.float32)


def slice_shape(picture: Picture) -> tuple[int, ...]:
    """Lengths of the axes that are neither channels nor rows nor columns, those of length 1 left out."""
    return tuple(n for a, n in zip(picture.axes, picture.shape, strict=True) if a not in PLANE and n > 1)


def count_slices(picture: Picture) -> int:
    """Number of planes."""
    return int(np.prod(slice_shape(picture), dtype=int))


def count_channels(picture: Picture) -> int:
    """Channels of a picture before any are chosen: samples and channels together, alpha left out."""
    if picture.palette is not None:
        return 3
    count = int(np.prod([n for a, n in zip(picture.axes, picture.shape, strict=True) if a in "CS"], dtype=int))
    return count - picture.alpha


def check_count(count: int, reading: Reading, path: Path | str) -> None:
    """A list of channels means the same ones in files of as many as the training's only.

    Raises:
        DataError: a picture of another number; `path` names it.
    """
    if isinstance(reading.channels, list) and reading.file_channels not in (None, count):
        raise DataError(
            f"data.channels: expected pictures of {reading.file_channels} channels, of which the network knows "
            f"{reading.channels}, got {count} in {path}; give the channels in the training's order"
        )


def white_of(picture: Picture, reading: Reading) -> int:
    """The largest number of a file of up to 16 bits, 0 for any other: what `normalize: depth` divides by.

    Raises:
        DataError: `normalize: depth` and no such number; the message names the file.
    """
    white = picture.white if picture.bits <= 16 else 0
    check_white(white, reading, picture.path, picture.dtype)
    return white


def check_white(white: int, reading: Reading, path: Path | str, dtype: np.dtype) -> None:
    """Raises DataError where `normalize: depth` has nothing to divide by; `path` names the picture."""
    if reading.normalize == "depth" and not white:
        raise DataError(
            f"data.normalize: depth needs unsigned whole numbers of 8 or 16 bits, but {path} holds {dtype}; train "
            "with zscore, percentile or none, or give pictures of such numbers"
        )


def check_slices(picture: Picture, slices: Slices | None = None, part: int | None = None) -> None:
    """Raises DataError for slices without a rule, and for pages of which nothing is known; arguments as `plane`."""
    count = count_slices(picture)
    if count > 1 and not isinstance(slices, int) and slices != "max" and part is None:
        unknown = [a for a, n in zip(picture.axes, picture.shape, strict=True) if a in "IQ" and n > 1]
        if unknown:
            raise DataError(
                f"data.axes: {picture.path} has shape {picture.shape}, and the file does not say whether its pages are "
                "channels or slices; give data.axes, e.g. CYX or ZYX"
            )
        raise DataError(
            f"data.slices: {picture.path} has {count} slices (axes {picture.axes}); give data.slices: each, max, or "
            "the number of one"
        )


def plane(picture: Picture, slices: Slices | None = None, part: int | None = None) -> np.ndarray:
    """(channels or samples, H, W) in the file's dtype.

    Args:
        picture: an open picture.
        slices: what to do with slices: `max` over all, or the number of one.
        part: with `each`, the number of one.

    Raises:
        DataError: slices without a rule, a number that is not there, axes of which nothing is known.
    """
    check_slices(picture, slices, part)
    count = count_slices(picture)
    pixels = picture.pixels()
    order = sorted(range(len(picture.axes)), key=lambda i: _rank(picture.axes[i]))
    pixels = pixels.transpose(order)
    height, width = picture.size
    stack = pixels.reshape(count, -1, height, width)
    if count == 1:
        return stack[0]
    if slices == "max":
        return stack.max(0)
    wanted = part if part is not None else int(slices)  # type: ignore[arg-type]
    if wanted >= count:
        raise DataError(f"data.slices: {picture.path} has {count} slices, so there is no number {wanted} (from 0 on)")
    return stack[wanted]


def _rank(axis: str) -> int:
    return PLANE.index(axis) + 1 if axis in PLANE else 0


def read_image(
    path: Path,
    channels: int | list[int] | None,
    bit_depth: int | None,
    axes: str | None = None,
    slices: Slices | None = None,
    part: int | None = None,
) -> np.ndarray:
    """(channels, H, W) float32 in the file's own units; alpha is dropped, colour becomes grey by BT.601 and back.

    Raises:
        DataError: not decodable, of another depth than promised, not finite, or without the channels asked for.
    """
    picture = open_picture(path, axes)
    return image_of(picture, channels, bit_depth, slices, part)


def image_of(
    picture: Picture,
    channels: int | list[int] | None,
    bit_depth: int | None,
    slices: Slices | None = None,
    part: int | None = None,
) -> np.ndarray:
    """`read_image` for a picture whose header has been read."""
    path = picture.path
    if bit_depth is not None and picture.dtype != {8: np.uint8, 16: np.uint16}[bit_depth]:
        raise DataError(
            f"data.bit_depth: {bit_depth} bits were promised, but {path} holds {picture.dtype}; give the right depth, "
            "or null to take any (a network on raw intensities keeps to what it was trained on)"
        )
    if picture.dtype.kind not in "biuf":
        raise DataError(f"data: {path}: expected whole or floating numbers, got {picture.dtype}")
    samples = plane(picture, slices, part)
    colour = picture.colour
    if picture.palette is not None:
        samples, colour = _from_palette(picture, samples[0])
    with np.errstate(over="ignore"):
        values = samples.astype(np.float32)
    if not np.isfinite(values).all():
        beyond = f"values beyond {np.finfo(np.float32).max:.4g}, the largest of float32"
        raise DataError(f"data: {path} holds {beyond if np.isfinite(samples).all() else 'NaN or infinite values'}")
    if channels == 1 and colour and len(values) - picture.alpha == 3:
        # of interleaved pixels, alpha among them: the order of the sum decides the last bit
        return np.ascontiguousarray(
            (np.ascontiguousarray(values.transpose(1, 2, 0))[..., :3] @ BT601).transpose(2, 0, 1)
        )
    return np.ascontiguousarray(choose_channels(values[: len(values) - picture.alpha], channels, path))


def _from_palette(picture: Picture, indices: np.ndarray) -> tuple[np.ndarray, bool]:
    palette = picture.palette
    assert palette is not None
    if int(indices.max(initial=0)) >= len(palette):
        raise DataError(f"{picture.path} holds index {int(indices.max())}, but its palette has {len(palette)} colours")
    return palette[indices][..., :3].transpose(2, 0, 1), True


def choose_channels(values: np.ndarray, channels: int | list[int] | None, path: Path | str) -> np.ndarray:
    """The channels of (N, H, W) that a sample takes: all, a list of them, one repeated to three.

    Raises:
        DataError: it has other channels than asked for; `path` names it.
    """
    count = len(values)
    if isinstance(channels, list):
        if max(channels) >= count:
            raise DataError(f"data.channels: expected {channels} (from 0 on), but {path} has {count} channels")
        return values[channels]
    if channels is None or channels == count:
        return values
    if channels == 3 and count == 1:
        return np.repeat(values, 3, 0)
    those = f"a list of the {channels} to take, e.g. {list(range(channels))}, or " if channels < count else ""
    raise DataError(
        f"data.channels: expected {channels}, but {path} has {count}; give data.channels: {those}{count} for a network "
        "that is still to be trained (one of a checkpoint keeps the number that it was trained on)"
    )
