"""The methods: one LightningModule each."""

from models.korigins import KOriginsSegmentation

__all__ = ["KOriginsSegmentation"]
