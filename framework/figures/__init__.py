"""Pure functions from data to matplotlib figures; nothing here touches pyplot's global state."""

from framework.figures.curves import training_curves
from framework.figures.finola import reconstruction_panel, residual_map, speed_spectrum
from framework.figures.origins import origin_paths
from framework.figures.segmentation import segmentation_panel
from framework.figures.separability import separability

__all__ = [
    "origin_paths",
    "reconstruction_panel",
    "residual_map",
    "segmentation_panel",
    "separability",
    "speed_spectrum",
    "training_curves",
]
