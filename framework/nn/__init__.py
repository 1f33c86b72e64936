"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.experts import (
    ExpertLinear,
    NestedSort,
    Segment,
    clip_segments,
    nested_sort,
    tile_index,
)
from framework.nn.finola import (
    Finola,
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
from framework.nn.korigins import (
    FoldedKOrigins,
    KOrigins,
    fold_korigins,
)
from framework.nn.linear_codes import (
    Pca,
    dct_top,
    dct_zonal,
)
from framework.nn.luminance import (
    equal_bins,
    kmeans_colours,
    luminance,
    map_bits,
    multi_otsu,
)
from framework.nn.probe import (
    linear_probe,
)
from framework.nn.siren import (
    Grid,
    SineLayer,
    coordinate_grid,
    siren_bound,
    siren_init_,
)
from framework.nn.waves import (
    commutator,
    complement_basis,
    pde_residual,
    wave_speeds,
)

__all__ = [
    "ExpertLinear",
    "Finola",
    "FoldedKOrigins",
    "Grid",
    "KOrigins",
    "NestedSort",
    "Pca",
    "Segment",
    "SineLayer",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "clip_segments",
    "commutator",
    "complement_basis",
    "coordinate_grid",
    "dct_top",
    "dct_zonal",
    "equal_bins",
    "fold_korigins",
    "gaussian_mixture_statistics",
    "hellinger",
    "kmeans_colours",
    "linear_probe",
    "luminance",
    "map_bits",
    "multi_otsu",
    "multi_otsu_statistics",
    "nested_sort",
    "origins_from_statistics",
    "pde_residual",
    "siren_bound",
    "siren_init_",
    "tile_index",
    "wave_speeds",
]
