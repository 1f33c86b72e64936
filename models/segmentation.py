"""What methods that give every pixel a class share beside losses: checks, prediction in tiles, the inference form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from framework.deploy.form import Axis, InferenceForm, Port
from framework.errors import ConfigError
from framework.nn.modes import has_values
from framework.tiling import TileSize, tile_side, tiled


def check_classes(mask: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Raises ConfigError for a class that the method does not have; masks on an accelerator are not read.

    Args:
        mask: (B, H, W) int64.
        num_classes: C, background (0) included.
        ignore_index: mask value of pixels without a label.
    """
    if mask.is_cuda or not has_values(mask):
        return  # reading a value waits for the device
    labelled = mask if ignore_index is None else mask[mask != ignore_index]
    if labelled.numel() and (int(labelled.max()) >= num_classes or int(labelled.min()) < 0):
        raise ConfigError(
            f"model.num_classes: expected classes 0..{num_classes - 1}, but a mask holds {int(labelled.min())} to "
            f"{int(labelled.max())}; set num_classes, or model.ignore_index to the value of pixels without a label"
        )


def check_images(image: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Raises ConfigError for pictures that a network cannot take, before torch says it in its own words.

    Args:
        image: (B, N, H, W).
        channels: N of the network.
        dtype: of its parameters.
    """
    if image.dim() != 4 or image.shape[1] != channels:
        raise ConfigError(
            f"model.in_channels: expected pictures (B, {channels}, H, W), got {tuple(image.shape)}; set "
            "model.in_channels to their channels, or choose those to take with data.channels"
        )
    if image.dtype == torch.float64 and dtype != torch.float64:
        raise ConfigError(f"image: expected {dtype}, got {image.dtype}; convert it with .float()")


class Strided(Protocol):
    """A network that halves its pictures."""

    @property
    def stride(self) -> int:
        """Sides must be multiples of this, or are padded to."""
        ...

    @property
    def reach(self) -> int:
        """How far a logit looks to one side, in pixels."""
        ...


def predicted(
    method: nn.Module, image: Tensor, network: Strided, tile: TileSize, probabilities: bool = False
) -> dict[str, Tensor]:
    """The most probable class of every pixel; in tiles where pictures are large.

    Args:
        method: (B, N, h, w) -> (B, C, h, w) logits.
        image: the pictures.
        network: of the method; it knows its stride and its reach.
        tile: side of a tile, `auto`, or None for the whole picture.
        probabilities: whether they are wanted too.

    Returns:
        `mask` uint8 (B, H, W), and `probabilities` float32 (B, C, H, W) on the CPU.
    """
    height, width = image.shape[-2:]
    if tile_side(tile, (height, width)) >= max(height, width):
        logits = method(image)
        classes = {"mask": logits.argmax(1).to(torch.uint8)}
        return {**classes, "probabilities": logits.float().softmax(1).cpu()} if probabilities else classes
    mask = torch.empty(len(image), height, width, dtype=torch.uint8)
    shares: list[Tensor] = []
    for one, out in zip(image.split(1), mask, strict=True):
        parts = tiled(method, _reader(one), (height, width), network.stride, network.reach, tile)
        share = None
        for (y0, y1, x0, x1), logits in parts:
            out[y0:y1, x0:x1] = logits.argmax(0)
            if probabilities:
                share = torch.empty(len(logits), height, width) if share is None else share
                share[:, y0:y1, x0:x1] = logits.float().softmax(0)
        if share is not None:
            shares.append(share)
    classes = {"mask": mask.to(image.device)}
    return {**classes, "probabilities": torch.stack(shares)} if probabilities else classes


def _reader(image: Tensor) -> Callable[[int, int, int, int], Tensor]:
    return lambda y0, y1, x0, x1: image[..., y0:y1, x0:x1]


def class_words(preprocessing: Mapping[str, Any] | None, classes: int) -> list[str]:
    """Names of the classes as the input contract has them: label values, or kinds of pixel; else numbers."""
    known = preprocessing or {}
    if known.get("targets") == "distance":
        return ["background", *(f"level {level}" for level in range(1, classes))]
    if known.get("masks_are") == "instances" and classes == 3:
        return ["background", "inside", "border"]
    labels = known.get("labels") or []
    return [str(v) for v in (labels if len(labels) == classes and not known.get("colors") else range(classes))]


def segmenter_form(
    module: nn.Module,
    reference: Callable[..., Tensor],
    channels: int,
    stride: int,
    values: tuple[float, float],
    classes: Sequence[str],
    meaning: str,
    **kwargs: Any,
) -> InferenceForm:
    """A segmenter for pictures of any size.

    Args:
        module: (B, N, H, W) -> (B, C, H, W) logits; pads by itself.
        reference: the method.
        channels: N.
        stride: of the network.
        values: lowest and highest that a picture has.
        classes: names of the C classes.
        meaning: of the values.
        kwargs: further fields of InferenceForm.
    """
    # a coarsest map of one cell would be broadcast like a number, so that two are the least
    batch, sides = Axis("batch"), (Axis("height", stride + 1), Axis("width", stride + 1))
    image = Port("image", (batch, Axis("channels", fixed=channels), *sides), *values, meaning)
    logits = Port(
        "logits", (batch, Axis("classes", fixed=len(classes)), *sides), -100, 100, "the largest is the pixel's class"
    )
    return InferenceForm("segmenter", module, (image,), logits, reference, classes, **kwargs)
