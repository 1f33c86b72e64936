"""The methods: one LightningModule each."""

from models.korigins import KOriginsSegmentation
from models.master_key import MasterKeyClassifier

__all__ = ["KOriginsSegmentation", "MasterKeyClassifier"]
