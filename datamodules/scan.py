"""What is looked at before training: the headers of all pictures, and masks until one shows an object."""

from collections.abc import Mapping, Sequence

import numpy as np

from datamodules.io import open_picture
from datamodules.masks import IGNORED, read_mask
from datamodules.pairing import Pair
from datamodules.picture import Picture
from datamodules.planes import check_slices, choose_channels, count_channels
from datamodules.reading import Reading
from datamodules.segmentation_data import SegmentationFiles
from framework.errors import ConfigError, DataError


def check_training(pairs: Sequence[Pair], reading: Reading, batch_size: int, crop: int | None) -> None:
    """Refuses training pictures that cannot come together in a batch or a network; no pixel is decoded.

    Args:
        pairs: the samples.
        reading: the input contract.
        batch_size: more than one sample needs one size, unless it is cropped.
        crop: side of the crops; None: whole pictures.

    Raises:
        DataError: pages of which nothing is known, other channels than asked for, or than the first picture's, another
            size, or one below the crop.
    """
    first: tuple[int, tuple[int, int]] | None = None
    seen = None
    for pair in pairs:
        if pair.image == seen:  # another slice of it
            continue
        seen = pair.image
        picture = open_picture(pair.image, reading.axes)
        check_slices(picture, reading.slices, pair.part)
        channels, size = _channels(picture, reading), picture.size
        first = first or (channels, size)
        if channels != first[0]:
            raise DataError(
                f"data.channels: {pair.image.name} has {channels} channels, {pairs[0].image.name} has {first[0]}; a "
                "network takes one number of them, give data.channels as a number or as a list of those to take"
            )
        if crop is None and batch_size > 1 and size != first[1]:
            raise _sizes_differ(pair, size, pairs[0], first[1], "data.crop")
        small = size[0] // reading.downscale, size[1] // reading.downscale
        if crop is not None and min(small) < crop:
            raise DataError(
                f"data.crop: {pair.image} is {small} (after data.downscale), smaller than the crop of {crop}; give a "
                "smaller crop"
            )


def check_evaluation(pairs: Sequence[Pair], reading: Reading, batch_size: int) -> None:
    """Refuses several sizes in one batch; how the files are read may yet come from a checkpoint.

    Raises:
        DataError: names the first picture of another size.
    """
    first = None
    for pair in pairs if batch_size > 1 else ():
        size = open_picture(pair.image, reading.axes).size
        first = first or size
        if size != first:
            raise _sizes_differ(pair, size, pairs[0], first, "data.eval_batch_size: 1")


def check_sizes(datasets: Mapping[str, object], reading: Reading, crop: int | None, least: int) -> None:
    """Refuses what a network cannot halve as often as it wants to; headers alone are read.

    Args:
        datasets: by split.
        reading: the input contract.
        crop: side of training crops.
        least: pixels of a side.

    Raises:
        ConfigError: the crop. DataError: names the first picture.
    """
    if crop is not None and crop < least and "train" in datasets:
        raise ConfigError(
            f"data.crop: expected at least {least} pixels for the network's poolings, got {crop}; give a larger "
            "crop, or use a network with fewer poolings"
        )
    pairs = [pair for files in datasets.values() if isinstance(files, SegmentationFiles) for pair in files.pairs]
    for path in dict.fromkeys(pair.image for pair in pairs):
        height, width = (side // reading.downscale for side in open_picture(path, reading.axes).size)
        if min(height, width) < least:
            raise DataError(
                f"data.images: expected at least {least} x {least} pixels for the network's poolings, got {height} x "
                f"{width} in {path}; leave it out, or use a network with fewer poolings"
            )


def _sizes_differ(pair: Pair, size: tuple[int, int], first: Pair, expected: tuple[int, int], key: str) -> DataError:
    return DataError(
        f"data.images: {pair.image.name} is {size}, {first.image.name} is {expected}; one batch needs one size, give "
        f"{key}"
    )


def _channels(picture: Picture, reading: Reading) -> int:
    count = count_channels(picture)
    colour = picture.colour or picture.palette is not None
    if reading.channels == 1 and colour and count == 3:
        return 1  # grey
    return len(choose_channels(np.empty((count, 0, 0)), reading.channels, picture.path))


def check_foreground(pairs: Sequence[Pair], reading: Reading) -> None:
    """Refuses training masks of which none shows anything; reads them until one does.

    Raises:
        DataError: nothing but background, or a mask that cannot be read.
    """
    for pair in pairs:
        size = open_picture(pair.image, reading.axes).size
        classes = read_mask(pair.masks, reading, size, pair.part)
        if ((classes != 0) & (classes != IGNORED)).any():
            return
    ground = "0" if reading.masks_are == "instances" else reading.class_names[0]
    raise DataError(
        f"data.masks: none of the {len(pairs)} training masks holds anything but background ({ground}), first "
        f"{pairs[0].masks[0]}; look at data.labels and data.masks_are, or at the files"
    )
