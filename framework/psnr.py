"""PSNR of 8-bit images, image by image."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

PEAK = 255


class ImagePSNR(Metric):
    """10 log10(255^2 / MSE) of every image, the MSE over all its channels, then their mean, lowest or highest.

    Errors of 8-bit images are integers, so they are counted exactly: the figure is bit-equal however the images fall on
    batches and ranks. torchmetrics' PeakSignalNoiseRatio pools all images of an update into one error.

    Args:
        num_images: images that may occur.
        reduction: over the images seen.

    Attributes:
        per_image: (num_images,) float64 dB of the last `compute`; NaN for images not seen, infinite for equal ones.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    squared_error: Tensor
    values: Tensor

    def __init__(self, num_images: int, reduction: Literal["mean", "lowest", "highest"] = "mean") -> None:
        super().__init__()
        self.reduction = reduction
        for name in ("squared_error", "values"):
            self.add_state(name, torch.zeros(num_images, dtype=torch.int64), dist_reduce_fx="sum")
        self.per_image = torch.full((num_images,), torch.nan, dtype=torch.float64)

    def update(self, squared_error: Tensor, values: int, index: Tensor) -> None:
        """Counts images: the (B,) int64 sums of their squared errors, each over `values` values, and their index."""
        self.squared_error.index_add_(0, index, squared_error)
        self.values.index_add_(0, index, torch.full_like(squared_error, values))

    def compute(self) -> Tensor:
        """Scalar float32, dB."""
        self.per_image = 10 * torch.log10(PEAK**2 * self.values.double() / self.squared_error)
        seen = self.per_image[self.values > 0]
        if self.reduction == "mean":
            return seen.mean().float()
        return (seen.min() if self.reduction == "lowest" else seen.max()).float()


def squared_error_8bit(preds: Tensor, target: Tensor) -> Tensor:
    """Sums of squared differences after clipping and rounding to 8 bits.

    Args:
        preds: (B, ...) floating point, nominally in [-1, 1].
        target: (B, ...) floating point in [-1, 1].

    Returns:
        (B,) int64, in units of squared 8-bit levels.
    """
    difference = to_8bit(preds).int() - to_8bit(target).int()
    return difference.square().flatten(1).sum(1, dtype=torch.int64)


def to_8bit(values: Tensor) -> Tensor:
    """[-1, 1] to uint8, clipped and rounded; NaN, which no image has, becomes 0."""
    return ((values.float() + 1) * (PEAK / 2)).nan_to_num(0).round().clamp(0, PEAK).to(torch.uint8)
