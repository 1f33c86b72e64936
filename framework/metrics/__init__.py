"""The only definitions of IoU, Dice and PSNR. All count over a whole dataset first and make their ratios at the end."""

from framework.metrics.mean import SampleMean
from framework.metrics.psnr import ImagePSNR, Reduction, float_psnr, float_psnr_pooled, squared_error_8bit, to_8bit
from framework.metrics.segmentation import (
    BatchForegroundIoU,
    ClassDice,
    ClassIoU,
    ForegroundDice,
    ForegroundIoU,
    dice_by_class,
    iou_by_class,
    mean_over_present,
    overlap_metrics,
)

__all__ = [
    "BatchForegroundIoU",
    "ClassDice",
    "ClassIoU",
    "ForegroundDice",
    "ForegroundIoU",
    "ImagePSNR",
    "Reduction",
    "SampleMean",
    "dice_by_class",
    "float_psnr",
    "float_psnr_pooled",
    "iou_by_class",
    "mean_over_present",
    "overlap_metrics",
    "squared_error_8bit",
    "to_8bit",
]
