"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.intensity import (
    bayes_accuracy,
    bayes_confusion,
    bayes_iou,
    gaussian_mixture_statistics,
    hellinger,
    multi_otsu_statistics,
    origins_from_statistics,
)
from framework.nn.korigins import FoldedKOrigins, KOrigins, fold_korigins

__all__ = [
    "FoldedKOrigins",
    "KOrigins",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "fold_korigins",
    "gaussian_mixture_statistics",
    "hellinger",
    "multi_otsu_statistics",
    "origins_from_statistics",
]
