"""Segmentation metrics that torchmetrics does not have in this form. All count on the device, in integers."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix


def foreground_iou(confusion: Tensor) -> Tensor:
    """Mean of TP / (TP + FP + FN) over the foreground classes 1..C-1 that occur in truth or prediction.

    Args:
        confusion: (C, C) integer counts, rows truth, columns prediction.

    Returns:
        scalar float64 in [0, 1]; NaN when no foreground class occurs.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    return torch.nanmean((hits / union)[1:])  # 0 / 0 = NaN marks an absent class


class ForegroundIoU(MulticlassConfusionMatrix):
    """IoU over a whole dataset: counts first, one ratio per class at the end, then the mean over foreground classes.

    Updated with preds and target, both int64 (B, H, W) class maps.
    """

    higher_is_better = True
    is_differentiable = False

    def compute(self) -> Tensor:
        """Scalar float32 in [0, 1]."""
        return foreground_iou(self.confmat).float()


class BatchForegroundIoU(Metric):
    """The K-Origins author's "custom accuracy": foreground IoU per batch, averaged over batches (specification, 7).

    It depends on how batches fall, so it is comparable only at one batch size on one process.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    batches: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts one batch of int64 (B, H, W) class maps; a batch without any foreground is skipped."""
        pairs = target.flatten() * self.num_classes + preds.flatten()
        confusion = torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes)
        iou = foreground_iou(confusion)
        present = ~iou.isnan()
        self.total += torch.where(present, iou, 0.0)
        self.batches += present

    def compute(self) -> Tensor:
        """Scalar float32 in [0, 1]."""
        return (self.total / self.batches).float()
