"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

from framework.nn.bspline import (
    SplineGrid,
    bspline_basis,
)
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
from framework.nn.kan import (
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
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
from framework.nn.spline_layer import (
    SplineLayer,
    spline_layers,
)
from framework.nn.spline_moments import (
    CrossMoments,
    SplineMoments,
    observe,
)
from framework.nn.waves import (
    commutator,
    complement_basis,
    pde_residual,
    wave_speeds,
)

__all__ = [
    "CrossMoments",
    "ExpertLinear",
    "Finola",
    "FoldedKOrigins",
    "Grid",
    "KANConv2d",
    "KANConvTranspose2d",
    "KANLinear",
    "KOrigins",
    "NestedSort",
    "Pca",
    "Segment",
    "SineLayer",
    "SplineGrid",
    "SplineLayer",
    "SplineMoments",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "bspline_basis",
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
    "observe",
    "origins_from_statistics",
    "pde_residual",
    "siren_bound",
    "siren_init_",
    "spline_layers",
    "tile_index",
    "wave_speeds",
]
