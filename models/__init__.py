"""The methods: one LightningModule each."""

from models.kmunet import KMUNet
from models.korigins import KOriginsSegmentation

__all__ = ["KMUNet", "KOriginsSegmentation"]
