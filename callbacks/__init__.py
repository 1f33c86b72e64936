"""Callbacks; each asks a module for layers or for a small protocol, never for a concrete class."""

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.figure_writer import FigureWriter
from callbacks.filter_replacement import FilterReplacement
from callbacks.grid_extension import GridExtension
from callbacks.interrupt_checkpoint import InterruptCheckpoint
from callbacks.linear_probe import LinearProbe
from callbacks.origin_paths import OriginPaths
from callbacks.parameter_summary import ParameterSummary
from callbacks.prediction_writer import PredictionWriter
from callbacks.segmentation_maps import SegmentationMaps
from callbacks.segmentation_report import SegmentationReport
from callbacks.spline_pruning import SplinePruning

__all__ = [
    "BestCheckpoint",
    "FigureWriter",
    "FilterReplacement",
    "GridExtension",
    "InterruptCheckpoint",
    "LastCheckpoint",
    "LinearProbe",
    "OriginPaths",
    "ParameterSummary",
    "PredictionWriter",
    "SegmentationMaps",
    "SegmentationReport",
    "SplinePruning",
]
