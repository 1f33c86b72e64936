"""`framework.load`: a checkpoint as a module that predicts arrays and files, without a Trainer."""

import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

import models
from datamodules.io import open_picture
from datamodules.planes import check_count, check_white, choose_channels, count_channels, image_of, white_of
from datamodules.predictions import label_image
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized, shrink
from datamodules.windows import Window, windows
from framework.checkpoints import load_checkpoint
from framework.errors import CheckpointError, ConfigError, DataError
from framework.method import BaseMethod
from framework.serialization import class_path, same_class
from framework.tiling import TileSize, tile_side, tiled


def load(path: str | Path, device: str | torch.device = "cpu") -> LightningModule:
    """A method with the weights of a checkpoint, in evaluation mode.

    A segmenter also gets `predict(picture, tile="auto")`, see `predict`. Nothing in the file is called: its class must
    be one of ours, or one of the user's that is already imported.

    Args:
        path: the checkpoint.
        device: where the module goes.

    Raises:
        CheckpointError: no checkpoint, or one of a class that is not known.
    """
    stored = str(load_checkpoint(Path(path)).get("class_path"))
    kind = next((k for k in _methods() if same_class(class_path(k), stored)), None)
    if kind is None:
        raise CheckpointError(
            f"{path}: expected one of {', '.join(models.__all__)}, or a class of yours that is imported before, got a "
            f"{stored}"
        )
    module = cast(Any, kind).load_from_checkpoint(path, map_location="cpu", weights_only=True).to(device).eval()
    if hasattr(getattr(module, "network", None), "reach"):
        module.predict = types.MethodType(predict, module)
    return module


def _methods() -> list[type[BaseMethod]]:
    found: list[type[BaseMethod]] = []
    waiting: list[type[BaseMethod]] = [BaseMethod]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return found


@torch.no_grad()
def predict(self: Any, picture: np.ndarray | Tensor | str | Path, tile: TileSize = "auto") -> np.ndarray:
    """Label values of a picture: what `framework predict` writes.

    Args:
        self: a segmenter that `load` gave back.
        picture: a file of any kind that the training could have read, or an array of raw intensities (H, W) or
            (N, H, W), which are normalised as the training images were.
        tile: side of the tiles of large pictures; `auto`; None: the whole picture at once. The result is the same.

    Returns:
        (H, W) in the smallest unsigned type: label values, or with `masks_are: instances` the objects' numbers.

    Raises:
        DataError: a picture that does not meet what the network was trained on, by name.
        ConfigError: neither a picture nor an array of numbers.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    if not isinstance(picture, np.ndarray | str | Path):
        raise ConfigError(f"predict: expected an array or the path of a picture, got {type(picture).__name__}")
    stored = {"normalize": "none", "channels": None, "labels": list(range(self.num_classes))}
    stored |= self.preprocessing or {}
    reading = Reading()
    reading.take_over(stored)
    name = "the array" if isinstance(picture, np.ndarray) else str(picture)
    read, size = _source(picture, reading, tile)
    height, width = (side // reading.downscale for side in size)
    wanted = int(self.hparams["in_channels"])
    if (channels := len(read(0, 1, 0, 1))) != wanted:
        raise DataError(f"data.channels: {name} has {channels} channels, the network was trained on {wanted}")

    def window(y0: int, y1: int, x0: int, x1: int) -> Tensor:
        values = np.ascontiguousarray(read(y0, y1, x0, x1), np.float32)
        return torch.from_numpy(values)[None].to(self.device)

    classes = torch.empty(height, width, dtype=torch.uint8)
    for (y0, y1, x0, x1), logits in tiled(self, window, (height, width), self.network.stride, self.network.reach, tile):
        classes[y0:y1, x0:x1] = logits.argmax(0)
    return label_image(classes.numpy(), reading, size)


def _source(picture: np.ndarray | str | Path, reading: Reading, tile: TileSize) -> tuple[Window, tuple[int, int]]:
    """Normalised channels by windows, of the file itself where it is large, and the picture's height and width."""
    if not isinstance(picture, np.ndarray):
        opened = open_picture(picture, reading.axes)
        in_parts = tile_side(tile, opened.size) < max(opened.size)
        if in_parts and (read := windows(opened, reading)) is not None:
            return read, opened.size
    image, white = _pixels(picture, reading)
    small, _ = shrink(image, None, reading.downscale)
    values = normalized(small, reading, white)
    return (lambda y0, y1, x0, x1: values[:, y0:y1, x0:x1]), (image.shape[1], image.shape[2])


def _pixels(picture: np.ndarray | str | Path, reading: Reading) -> tuple[np.ndarray, int]:
    """(N, H, W) float32 raw intensities, and the largest of the numbers they come from (0: there is none)."""
    if not isinstance(picture, np.ndarray):
        opened = open_picture(picture, reading.axes)
        check_count(count_channels(opened), reading, picture)
        slices = None if reading.slices == "each" else reading.slices
        white = white_of(opened, reading)
        return image_of(opened, reading.channels, reading.bit_depth, slices), white
    if picture.ndim not in (2, 3) or picture.dtype.kind not in "biuf" or not picture.size:
        raise ConfigError(
            f"predict: expected numbers (H, W) or (N, H, W), got {picture.dtype} of shape {picture.shape}"
        )
    if isinstance(picture, np.ma.MaskedArray):
        raise ConfigError("predict: expected every pixel, got a masked array; give its `filled(...)`")
    array = picture if picture.ndim == 3 else picture[None]
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("predict: the array holds NaN or infinite values")
    bits = 8 * array.dtype.itemsize if array.dtype.kind == "u" else 0
    white = 2**bits - 1 if bits <= 16 else 0
    check_white(white, reading, "the array", array.dtype)
    _check_depth(array, values, reading)
    check_count(len(values), reading, "the array")
    return choose_channels(values, reading.channels, "the array"), white


def _check_depth(array: np.ndarray, values: np.ndarray, reading: Reading) -> None:
    """Raw intensities mean what they meant in training: whole numbers of another depth, and shares of 1, do not."""
    if reading.normalize != "none" or reading.bit_depth is None:
        return
    other = array.dtype.kind == "u" and 8 * array.dtype.itemsize != reading.bit_depth
    if other or (array.dtype.kind == "f" and 0 < values.max() <= 1):
        raise DataError(
            f"predict: expected raw intensities of {reading.bit_depth} bits, as the network was trained on, got "
            f"{array.dtype} up to {values.max():g}; give the numbers of the camera"
        )
