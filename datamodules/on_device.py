"""What loaders may leave to the device: normalisation of pictures, and of the segmenters the augmentation too.

The draws stay those of (seed, epoch, index) on the host; with them the device does to a whole batch what
`augmentation.changed` and `segmentation_data.normalized` do to one sample. Random erasing and timm's policies stay on
the host.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentation import Augmentation
from datamodules.io import open_picture
from datamodules.listing import ImageFiles
from datamodules.reading import Reading
from datamodules.segmentation_data import SegmentationFiles
from datamodules.transforms import EvalTransform, Finish, Later
from framework.data import BaseDataModule
from framework.errors import ConfigError, DataError


def finished(image: Tensor, finish: Finish) -> Tensor:
    """`Finish` for a batch.

    Args:
        image: (B, 3, H, W) uint8.
        finish: mean and deviation.

    Returns:
        (B, 3, H, W) float32.
    """
    x = image.float().div_(255)
    for value, change in ((finish.mean, x.sub_), (finish.std, x.div_)):
        if value is not None:
            change(torch.tensor(value).view(3, 1, 1).to(x.device, non_blocking=True))
    return x


def augmented(
    image: Tensor, mask: Tensor, draws: Tensor, settings: Augmentation, crop: int | None
) -> tuple[Tensor, Tensor]:
    """`augmentation.draw` and `changed` for a batch.

    Args:
        image: (B, C, H, W) float32.
        mask: (B, H, W) int64.
        draws: (B, 26) float64, `augmentation.numbers` of every sample.
        settings: strengths.
        crop: side of the result; None keeps H and W.

    Returns:
        (B, C, h, w) float32 and (B, h, w) int64.
    """
    h, w = (crop, crop) if crop else mask.shape[1:]
    top, left, angle, size, *_ = draws[:, :8, None, None].unbind(1)
    y, x = (torch.arange(n, dtype=torch.float64, device=draws.device) - (n - 1) / 2 for n in (h, w))
    y, x = y[:, None], x[None, :]
    if settings.rotate or settings.scale or settings.elastic:
        row = (angle.cos() * y - angle.sin() * x) / size + top + (h - 1) / 2
        column = (angle.sin() * y + angle.cos() * x) / size + left + (w - 1) / 2
        if settings.elastic:
            bends = draws[:, 8:].unflatten(1, (2, 3, 3))
            spread = [torch.from_numpy(_zoomed(n)).to(draws.device, non_blocking=True) for n in (h, w)]
            row, column = (
                at + torch.einsum("hi,bij,wj->bhw", spread[0], bend, spread[1])
                for at, bend in zip((row, column), bends.unbind(1), strict=True)
            )
        nearest = (row + 0.5).floor(), (column + 0.5).floor()
        image, mask = _linear(image, row, column), _pick(mask[:, None], *nearest)[:, 0]
    else:
        row, column = (y + top + (h - 1) / 2).round(), (x + left + (w - 1) / 2).round()
        row, column = (at.expand(-1, h, w) for at in (row, column))
        image, mask = _pick(image, row, column), _pick(mask[:, None], row, column)[:, 0]
    for axis, mirror in ((2, draws[:, 4]), (3, draws[:, 5])):
        chosen = mirror.bool()
        image = torch.where(chosen[:, None, None, None], image.flip(axis), image)
        mask = torch.where(chosen[:, None, None], mask.flip(axis - 1), mask)
    if settings.intensity:
        gain, lift = (draws[:, i, None, None, None].to(image.dtype) for i in (6, 7))
        mean, std = image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True, correction=0)
        image = mean + (image - mean) * (1 + gain) + lift * std
    return image, mask


def normalized(image: Tensor, reading: Reading, white: Tensor) -> Tensor:
    """`segmentation_data.normalized` for a batch.

    Args:
        image: (B, C, H, W) float32.
        reading: the input contract.
        white: (B,) largest numbers of the images' files.

    Returns:
        (B, C, H, W) float32.
    """
    how = reading.normalize
    if how == "zscore":
        std = image.std((2, 3), keepdim=True, correction=0).clamp_min(1e-6)
        return (image - image.mean((2, 3), keepdim=True)) / std
    if how == "percentile":
        low, high = _percentiles(image)
        return (image - low) / (high - low).clamp_min(1e-6)
    if how == "dataset":
        mean, std = (
            torch.tensor(v, dtype=torch.float32)[:, None, None].to(image.device, non_blocking=True)
            for v in (reading.mean, reading.std)
        )
        return (image - mean) / std.clamp_min(1e-6)
    return image / white.float()[:, None, None, None] if how == "depth" else image


def _percentiles(image: Tensor) -> tuple[Tensor, Tensor]:
    """The 0.1st and the 99.9th of every channel, linear between two values as NumPy's."""
    ordered = image.flatten(2).sort(-1).values.double()
    last = ordered.shape[-1] - 1
    found = []
    for share in (0.001, 0.999):
        below = int(share * last)
        part = share * last - below
        at = ordered[..., below] + part * (ordered[..., min(below + 1, last)] - ordered[..., below])
        found.append(at.float()[..., None, None])
    return found[0], found[1]


def _zoomed(n: int) -> np.ndarray:
    """(n, 3): cubic splines through three values, as `ndimage.zoom` of `augmentation.draw` has them along one axis."""
    return ndimage.zoom(np.eye(3), (n / 3, 1), order=3, grid_mode=True, mode="nearest")


def _reflected(at: Tensor, n: int) -> Tensor:
    """Whole places anywhere, float64, as places in [0, n), borders mirrored."""
    at = at.remainder(2 * n)
    return torch.where(at < n, at, 2 * n - 1 - at).long()


def _pick(image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(B, C, H, W) at whole rows and columns (B, h, w) -> (B, C, h, w)."""
    height, width = image.shape[2:]
    flat = _reflected(row, height) * width + _reflected(column, width)
    picked = image.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, image.shape[1], -1))
    return picked.unflatten(2, row.shape[1:])


def _linear(image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(B, C, H, W) between its pixels, float32; the places and weights in float64."""
    above, left = row.floor(), column.floor()
    down, right = (row - above)[:, None], (column - left)[:, None]
    total: Any = 0
    for i in (0, 1):
        for j in (0, 1):
            weight = (down if i else 1 - down) * (right if j else 1 - right)
            total = total + weight * _pick(image, above + i, left + j)
    return total.to(image.dtype)


# ---------------------------------------------------------------------- data modules


class FolderOnDevice(BaseDataModule):
    """A data module of `ImageFiles` that may leave the end of its transforms to the device."""

    eval_transform: EvalTransform

    def deferred(self, dataset: Dataset) -> Dataset:
        """With `on_device` the pictures in 8 bits.

        Raises:
            ConfigError: random erasing.
        """
        if not (self.on_device and isinstance(dataset, ImageFiles)):
            return dataset
        files, transform = copy.copy(dataset), cast(Any, dataset.transform)
        if getattr(transform, "erase", 0):
            raise ConfigError(
                "data.on_device: random erasing fills in noise after the normalisation; give data.erase: 0 or "
                "data.on_device: false"
            )
        files.transform = replace(transform, finish=Later(transform.finish.mean, transform.finish.std))
        return files

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """With `on_device` normalises there."""
        if not self.on_device or batch["image"].dtype != torch.uint8:
            return batch
        return {**batch, "image": finished(batch["image"], self.eval_transform.finish)}


class SegmentationOnDevice(BaseDataModule):
    """A data module of `SegmentationFiles` that may leave augmentation and normalisation to the device."""

    reading: Reading
    augmentation: Augmentation
    crop: int | None

    def deferred(self, dataset: Dataset) -> Dataset:
        """With `on_device` the files as they were read.

        Raises:
            DataError: training pictures of several sizes, which make no batch before they are cropped.
        """
        if not (self.on_device and isinstance(dataset, SegmentationFiles)):
            return dataset
        if dataset.crop and dataset.augmentation is not None and self.batch_size > 1:
            sizes = {open_picture(pair.image, self.reading.axes).size for pair in dataset.pairs}
            if len(sizes) > 1:
                raise DataError(
                    f"data.on_device: the training pictures are of {len(sizes)} sizes, such as "
                    f"{' and '.join(map(str, sorted(sizes)[:2]))}; give data.on_device: false, or pictures of one size"
                )
        files = copy.copy(dataset)
        files.later = True
        return files

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """With `on_device` augments and normalises there."""
        if not isinstance(batch, Mapping) or "white" not in batch:
            return batch
        done = {key: value for key, value in batch.items() if key not in ("white", "draws")}
        if "draws" in batch:
            done["image"], done["mask"] = augmented(
                batch["image"], batch["mask"], batch["draws"], self.augmentation, self.crop
            )
        done["image"] = normalized(done["image"], self.reading, batch["white"])
        return done
