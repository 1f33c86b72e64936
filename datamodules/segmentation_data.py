"""Image and mask files: reading them with every check, and augmentation that treats both alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.io import open_picture
from framework.errors import DataError

Normalize = Literal["zscore", "percentile", "depth", "none"]
DEPTHS = {np.dtype(bool): 1, np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}
SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """One sample: its unique index, its image file and its mask file (None in unlabelled prediction data)."""

    index: int
    image: Path
    mask: Path | None


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


def list_images(folder: Path, key: str) -> dict[str, Path]:
    """The image files of a folder by stem.

    Raises:
        DataError: no such folder, no image in it, or two images of one stem; `key` names the argument.
    """
    if not folder.is_dir():
        raise DataError(f"{key}: there is no folder {folder}; give data.root, data.images and data.masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise DataError(f"{key}: {path.name} and {found[path.stem].name} have one stem; remove one of them")
            found[path.stem] = path
    if not found:
        raise DataError(f"{key}: no image in {folder} (looked for {', '.join(SUFFIXES)})")
    return found


def read_array(path: Path) -> np.ndarray:
    """A file as (H, W) or (H, W, channels), its own dtype.

    Raises:
        DataError: the file cannot be decoded.
    """
    return open_picture(path).pixels()


def read_image(path: Path, channels: int, bit_depth: int | None) -> np.ndarray:
    """(channels, H, W) float32 in the file's own units; alpha is dropped, colour becomes grey by BT.601 and back.

    Raises:
        DataError: not decodable, of another depth than promised, or not finite.
    """
    return as_channels(read_array(path), path, channels, bit_depth)


def as_channels(array: np.ndarray, path: Path, channels: int, bit_depth: int | None) -> np.ndarray:
    """`read_image` for an array that has been read from `path`."""
    if bit_depth is not None and array.dtype != {8: np.uint8, 16: np.uint16}[bit_depth]:
        raise DataError(
            f"data.bit_depth: {bit_depth} bits were promised, but {path} holds {array.dtype}; give the right depth, or "
            "null to take any"
        )
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"data: {path} holds NaN or infinite values")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] > 4:
        raise DataError(f"data: {path} has shape {array.shape}; expected (H, W) or (H, W, 1 to 4)")
    if values.shape[-1] in (2, 4):
        values = values[..., :-1]
    if channels == 1 and values.shape[-1] == 3:
        values = values @ np.array([[0.299], [0.587], [0.114]], np.float32)
    if channels == 3 and values.shape[-1] == 1:
        values = np.repeat(values, 3, -1)
    if values.shape[-1] != channels:
        raise DataError(f"data.channels: expected {channels}, but {path} has {values.shape[-1]}")
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def read_mask(path: Path, labels: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint8 class map: the position of every pixel's value in `labels`.

    Raises:
        DataError: not decodable, of another size than its image, or holding a value that is no label.
    """
    array = read_array(path)
    if array.ndim == 3:
        array = array[..., 0]
    if array.shape != shape:
        raise DataError(
            f"data.masks: {path} is {array.shape}, its image is {shape}; masks must have their image's size"
        )
    classes = np.full(array.shape, 255, np.uint8)
    for position, label in enumerate(labels):
        classes[array == label] = position
    if (classes == 255).any():
        unknown = np.unique(array[classes == 255])
        raise DataError(
            f"data.labels: {path} holds {unknown[:8].tolist()}, which are not among the labels {list(labels)}; "
            "add them, in the order of the classes"
        )
    return classes


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
    votes = np.stack([blocks((mask == c).astype(np.float32)) for c in range(int(mask.max()) + 1)])
    return small, votes.argmax(0).astype(np.uint8)


def normalized(image: np.ndarray, how: Normalize, bit_depth: int) -> np.ndarray:
    """Per image: mean 0 and deviation 1; 0.1st to 99.9th percentile to [0, 1]; full depth to [0, 1]; or as is.

    Args:
        image: (C, H, W) float32.
        how: `zscore`, `percentile`, `depth` or `none`.
        bit_depth: bits of the image's file; only `depth` looks at it.

    Returns:
        (C, H, W) float32.
    """
    if how == "zscore":
        return (image - image.mean((1, 2), keepdims=True)) / np.maximum(image.std((1, 2), keepdims=True), 1e-6)
    if how == "percentile":
        low, high = np.percentile(image, [0.1, 99.9], axis=(1, 2), keepdims=True).astype(np.float32)
        return (image - low) / np.maximum(high - low, 1e-6)
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
    """Samples from files, read when asked for and, with `cache`, only once.

    Args:
        pairs: the files.
        read: keyword arguments `channels`, `bit_depth`, `labels`, `downscale`, `normalize`.
        augmentation: None for evaluation.
        crop: side of training crops.
        seed: of the augmentation, drawn from (seed, epoch, index).
        cache: keep decoded images in memory.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        read: dict[str, Any],
        augmentation: Augmentation | None,
        crop: int | None,
        seed: int,
        cache: bool,
    ) -> None:
        self.pairs = list(pairs)
        self.read, self.augmentation, self.crop, self.seed, self.cache = read, augmentation, crop, seed, cache
        self._kept: dict[int, tuple[np.ndarray, np.ndarray | None, int]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """`image` float32 (C, H, W), `mask` int64 (H, W) where there is one, `index` int64."""
        pair = self.pairs[place]
        image, mask, depth = self._files(int(place))
        if self.augmentation is not None and mask is not None:
            rng = np.random.default_rng([self.seed, getattr(place, "epoch", 0), pair.index])
            image, mask = augment(image, mask, self.augmentation, self.crop, rng)
        image = normalized(image, self.read["normalize"], depth)
        sample = {"image": torch.from_numpy(np.ascontiguousarray(image, np.float32)), "index": torch.tensor(pair.index)}
        if mask is not None:
            sample["mask"] = torch.from_numpy(mask.astype(np.int64))
        return sample

    def _files(self, place: int) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Image, mask, and bits of the image's file (0 where its numbers have no depth)."""
        if place in self._kept:
            return self._kept[place]
        pair = self.pairs[place]
        array = read_array(pair.image)
        image = as_channels(array, pair.image, self.read["channels"], self.read["bit_depth"])
        depth = DEPTHS.get(array.dtype, 0)
        if self.read["normalize"] == "depth" and not depth:
            raise DataError(
                f"data.normalize: depth needs files of unsigned whole numbers of 8 or 16 bits, but {pair.image} holds "
                f"{array.dtype}; give zscore, percentile or none"
            )
        mask = None if pair.mask is None else read_mask(pair.mask, self.read["labels"], image.shape[1:])
        small = shrink(image, mask, self.read["downscale"])
        if self.crop and self.augmentation is not None and min(small[0].shape[1:]) < self.crop:
            raise DataError(
                f"data.crop: {pair.image} is {small[0].shape[1:]} (after data.downscale), smaller than the crop of "
                f"{self.crop}; give a smaller crop"
            )
        sample = (*small, depth)
        if self.cache:
            self._kept[place] = sample
        return sample
