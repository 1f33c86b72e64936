"""Data modules; they know nothing of the models."""

from datamodules.cells import CellsDataModule
from datamodules.generated_images import GeneratedImagesDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.imagenet import ImageNetDataModule
from datamodules.kodak import KodakDataModule
from datamodules.photographs import PhotographsDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.squares import SquaresDataModule

__all__ = [
    "CellsDataModule",
    "GeneratedImagesDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "KodakDataModule",
    "PhotographsDataModule",
    "SegmentationDataModule",
    "SquaresDataModule",
]
