"""Data modules; they know nothing of the models."""

from datamodules.squares import SquaresDataModule

__all__ = ["SquaresDataModule"]
