"""Samples of images and masks: reading, shrinking, normalising, and augmentation that treats both alike."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentation import Augmentation, Box, changed, cut, draw, numbers
from datamodules.exposure import Exposure, exposed
from datamodules.io import open_picture
from datamodules.masks import read_instances, read_mask
from datamodules.pairing import Pair
from datamodules.picture import Picture
from datamodules.planes import check_count, count_channels, image_of, white_of
from datamodules.reading import Reading
from framework.errors import ConfigError, DataError


def shrink(image: np.ndarray, mask: np.ndarray | None, factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Both `factor` times smaller: area means of the image, the majority class of the mask; what is over is cut off."""
    if factor == 1:
        return image, mask
    height, width = (s // factor for s in image.shape[1:])

    def blocks(a: np.ndarray) -> np.ndarray:
        cut = a[..., : height * factor, : width * factor]
        return cut.reshape(*a.shape[:-2], height, factor, width, factor).mean((-3, -1))

    small = blocks(image).astype(np.float32)
    if mask is None:
        return small, None
    present = np.unique(mask)
    votes = np.stack([blocks((mask == c).astype(np.float32)) for c in present])
    return small, present[votes.argmax(0)]


def normalized(image: np.ndarray, reading: Reading, white: int) -> np.ndarray:
    """Per channel, by `reading.normalize`.

    `zscore`: the image's mean 0 and deviation 1; `percentile`: its 0.1st to 99.9th percentile to [0, 1]; `depth`: the
    file's full depth to [0, 1]; `dataset`: the training images' mean 0 and deviation 1; `none`: as is.

    Args:
        image: (C, H, W) float32.
        reading: the input contract.
        white: the largest number of the image's file; only `depth` looks at it.

    Returns:
        (C, H, W) float32.
    """
    how = reading.normalize
    if how == "zscore":
        return (image - image.mean((1, 2), keepdims=True)) / np.maximum(image.std((1, 2), keepdims=True), 1e-6)
    if how == "percentile":
        low, high = np.percentile(image, [0.1, 99.9], axis=(1, 2), keepdims=True).astype(np.float32)
        return (image - low) / np.maximum(high - low, 1e-6)
    if how == "dataset":
        if reading.mean is None or reading.std is None or len(reading.mean) != len(image):
            raise DataError(
                f"data.normalize: dataset has the statistics of {len(reading.mean or [])} channels, but the image has "
                f"{len(image)}; they come from the training images or with the checkpoint"
            )
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (reading.mean, reading.std))
        return (image - mean) / np.maximum(std, np.float32(1e-6))
    return image / np.float32(white) if how == "depth" else image


def checked_cache(cache: bool | int) -> bool | int:
    """`data.cache`, or ConfigError for room below nothing."""
    if cache < 0:
        raise ConfigError(f"data.cache: expected true, false or megabytes from 0 on, got {cache}")
    return cache


class SegmentationFiles(Dataset):
    """Samples from files, read when asked for and, with a cache, kept as long as it has room for them.

    A training crop of a picture that the cache has no room for is read as a window of its file where the format allows
    it (uncompressed, tiled or striped TIFF, OME-Zarr, `.npy`); the sample is the same to the last bit.

    Args:
        pairs: the files.
        reading: how they become samples; looked at whenever a file is read.
        augmentation: None for evaluation.
        crop: side of training crops.
        seed: of the augmentation, drawn from (seed, epoch, index).
        cache: keep decoded samples in memory: True all, False none, a number so many megabytes.
        with_objects: instance masks also give `objects`.
        exposure: factors on the raw intensities, drawn from (seed, epoch, index).

    Attributes:
        later: leave augmentation and normalisation to the device (`datamodules.on_device`): samples hold the picture as
            it was read, `white` of its file and, in training, the `draws`.
    """

    later = False

    def __init__(
        self,
        pairs: Sequence[Pair],
        reading: Reading,
        augmentation: Augmentation | None = None,
        crop: int | None = None,
        seed: int = 0,
        cache: bool | int = False,
        with_objects: bool = False,
        exposure: Exposure = Exposure(),  # noqa: B008 (frozen)
    ) -> None:
        self.with_objects, self.exposure = with_objects, exposure
        #: `index` of the pictures that are read by windows, by somebody else: of them a sample has nothing more
        self.bare: frozenset[int] = frozenset()
        self.pairs = list(pairs)
        self.reading, self.augmentation, self.crop, self.seed = reading, augmentation, crop, seed
        self.room = (np.inf if cache else 0) if isinstance(cache, bool) else cache * 2**20
        self._kept: dict[int, tuple[np.ndarray, np.ndarray | None, int]] = {}
        self._used = 0

    def forget(self) -> None:
        """Empties the cache, because files are to be read anew."""
        self._kept, self._used = {}, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """`image` float32 (C, H, W), `mask` int64 (H, W) where there is one, `index` int64; `objects` int64 (H, W)."""
        pair = self.pairs[place]
        if pair.index in self.bare:
            return {"index": torch.tensor(pair.index)}
        rest, epoch = {}, getattr(place, "epoch", 0)
        if self.augmentation is not None and pair.masks and not self.later:
            image, mask, white = self._augmented(int(place), epoch, self.augmentation)
        else:
            image, mask, white = self._files(int(place))
            image = self._exposed(image, pair, epoch, white)
        if self.later:
            rest["white"] = torch.tensor(white)
            if self.augmentation is not None and pair.masks:
                rest["draws"] = self._draws(pair, image.shape[1:], epoch, self.augmentation)
        else:
            image = normalized(image, self.reading, white)
        sample = {"image": torch.from_numpy(np.ascontiguousarray(image, np.float32)), "index": torch.tensor(pair.index)}
        if mask is not None:
            sample["mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.with_objects and pair.masks and self.reading.masks_are == "instances":
            sample["objects"] = torch.from_numpy(self._objects(pair))
        return {**sample, **rest}

    def _exposed(self, image: np.ndarray, pair: Pair, epoch: int, white: int) -> np.ndarray:
        return exposed(image, self.exposure.factor(self.seed, epoch, pair.index), white)

    def _draws(self, pair: Pair, size: Sequence[int], epoch: int, settings: Augmentation) -> Tensor:
        self._check_crop(pair, size)
        rng = np.random.default_rng([self.seed, epoch, pair.index])
        return torch.from_numpy(numbers((size[0], size[1]), settings, self.crop, rng))

    def _check_crop(self, pair: Pair, size: Sequence[int]) -> None:
        if min(size) < (self.crop or 0):
            raise DataError(f"data.crop: {pair.image} is {tuple(size)}, smaller than the crop of {self.crop}")

    def _objects(self, pair: Pair) -> np.ndarray:
        """(H, W) int64 label image, where the picture is made smaller of the pixel in the middle of every block."""
        factor = self.reading.downscale
        height, width = open_picture(pair.image, self.reading.axes).size
        objects = read_instances(pair.masks, self.reading, (height, width), pair.part)
        kept = objects[: height // factor * factor, : width // factor * factor]
        return np.ascontiguousarray(kept[factor // 2 :: factor, factor // 2 :: factor])

    def _augmented(self, place: int, epoch: int, settings: Augmentation) -> tuple[np.ndarray, np.ndarray | None, int]:
        pair, picture = self.pairs[place], None
        if place in self._kept:
            height, width = self._kept[place][0].shape[1:]
        else:
            picture = open_picture(pair.image, self.reading.axes)
            height, width = (side // self.reading.downscale for side in picture.size)
        self._check_crop(pair, (height, width))
        rng = np.random.default_rng([self.seed, epoch, pair.index])
        change = draw((height, width), settings, self.crop, rng)
        box = change.box
        if picture is not None and picture.window is not None and not self._has_room(picture, (height, width)):
            image, mask, white = self._read(place, picture, box)
        else:
            image, mask, white = self._files(place)
            image, mask = cut(image, box), None if mask is None else cut(mask, box)
        assert mask is not None
        # the camera comes before everything that is done to its picture, but for `downscale`, which the cache has
        return *changed(self._exposed(image, pair, epoch, white), mask, change), white

    def _has_room(self, picture: Picture, size: tuple[int, int]) -> bool:
        reading = self.reading
        channels = len(reading.channels) if isinstance(reading.channels, list) else reading.channels
        each = 4 * (channels or count_channels(picture)) + 1
        return self._used + size[0] * size[1] * each <= self.room

    def _files(self, place: int) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Image, mask, and the largest number of the image's file (0 where its numbers have no depth)."""
        if place in self._kept:
            return self._kept[place]
        sample = self._read(place, open_picture(self.pairs[place].image, self.reading.axes))
        size = sample[0].nbytes + (0 if sample[1] is None else sample[1].nbytes)
        if self._used + size <= self.room:
            self._used += size
            self._kept[place] = sample
        return sample

    def _read(self, place: int, picture: Picture, box: Box | None = None) -> tuple[np.ndarray, np.ndarray | None, int]:
        """As `_files`, or only the box of it, which is counted in the pixels of the sample."""
        pair, reading = self.pairs[place], self.reading
        white = white_of(picture, reading)
        check_count(count_channels(picture), reading, pair.image)
        size, where, columns = picture.size, None, slice(None)
        if box is not None:
            y0, y1, x0, x1 = where = _times(box, reading.downscale)
            if reading.channels == 1 and (picture.colour or picture.palette is not None):
                # the last bit of a grey value depends on its place in the row
                columns, x0, x1 = slice(x0, x1), 0, size[1]
            picture = picture.cropped(y0, y1, x0, x1)
        image = image_of(picture, reading.channels, reading.bit_depth, reading.slices, pair.part)[..., columns]
        mask = read_mask(pair.masks, reading, size, pair.part, where) if pair.masks else None
        return *shrink(image, mask, reading.downscale), white


def _times(box: Box, factor: int) -> Box:
    y0, y1, x0, x1 = (side * factor for side in box)
    return y0, y1, x0, x1
