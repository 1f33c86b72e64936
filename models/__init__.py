"""The methods: one LightningModule each."""

from models.finola.autoencoder import FinolaAutoencoder
from models.finola.masked import MaskedFinola
from models.korigins import KOriginsSegmentation

__all__ = [
    "FinolaAutoencoder",
    "KOriginsSegmentation",
    "MaskedFinola",
]
