"""Pure functions from data to matplotlib figures; nothing here touches pyplot's global state."""

from framework.figures.curves import training_curves
from framework.figures.origins import origin_paths
from framework.figures.segmentation import segmentation_panel
from framework.figures.separability import separability

__all__ = ["origin_paths", "segmentation_panel", "separability", "training_curves"]
