"""K-Origins: a U-Net on raw intensities with trainable origins (arXiv 2409.02281)."""

from models.korigins.method import KOriginsSegmentation

__all__ = ["KOriginsSegmentation"]
