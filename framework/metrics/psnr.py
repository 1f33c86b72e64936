"""PSNR in both definitions: of every image and then the mean, and of the mean squared error of all images together."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio

PEAK = 255

Reduction = Literal["mean", "lowest", "highest"]


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

    def __init__(self, num_images: int, reduction: Reduction = "mean") -> None:
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
        """Scalar float32, dB; NaN before the first image."""
        self.per_image = 10 * torch.log10(PEAK**2 * self.values.double() / self.squared_error)
        seen = self.per_image[self.values > 0]
        if self.reduction == "mean" or not len(seen):
            return seen.mean().float()
        return (seen.min() if self.reduction == "lowest" else seen.max()).float()


class _FloatPSNR(PeakSignalNoiseRatio):
    """torchmetrics' figure and states; its own update copies the number of values from the host in every step."""

    sum_squared_error: Any
    total: Any

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts one batch."""
        error = (preds - target).square()
        if self.dim is None:
            self.sum_squared_error += error.sum()
            self.total += error.numel()
        else:
            summed = error.sum(self.dim)
            self.sum_squared_error.append(summed)
            self.total.append(torch.full_like(summed, error.numel() // summed.numel(), dtype=torch.int64))

    def compute(self) -> Tensor:
        """Scalar float32, dB; NaN before the first image."""
        if isinstance(self.total, list) and not self.total:
            return torch.full((), torch.nan, device=self.device)
        return super().compute()


def float_psnr(dims: int = 4, data_range: float = 1.0) -> PeakSignalNoiseRatio:
    """Mean over images of 10 log10(range^2 / MSE), the MSE over all values of an image, for floating-point images.

    Updated with preds and target, both (B, ...) with `dims` dimensions. ImagePSNR is the same definition on 8 bits.

    Args:
        dims: dimensions of a batch: 4 for (B, C, H, W), 2 for (B, values).
        data_range: difference of the highest and the lowest value that can occur.
    """
    return _FloatPSNR(data_range=data_range, dim=tuple(range(1, dims)))


def float_psnr_pooled(data_range: float = 1.0) -> PeakSignalNoiseRatio:
    """10 log10(range^2 / MSE), the MSE over all values of all images together.

    For images of one size it is never above `float_psnr`.

    Args:
        data_range: difference of the highest and the lowest value that can occur.
    """
    return _FloatPSNR(data_range=data_range)


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
