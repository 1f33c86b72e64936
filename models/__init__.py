"""The methods: one LightningModule each."""

from models.korigins import KOriginsSegmentation
from models.levels_of_experts import LevelsOfExperts

__all__ = ["KOriginsSegmentation", "LevelsOfExperts"]
