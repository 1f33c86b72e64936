"""Data modules; they know nothing of the models."""

from datamodules.generated_images import GeneratedImagesDataModule
from datamodules.imagenet import ImageFolderDataModule, ImageNetDataModule
from datamodules.kodak import KodakDataModule
from datamodules.squares import SquaresDataModule

__all__ = [
    "GeneratedImagesDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "KodakDataModule",
    "SquaresDataModule",
]
