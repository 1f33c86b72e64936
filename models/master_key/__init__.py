"""Master key filters: classifiers whose depthwise filters are discrete scale-space operators (arXiv 2509.12746)."""

from models.master_key.method import MasterKeyClassifier

__all__ = ["MasterKeyClassifier"]
