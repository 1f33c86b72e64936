"""The methods: one LightningModule each."""

from models.kmunet import KMUNet
from models.korigins import KOriginsSegmentation
from models.levels_of_experts import LevelsOfExperts

__all__ = [
    "KMUNet",
    "KOriginsSegmentation",
    "LevelsOfExperts",
]
