"""Data modules; they know nothing of the models."""

from datamodules.kodak import KodakDataModule
from datamodules.squares import SquaresDataModule

__all__ = ["KodakDataModule", "SquaresDataModule"]
