"""Masks: from whatever a mask file holds to one class per pixel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import measure

from datamodules.augmentation import Box, cut
from datamodules.io import open_picture
from datamodules.picture import Picture
from datamodules.planes import count_slices, plane
from datamodules.reading import Reading
from framework.errors import DataError
from framework.levels import distance_levels

#: class of pixels without a label (`ignore_label`); a model counts them nowhere with `ignore_index: 255`
IGNORED = 255


def read_mask(
    paths: Sequence[Path], reading: Reading, shape: tuple[int, ...], part: int | None = None, box: Box | None = None
) -> np.ndarray:
    """(H, W) uint8 class map: the position of every pixel's value in `labels`, or what `masks_are: instances` makes.

    Args:
        paths: the files.
        reading: the input contract.
        shape: (H, W) of the image.
        part: number of the slice.
        box: give only these pixels back, and read only what they need.

    Raises:
        DataError: not decodable, of another size than its image, or holding a value that is no label.
    """
    if reading.masks_are == "instances":
        return _instances_in(paths, reading, shape, part, box)
    if len(paths) > 1:
        return _union(paths, reading, shape, part, box)
    return _classes(mask_values(paths[0], reading, shape, part, box), paths[0], reading)


def _instances_in(
    paths: Sequence[Path], reading: Reading, shape: tuple[int, ...], part: int | None, box: Box | None
) -> np.ndarray:
    if reading.targets == "distance" or reading.connected or box is None:  # an object is as large as it is
        objects = read_instances(paths, reading, shape, part)
        if reading.targets == "distance":
            classes = distance_levels(objects, reading.levels)
            classes[objects < 0] = IGNORED
        else:
            classes = instance_classes(objects, reading.border)
        return classes if box is None else cut(classes, box)
    y0, y1, x0, x1 = box
    above, left = max(0, y0 - reading.border), max(0, x0 - reading.border)
    around = above, min(shape[0], y1 + reading.border), left, min(shape[1], x1 + reading.border)
    classes = instance_classes(read_instances(paths, reading, shape, part, around), reading.border)
    return cut(classes, (y0 - above, y1 - above, x0 - left, x1 - left))


def read_instances(
    paths: Sequence[Path], reading: Reading, shape: tuple[int, ...], part: int | None = None, box: Box | None = None
) -> np.ndarray:
    """(H, W) int64, or the box of it: 0 ground, 1, 2, ... objects of all files, -1 where there is no label."""
    size = shape if box is None else (box[1] - box[0], box[3] - box[2])
    objects = np.zeros(size, np.int64)
    for path in paths:
        values = mask_values(path, reading, shape, part, box)
        if values.dtype.kind == "b" or reading.colors is not None:
            values = values.astype(np.int64)
        inside = values > 0
        ignored = values == reading.ignore_label if reading.ignore_label is not None else np.zeros(size, bool)
        if (values < 0).any() and not bool(ignored[values < 0].all()):
            raise DataError(f"data.masks: {path} holds values below 0; an instance mask has 0 and the objects' numbers")
        inside &= ~ignored
        ids = np.unique(values[inside], return_inverse=True)[1] + 1
        if reading.connected:
            ids = measure.label(np.where(inside, values, 0), connectivity=2)[inside]
        objects[inside] = ids + objects.max(initial=0)
        objects[ignored & (objects == 0)] = -1
    return objects


def instance_classes(objects: np.ndarray, border: int) -> np.ndarray:
    """0 ground, 1 inside, 2 border: whatever lies within `border` pixels of two objects (as U-Net parts cells).

    Args:
        objects: (H, W) integers, 0 ground, -1 without a label.
        border: pixels.

    Returns:
        (H, W) uint8, `IGNORED` where there is no label.
    """
    classes = (objects > 0).astype(np.uint8)
    side = 2 * border + 1
    # small numbers: the filters count in float64
    values, dense = np.unique(np.maximum(objects, 0), return_inverse=True)
    dense = dense.reshape(objects.shape) + int(values[0] > 0)
    highest = ndimage.maximum_filter(dense, side, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(dense > 0, dense, dense.max() + 1), side, mode="nearest")
    classes[(highest > 0) & (lowest < highest)] = 2
    classes[objects < 0] = IGNORED
    return classes


def mask_values(
    path: Path, reading: Reading, shape: tuple[int, ...], part: int | None = None, box: Box | None = None
) -> np.ndarray:
    """(H, W) whole numbers or bool of a file: its values, the indices of its palette, or positions in `colors`.

    Of a box only its pixels. `shape` is (H, W) of the image.

    Raises:
        DataError: not decodable, of another size, coloured without `colors`, or holding fractions.
    """
    picture = _opened(path, reading)
    if "C" in picture.axes and picture.shape[picture.axes.index("C")] > 1:
        raise DataError(f"data.masks: {path}: expected one channel, got {picture.shape[picture.axes.index('C')]}")
    if picture.size != shape:
        raise DataError(f"data.masks: {path}: expected its image's size {shape}, got {picture.size}")
    if box is not None:
        picture = picture.cropped(*box)
    samples = plane(picture, reading.slices, part)  # (samples, H, W)
    if reading.colors is not None and (picture.colour or picture.palette is not None):
        return _positions(_colours(picture, samples), path, reading.colors)
    values = _one_value(samples, picture)
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise DataError(f"data.masks: {path} holds {values.dtype} with fractions or NaN; masks are whole numbers")
        values = values.astype(np.int64)
    if values.dtype.kind not in "uib":
        raise DataError(f"data.masks: {path} holds {values.dtype}; masks are whole numbers")
    return values


def _opened(path: Path, reading: Reading) -> Picture:
    return open_picture(path, reading.axes and "".join(a for a in reading.axes if a not in "CS"))


def check_mask_slices(paths: Sequence[Path], reading: Reading, image: Path, count: int) -> None:
    """Raises DataError for a mask with another number of slices than the `count` of its image; headers are read."""
    for path in paths:
        if (found := count_slices(_opened(path, reading))) != count:
            raise DataError(
                f"data.slices: expected {count} slices in the mask {path}, as many as its image {image.name} has, got "
                f"{found}; with data.slices: each every slice needs a mask of its own"
            )


def _one_value(samples: np.ndarray, picture: Picture) -> np.ndarray:
    colours = samples[: len(samples) - picture.alpha]
    if picture.alpha:
        opaque = 1 if samples.dtype == bool else np.iinfo(samples.dtype).max
        if (samples[-1] != opaque).any():
            raise DataError(
                f"data.masks: {picture.path} has transparent pixels, so that its values are not certain; save it "
                "without alpha, or give data.colors"
            )
    if len(colours) > 1 and (colours != colours[:1]).any():
        raise DataError(
            f"data.masks: {picture.path} is a mask in colours; give data.colors, [red, green, blue] of every class"
        )
    return colours[0]


def _colours(picture: Picture, samples: np.ndarray) -> np.ndarray:
    """(H, W, 3 or 4)."""
    if picture.palette is not None:
        return picture.palette[samples[0]]
    return samples.transpose(1, 2, 0)


def _positions(pixels: np.ndarray, path: Path, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """(H, W) int64: which of `colors` every pixel has."""
    found = np.full(pixels.shape[:2], -1, np.int64)
    for position, colour in enumerate(colors):
        if len(colour) > pixels.shape[-1]:
            raise DataError(f"data.colors: {list(colour)} has {len(colour)} numbers, {path} only {pixels.shape[-1]}")
        found[(pixels[..., : len(colour)] == np.asarray(colour)).all(-1)] = position
    if (found < 0).any():
        unknown = np.unique(pixels[found < 0], axis=0)
        raise DataError(
            f"data.colors: {path} holds {unknown[:4].tolist()}, which are not among {list(map(list, colors))}"
        )
    return found


def _classes(values: np.ndarray, path: Path, reading: Reading) -> np.ndarray:
    if reading.colors is not None and values.dtype == np.int64:
        labels: Sequence[int] = range(len(reading.colors))
    else:
        labels = reading.labels
    if values.dtype == bool:  # white is what the label of 8 bits is, or 1
        values = values.astype(np.int64) * (255 if 255 in labels else 1)
    classes = np.full(values.shape, IGNORED, np.uint8)
    known = np.zeros(values.shape, bool)
    for position, label in enumerate(labels):
        here = values == label
        classes[here] = position
        known |= here
    if reading.ignore_label is not None:
        ignored = values == reading.ignore_label
        classes[ignored] = IGNORED
        known |= ignored
    if not known.all():
        unknown = np.unique(values[~known])
        many = len(unknown) > 8 or (len(labels) == 2 and len(unknown) > 2)
        hint = (
            "if these are numbers of objects, give data.masks_are: instances"
            if many
            else "add them, in the order of the classes"
        )
        raise DataError(
            f"data.labels: {path} holds {unknown[:8].tolist()}, which are not among the labels {list(labels)}; {hint}"
        )
    return classes


def _union(
    paths: Sequence[Path], reading: Reading, shape: tuple[int, ...], part: int | None, box: Box | None
) -> np.ndarray:
    """Class 1 where any of the masks says so; elsewhere no label where one of them has none."""
    if reading.num_classes != 2:
        raise DataError(
            f"data.masks: {paths[0].name} and {len(paths) - 1} more belong to one image; several masks need two labels "
            "or colours, or data.masks_are: instances"
        )
    union = _classes(mask_values(paths[0], reading, shape, part, box), paths[0], reading)
    for path in paths[1:]:
        classes = _classes(mask_values(path, reading, shape, part, box), path, reading)
        union[(classes == IGNORED) & (union == 0)] = IGNORED
        union[classes == 1] = 1
    return union
