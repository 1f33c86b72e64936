"""Data modules; they know nothing of the models."""

from datamodules.cells import CellsDataModule
from datamodules.kodak import KodakDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.squares import SquaresDataModule

__all__ = [
    "CellsDataModule",
    "KodakDataModule",
    "SegmentationDataModule",
    "SquaresDataModule",
]
