"""The only definitions of IoU, Dice, PSNR and of the figures of objects: counts of a whole dataset, then ratios."""

from framework.metrics.instances import InstanceFigure, Matches, instance_figures, match_objects
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
    "InstanceFigure",
    "Matches",
    "Reduction",
    "SampleMean",
    "dice_by_class",
    "float_psnr",
    "float_psnr_pooled",
    "instance_figures",
    "iou_by_class",
    "match_objects",
    "mean_over_present",
    "overlap_metrics",
    "squared_error_8bit",
    "to_8bit",
]
