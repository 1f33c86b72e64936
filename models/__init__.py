"""The methods: one LightningModule each."""

from models.korigins import KOriginsSegmentation
from models.levels_of_experts import LevelsOfExperts
from models.master_key import MasterKeyClassifier

__all__ = ["KOriginsSegmentation", "LevelsOfExperts", "MasterKeyClassifier"]
