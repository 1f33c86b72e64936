"""Pure functions from data to matplotlib figures; nothing here touches pyplot's global state."""

from framework.figures.curves import (
    training_curves,
)
from framework.figures.finola import (
    reconstruction_grid,
    residual_map,
    speed_spectrum,
)
from framework.figures.implicit import (
    error_panel,
    psnr_over_time,
    reconstruction_panel,
    segmentation_map_panel,
)
from framework.figures.origins import (
    origin_paths,
)
from framework.figures.segmentation import (
    segmentation_panel,
)
from framework.figures.separability import (
    separability,
)

__all__ = [
    "error_panel",
    "origin_paths",
    "psnr_over_time",
    "reconstruction_grid",
    "reconstruction_panel",
    "residual_map",
    "segmentation_map_panel",
    "segmentation_panel",
    "separability",
    "speed_spectrum",
    "training_curves",
]
