"""Intensities of the training images: by class for models that start from them, by channel for normalisation."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datamodules.io import open_picture
from datamodules.masks import read_mask
from datamodules.pairing import Pair
from datamodules.planes import count_channels
from datamodules.reading import Reading
from datamodules.segmentation_data import SegmentationFiles, shrink
from framework.errors import DataError


def class_statistics(
    dataset: SegmentationFiles, names: Sequence[str], images: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every class, each (C, N), in the units of the samples.

    Args:
        dataset: whole training images with masks.
        names: of the classes.
        images: to look at, evenly spread; more are looked at while a class has not been seen.

    Raises:
        DataError: a class that no mask holds.
    """
    count = len(dataset)
    first = np.unique(np.linspace(0, count - 1, min(images, count)).round().astype(int)).tolist()
    values: list[list[np.ndarray]] = [[] for _ in names]
    for number, place in enumerate([*first, *(i for i in range(count) if i not in set(first))]):
        if number >= len(first) and all(values):
            break
        sample = dataset[place]
        image, mask = sample["image"].numpy(), sample["mask"].numpy()
        for c, found in enumerate(values):
            if (mask == c).any():
                found.append(image[:, mask == c])
    if missing := [name for name, found in zip(names, values, strict=True) if not found]:
        raise DataError(
            f"data.labels: no training mask holds class {missing[0]}, so that nothing is known of its intensities; "
            "look at data.labels, or give model.class_mean and model.class_std"
        )
    joined = [np.concatenate(v, 1).astype(np.float64) for v in values]
    return np.stack([v.mean(1) for v in joined]), np.stack([v.std(1) for v in joined])


def class_counts(pairs: Sequence[Pair], reading: Reading) -> np.ndarray:
    """(C,) int64 pixels of every class in the masks; of the images only the headers are read."""
    counts = np.zeros(256, np.int64)
    for pair in pairs:
        size = open_picture(pair.image, reading.axes).size
        mask = read_mask(pair.masks, reading, size, pair.part)
        _, small = shrink(np.empty((1, *size), np.float32), mask, reading.downscale)
        assert small is not None
        counts += np.bincount(small.ravel(), minlength=256)
    return counts[: reading.num_classes]


def channel_statistics(dataset: SegmentationFiles) -> tuple[list[float], list[float]]:
    """Mean and deviation of every channel over all pixels."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for place in range(len(dataset)):
        image = dataset[place]["image"].double().numpy()
        count += image[0].size
        total, squares = total + image.sum((1, 2)), squares + (image**2).sum((1, 2))
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()


def know_channels(pairs: Sequence[Pair], reading: Reading) -> None:
    """Fills in mean and deviation per channel over all training images, for `normalize: dataset`."""
    if reading.normalize == "dataset" and reading.mean is None:
        raw = Reading(**{**reading.plain(), "normalize": "none"})
        bare = [replace(pair, masks=()) for pair in pairs]
        reading.mean, reading.std = channel_statistics(SegmentationFiles(bare, raw))


def of_files(pairs: Sequence[Pair], reading: Reading) -> dict[str, int]:
    """What a network relies on and the settings leave open, where all its training files have it in common.

    Only headers are read.

    Args:
        pairs: the training files.
        reading: the settings.

    Returns:
        fields of Reading: `bit_depth` of raw intensities, `file_channels` that a list of channels chooses from; and
        `bits_of_files`, by which `normalize: depth` has divided, which files of another depth need not have.
    """
    raw = reading.normalize == "none" and reading.bit_depth is None
    chosen, scaled = isinstance(reading.channels, list), reading.normalize == "depth"
    if not raw and not chosen and not scaled:
        return {}
    pictures = [open_picture(path, reading.axes) for path in dict.fromkeys(pair.image for pair in pairs)]
    depths = {8 * p.dtype.itemsize if p.dtype in (np.uint8, np.uint16) else 0 for p in pictures}
    counts = {count_channels(picture) for picture in pictures}
    found = {"bit_depth": depths} if raw else {}
    found |= {"file_channels": counts} if chosen else {}
    # a white that is no power of two less one, as a PNM may have, is none of so many bits
    whites = {p.white.bit_length() if p.white + 1 == 2 ** p.white.bit_length() else 0 for p in pictures}
    found |= {"bits_of_files": whites} if scaled else {}
    return {name: value for name, (value, *others) in found.items() if value and not others}
