"""The methods: one LightningModule each."""

from models.finola.autoencoder import FinolaAutoencoder
from models.finola.masked import MaskedFinola
from models.kmunet import KMUNet
from models.korigins import KOriginsSegmentation
from models.levels_of_experts import LevelsOfExperts
from models.master_key import MasterKeyClassifier

__all__ = [
    "FinolaAutoencoder",
    "KMUNet",
    "KOriginsSegmentation",
    "LevelsOfExperts",
    "MaskedFinola",
    "MasterKeyClassifier",
]
