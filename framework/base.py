"""The two classes people subclass, under the name of the module that once held both."""

from framework.data import BaseDataModule
from framework.method import BaseMethod, Batch, Split, settle_epoch

__all__ = ["BaseDataModule", "BaseMethod", "Batch", "Split", "settle_epoch"]
