"""The layers and the mathematics behind them: plain torch and numpy, no Lightning, no data, no plotting."""

import importlib
import sys
from types import ModuleType

import framework.nn.flops  # noqa: F401  registers its formulas
from framework.nn.coordinates.experts import ExpertLinear, NestedSort, Segment, clip_segments, nested_sort, tile_index
from framework.nn.coordinates.luminance import equal_bins, kmeans_colours, luminance, map_bits, multi_otsu
from framework.nn.coordinates.siren import Grid, SineLayer, coordinate_grid, siren_bound, siren_init_
from framework.nn.filters.banks import (
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
)
from framework.nn.filters.dictionaries import refit_bank
from framework.nn.filters.fitting import fit_key_filters
from framework.nn.filters.key_filters import KeyFilterFit, idealised_bank, key_filter, load_filters
from framework.nn.filters.replacement import (
    ReferenceStatistics,
    SharedPrefix,
    evaluating,
    recalibrated,
    reference_statistics,
    swapped,
)
from framework.nn.filters.scale_space import discrete_gaussian, remove_mean, spread
from framework.nn.filters.scale_space_conv import ScaleSpaceDepthwiseConv2d
from framework.nn.origins.intensity import (
    bayes_accuracy,
    bayes_confusion,
    bayes_iou,
    gaussian_mixture_statistics,
    hellinger,
    multi_otsu_statistics,
    origins_from_statistics,
)
from framework.nn.origins.korigins import FoldedKOrigins, KOrigins, fold_korigins
from framework.nn.splines.bspline import SplineGrid, bspline_basis
from framework.nn.splines.forms import FormError, SplineForm, form_errors, spline_form
from framework.nn.splines.kan import KANConv2d, KANConvTranspose2d, KANLinear
from framework.nn.splines.layer import SplineLayer, spline_layers
from framework.nn.splines.moments import CrossMoments, SplineMoments, observe
from framework.nn.splines.optimizer import map_moments
from framework.nn.splines.pruning import choose_edges, edge_scores
from framework.nn.waves.analysis import commutator, complement_basis, pde_residual, wave_speeds
from framework.nn.waves.finola import Finola
from framework.nn.waves.linear_codes import Pca, dct_top, dct_zonal
from framework.nn.waves.probe import linear_probe

#: modules by their names before they were put into folders, and where their contents are now; other people's code
#: imports from them
_MOVED = {
    "bspline": "splines.bspline",
    "experts": "coordinates.experts",
    "filter_banks": "filters.banks filters.dictionaries",
    "finola": "waves.finola waves.steps",
    "intensity": "origins.intensity",
    "kan": "splines.kan",
    "key_filters": "filters.key_filters filters.fitting",
    "korigins": "origins.korigins",
    "linear_codes": "waves.linear_codes",
    "luminance": "coordinates.luminance",
    "probe": "waves.probe",
    "replacement": "filters.replacement",
    "scale_space": "filters.scale_space",
    "scale_space_conv": "filters.scale_space_conv",
    "siren": "coordinates.siren",
    "spline_expansion": "splines.expansion",
    "spline_layer": "splines.layer splines.coefficients splines.stored",
    "spline_moments": "splines.moments",
    "spline_optimizer": "splines.optimizer",
    "spline_pruning": "splines.pruning",
}
for _old, _homes in _MOVED.items():
    _module, *_others = (importlib.import_module(f"{__name__}.{home}") for home in _homes.split())
    if _others:  # cut along its meaning since: the old name shows all parts
        _parts, _module = [_module, *_others], ModuleType(f"{__name__}.{_old}", _module.__doc__)
        for _part in _parts:
            vars(_module).update({k: v for k, v in vars(_part).items() if not k.startswith("__")})
    sys.modules[f"{__name__}.{_old}"] = _module
    globals().setdefault(_old, _module)

__all__ = [
    "BANKS",
    "CrossMoments",
    "ExpertLinear",
    "Finola",
    "FoldedKOrigins",
    "FormError",
    "Grid",
    "KANConv2d",
    "KANConvTranspose2d",
    "KANLinear",
    "KOrigins",
    "KeyFilterFit",
    "Match",
    "NestedSort",
    "Pca",
    "ReferenceStatistics",
    "ScaleSpaceDepthwiseConv2d",
    "Segment",
    "SharedPrefix",
    "SineLayer",
    "SplineForm",
    "SplineGrid",
    "SplineLayer",
    "SplineMoments",
    "approximate",
    "bank_parameters",
    "bayes_accuracy",
    "bayes_confusion",
    "bayes_iou",
    "bspline_basis",
    "choose_edges",
    "clip_segments",
    "commutator",
    "complement_basis",
    "coordinate_grid",
    "dct_top",
    "dct_zonal",
    "depthwise_convolutions",
    "depthwise_weights",
    "discrete_gaussian",
    "edge_scores",
    "equal_bins",
    "evaluating",
    "fit_key_filters",
    "fold_korigins",
    "form_errors",
    "gaussian_mixture_statistics",
    "hellinger",
    "idealised_bank",
    "key_filter",
    "key_lines",
    "kmeans_colours",
    "linear_probe",
    "load_filters",
    "luminance",
    "make_bank",
    "map_bits",
    "map_moments",
    "match_filters",
    "multi_otsu",
    "multi_otsu_statistics",
    "nested_sort",
    "observe",
    "origins_from_statistics",
    "pde_residual",
    "random_bank",
    "recalibrated",
    "reference_statistics",
    "refit_bank",
    "remove_mean",
    "siren_bound",
    "siren_init_",
    "spline_form",
    "spline_layers",
    "spread",
    "swapped",
    "tile_index",
    "wave_speeds",
]
