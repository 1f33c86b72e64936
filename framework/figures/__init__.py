"""Pure functions from data to matplotlib figures; nothing here touches pyplot's global state."""

from framework.figures.curves import training_curves
from framework.figures.deployment import deployment
from framework.figures.filters import (
    explained_energy,
    filter_panel,
    operator_histograms,
    operator_label,
    replacement_figure,
    sigma_distributions,
)
from framework.figures.finola import reconstruction_grid, residual_map, speed_spectrum
from framework.figures.implicit import (
    derivative_panel,
    error_panel,
    psnr_over_time,
    reconstruction_panel,
    segmentation_map_panel,
)
from framework.figures.origins import origin_paths
from framework.figures.segmentation import confusion_matrix, instance_curves, instance_panel, segmentation_panel
from framework.figures.separability import separability
from framework.figures.splines import edge_strength_maps, outside_fractions, spline_curves

__all__ = [
    "confusion_matrix",
    "deployment",
    "derivative_panel",
    "edge_strength_maps",
    "error_panel",
    "explained_energy",
    "filter_panel",
    "instance_curves",
    "instance_panel",
    "operator_histograms",
    "operator_label",
    "origin_paths",
    "outside_fractions",
    "psnr_over_time",
    "reconstruction_grid",
    "reconstruction_panel",
    "replacement_figure",
    "residual_map",
    "segmentation_map_panel",
    "segmentation_panel",
    "separability",
    "sigma_distributions",
    "speed_spectrum",
    "spline_curves",
    "training_curves",
]
