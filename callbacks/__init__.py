"""Callbacks; each asks a module for layers or for a small protocol, never for a concrete class."""

from callbacks.figure_writer import (
    FigureWriter,
)
from callbacks.interrupt_checkpoint import (
    InterruptCheckpoint,
)
from callbacks.linear_probe import (
    LinearProbe,
)
from callbacks.origin_paths import (
    OriginPaths,
)
from callbacks.prediction_writer import (
    PredictionWriter,
)
from callbacks.segmentation_maps import (
    SegmentationMaps,
)

__all__ = [
    "FigureWriter",
    "InterruptCheckpoint",
    "LinearProbe",
    "OriginPaths",
    "PredictionWriter",
    "SegmentationMaps",
]
