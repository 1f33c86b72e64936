"""Pure functions from data to matplotlib figures; nothing here touches pyplot's global state."""

from framework.figures.curves import training_curves
from framework.figures.filters import (
    explained_energy,
    filter_panel,
    operator_histograms,
    replacement_figure,
    sigma_distributions,
)
from framework.figures.implicit import error_panel, psnr_over_time, reconstruction_panel, segmentation_map_panel
from framework.figures.origins import origin_paths
from framework.figures.segmentation import segmentation_panel
from framework.figures.separability import separability

__all__ = [
    "error_panel",
    "explained_energy",
    "filter_panel",
    "operator_histograms",
    "origin_paths",
    "psnr_over_time",
    "reconstruction_panel",
    "replacement_figure",
    "segmentation_map_panel",
    "segmentation_panel",
    "separability",
    "sigma_distributions",
    "training_curves",
]
