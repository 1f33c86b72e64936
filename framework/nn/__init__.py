"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.finola import Finola
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
from framework.nn.linear_codes import Pca, dct_top, dct_zonal
from framework.nn.probe import linear_probe
from framework.nn.waves import commutator, complement_basis, pde_residual, wave_speeds

__all__ = [
    "Finola",
    "FoldedKOrigins",
    "KOrigins",
    "Pca",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "commutator",
    "complement_basis",
    "dct_top",
    "dct_zonal",
    "fold_korigins",
    "gaussian_mixture_statistics",
    "hellinger",
    "linear_probe",
    "multi_otsu_statistics",
    "origins_from_statistics",
    "pde_residual",
    "wave_speeds",
]
