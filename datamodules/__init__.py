"""Data modules; they know nothing of the models."""

from datamodules.imagenet import (
    ImageFolderDataModule,
    ImageNetDataModule,
)
from datamodules.kodak import (
    KodakDataModule,
)
from datamodules.photographs import (
    PhotographsDataModule,
)
from datamodules.squares import (
    SquaresDataModule,
)

__all__ = [
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "KodakDataModule",
    "PhotographsDataModule",
    "SquaresDataModule",
]
