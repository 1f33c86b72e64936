"""The methods: one LightningModule each."""

from models.finola.autoencoder import FinolaAutoencoder
from models.finola.masked import MaskedFinola
from models.kmunet.method import KMUNet
from models.korigins.method import KOriginsSegmentation
from models.levels_of_experts.method import LevelsOfExperts
from models.master_key.method import MasterKeyClassifier

__all__ = [
    "FinolaAutoencoder",
    "KMUNet",
    "KOriginsSegmentation",
    "LevelsOfExperts",
    "MaskedFinola",
    "MasterKeyClassifier",
]
