"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.bspline import SplineGrid, bspline_basis
from framework.nn.intensity import (
    bayes_accuracy,
    bayes_confusion,
    bayes_iou,
    gaussian_mixture_statistics,
    hellinger,
    multi_otsu_statistics,
    origins_from_statistics,
)
from framework.nn.kan import KANConv2d, KANConvTranspose2d, KANLinear
from framework.nn.korigins import FoldedKOrigins, KOrigins, fold_korigins
from framework.nn.spline_layer import SplineLayer, spline_layers
from framework.nn.spline_moments import CrossMoments, SplineMoments, observe

__all__ = [
    "CrossMoments",
    "FoldedKOrigins",
    "KANConv2d",
    "KANConvTranspose2d",
    "KANLinear",
    "KOrigins",
    "SplineGrid",
    "SplineLayer",
    "SplineMoments",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "bspline_basis",
    "fold_korigins",
    "gaussian_mixture_statistics",
    "hellinger",
    "multi_otsu_statistics",
    "observe",
    "origins_from_statistics",
    "spline_layers",
]
