"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.filter_banks import (
    BANKS,
    Match,
    approximate,
    bank_parameters,
    depthwise_convolutions,
    depthwise_weights,
    key_lines,
    make_bank,
    match_filters,
    random_bank,
    refit_bank,
)
from framework.nn.intensity import (
    bayes_accuracy,
    bayes_confusion,
    bayes_iou,
    gaussian_mixture_statistics,
    hellinger,
    multi_otsu_statistics,
    origins_from_statistics,
)
from framework.nn.key_filters import KeyFilterFit, fit_key_filters, idealised_bank, key_filter, load_filters
from framework.nn.korigins import FoldedKOrigins, KOrigins, fold_korigins
from framework.nn.replacement import (
    ReferenceStatistics,
    SharedPrefix,
    evaluating,
    recalibrated,
    reference_statistics,
    swapped,
)
from framework.nn.scale_space import discrete_gaussian, remove_mean, spread
from framework.nn.scale_space_conv import ScaleSpaceDepthwiseConv2d

__all__ = [
    "BANKS",
    "FoldedKOrigins",
    "KOrigins",
    "KeyFilterFit",
    "Match",
    "ReferenceStatistics",
    "ScaleSpaceDepthwiseConv2d",
    "SharedPrefix",
    "approximate",
    "bank_parameters",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "depthwise_convolutions",
    "depthwise_weights",
    "discrete_gaussian",
    "evaluating",
    "fit_key_filters",
    "fold_korigins",
    "gaussian_mixture_statistics",
    "hellinger",
    "idealised_bank",
    "key_filter",
    "key_lines",
    "load_filters",
    "make_bank",
    "match_filters",
    "multi_otsu_statistics",
    "origins_from_statistics",
    "random_bank",
    "recalibrated",
    "reference_statistics",
    "refit_bank",
    "remove_mean",
    "spread",
    "swapped",
]
