"""Class maps of the images: checked, read for a batch, and what they cost."""

import torch
from torch import Tensor

from framework.errors import ConfigError, DataError
from framework.nn import map_bits


def check_maps(maps: Tensor, classes: int) -> Tensor:
    """The maps of all images, (images, H, W) uint8, unless there are no experts for a class of theirs (DataError)."""
    if maps.dtype != torch.uint8 or maps.dim() != 3 or int(maps.max()) >= classes:
        raise DataError(
            f"segmentation_maps: expected uint8 (images, H, W) of classes 0..{classes - 1}, got {maps.dtype} "
            f"{tuple(maps.shape)} up to {int(maps.max())}; set model.classes to the map's number of classes"
        )
    return maps


def classes_of(maps: Tensor | None, index: Tensor, shape: torch.Size) -> Tensor:
    """(B, H W) int64 classes of the pixels of a batch of images (H, W) = `shape` laid out like the maps.

    Raises:
        ConfigError: there are no maps. DataError: maps of another size.
    """
    if maps is None:
        raise ConfigError(
            "model.experts: a layer wants a class map and there is none; add SegmentationMaps to trainer.callbacks, "
            "or call model.set_segmentation_maps(maps)"
        )
    chosen = maps[index]
    if chosen.shape[1:] != shape:
        raise DataError(
            f"segmentation_maps: expected maps of {tuple(shape)}, as the images, got {tuple(chosen.shape[1:])}"
        )
    return chosen.flatten(1).long()


def map_costs(maps: Tensor, sizes: list[list[int]], classes: int) -> list[dict[str, float]]:
    """What the maps of images of these [height, width] cost, per image, as `map_bits` states it."""
    own = [m.T if h > w else m for m, (h, w) in zip(maps.cpu(), sizes, strict=True)]
    return [map_bits(m.numpy(), classes) for m in own]
