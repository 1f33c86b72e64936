"""Samples of images and masks: reading, shrinking, normalising, and augmentation that treats both alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.io import open_picture
from datamodules.masks import read_instances, read_mask
from datamodules.pairing import Pair
from datamodules.planes import image_of
from datamodules.reading import Reading
from framework.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes, 0 or False for none.

    Attributes:
        flip: mirror along each axis half of the time.
        rotate: largest angle in degrees.
        scale: largest relative change of size, e.g. 0.2 for 1 / 1.2 to 1.2.
        elastic: standard deviation in pixels of displacements on a 3 x 3 grid, interpolated by cubic splines
            (Ronneberger et al., arXiv 1505.04597, section 3.1).
        intensity: largest relative change of contrast, and of brightness in units of the image's standard deviation.
    """

    flip: bool = True
    rotate: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    intensity: float = 0.0


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


def normalized(image: np.ndarray, reading: Reading, bit_depth: int) -> np.ndarray:
    """Per channel, by `reading.normalize`.

    `zscore`: the image's mean 0 and deviation 1; `percentile`: its 0.1st to 99.9th percentile to [0, 1]; `depth`: the
    file's full depth to [0, 1]; `dataset`: the training images' mean 0 and deviation 1; `none`: as is.

    Args:
        image: (C, H, W) float32.
        reading: the input contract.
        bit_depth: bits of the image's file; only `depth` looks at it.

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
    return image / np.float32(2**bit_depth - 1) if how == "depth" else image


def augment(
    image: np.ndarray, mask: np.ndarray, settings: Augmentation, crop: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One random crop, turn, size, bend and mirror for image and mask together; then contrast and brightness.

    Args:
        image: (C, H, W) float32.
        mask: (H, W) uint8.
        settings: strengths.
        crop: side of the result; None keeps H and W.
        rng: the sample's own generator.

    Returns:
        (C, h, w) float32 by linear interpolation and (h, w) uint8 by the nearest pixel, borders mirrored.
    """
    height, width = mask.shape
    h, w = (crop, crop) if crop else (height, width)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    angle = np.deg2rad(rng.uniform(-settings.rotate, settings.rotate))
    size = (1 + settings.scale) ** rng.uniform(-1, 1)
    bends = rng.normal(0, 1, (2, 3, 3)) * settings.elastic
    mirror = rng.integers(2, size=2) * settings.flip
    gain, lift = rng.uniform(-1, 1, 2) * settings.intensity
    if angle or size != 1 or settings.elastic:
        y, x = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
        turned = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x]) / size
        turned += np.array([top + (h - 1) / 2, left + (w - 1) / 2])[:, None, None]
        if settings.elastic:
            turned += np.stack(
                [ndimage.zoom(b, (h / 3, w / 3), order=3, grid_mode=True, mode="nearest") for b in bends]
            )
        image = np.stack([ndimage.map_coordinates(c, turned, order=1, mode="reflect") for c in image])
        mask = ndimage.map_coordinates(mask, turned, order=0, mode="reflect")
    else:
        image, mask = image[:, top : top + h, left : left + w], mask[top : top + h, left : left + w]
    for axis in (1, 2):
        if mirror[axis - 1]:
            image, mask = np.flip(image, axis), np.flip(mask, axis - 1)
    if settings.intensity:
        mean = image.mean((1, 2), keepdims=True)
        image = mean + (image - mean) * (1 + gain) + lift * image.std((1, 2), keepdims=True)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)


class SegmentationFiles(Dataset):
    """Samples from files, read when asked for and, with a cache, as long as it has room for them.

    Args:
        pairs: the files.
        reading: how they become samples; looked at whenever a file is read.
        augmentation: None for evaluation.
        crop: side of training crops.
        seed: of the augmentation, drawn from (seed, epoch, index).
        cache: keep decoded samples in memory: True all, False none, a number so many megabytes.
        with_objects: instance masks also give `objects`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reading: Reading,
        augmentation: Augmentation | None = None,
        crop: int | None = None,
        seed: int = 0,
        cache: bool | int = False,
        with_objects: bool = False,
    ) -> None:
        self.with_objects = with_objects
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
        image, mask, depth = self._files(int(place))
        if self.augmentation is not None and mask is not None:
            rng = np.random.default_rng([self.seed, getattr(place, "epoch", 0), pair.index])
            image, mask = augment(image, mask, self.augmentation, self.crop, rng)
        image = normalized(image, self.reading, depth)
        sample = {"image": torch.from_numpy(np.ascontiguousarray(image, np.float32)), "index": torch.tensor(pair.index)}
        if mask is not None:
            sample["mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.with_objects and pair.masks and self.reading.masks_are == "instances":
            sample["objects"] = torch.from_numpy(self._objects(pair))
        return sample

    def _objects(self, pair: Pair) -> np.ndarray:
        """(H, W) int64 label image, where the picture is made smaller of the pixel in the middle of every block."""
        factor = self.reading.downscale
        height, width = open_picture(pair.image, self.reading.axes).size
        objects = read_instances(pair.masks, self.reading, (height, width), pair.part)
        kept = objects[: height // factor * factor, : width // factor * factor]
        return np.ascontiguousarray(kept[factor // 2 :: factor, factor // 2 :: factor])

    def _files(self, place: int) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Image, mask, and bits of the image's file (0 where its numbers have no depth)."""
        if place in self._kept:
            return self._kept[place]
        pair, reading = self.pairs[place], self.reading
        picture = open_picture(pair.image, reading.axes)
        image = image_of(picture, reading.channels, reading.bit_depth, reading.slices, pair.part)
        depth = picture.bits if picture.bits <= 16 else 0
        if reading.normalize == "depth" and not depth:
            raise DataError(
                f"data.normalize: depth needs files of unsigned whole numbers of 8 or 16 bits, but {pair.image} holds "
                f"{picture.dtype}; give zscore, percentile or none"
            )
        mask = read_mask(pair.masks, reading, image.shape[1:], pair.part) if pair.masks else None
        small = shrink(image, mask, reading.downscale)
        if self.crop and self.augmentation is not None and min(small[0].shape[1:]) < self.crop:
            raise DataError(
                f"data.crop: {pair.image} is {small[0].shape[1:]} (after data.downscale), smaller than the crop of "
                f"{self.crop}; give a smaller crop"
            )
        sample = (*small, depth)
        size = small[0].nbytes + (0 if small[1] is None else small[1].nbytes)
        if self._used + size <= self.room:
            self._used += size
            self._kept[place] = sample
        return sample
