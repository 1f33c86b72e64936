"""How files were read for a network stays with it: in its checkpoints, and from there in every evaluation."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from framework.protocols import HasInputContract, HasPreprocessing


@runtime_checkable
class Keeps(Protocol):
    """BaseMethod."""

    preprocessing: dict[str, Any] | None

    @property
    def attached_trainer(self) -> Trainer | None:
        """The Trainer, or None."""
        ...

    @property
    def data(self) -> LightningDataModule | None:
        """The Trainer's data module, or None."""
        ...


def keep(method: Keeps, checkpoint: dict[str, Any]) -> None:
    """Writes the data module's preprocessing into a checkpoint, or what the method knows from an earlier one."""
    if isinstance(method.data, HasPreprocessing):
        method.preprocessing = method.data.preprocessing()
    elif isinstance(method.data, HasInputContract):
        method.preprocessing = method.data.input_contract()
    if method.preprocessing is not None:
        checkpoint["preprocessing"] = method.preprocessing


def restore(method: Keeps, checkpoint: dict[str, Any]) -> None:
    """Takes a checkpoint's preprocessing over, and hands it on."""
    method.preprocessing = checkpoint.get("preprocessing")
    hand_on(method)


def hand_on(method: Keeps) -> None:
    """Gives the data module the preprocessing that the network was trained with; in `fit` it keeps its own."""
    trainer = method.attached_trainer
    evaluates = trainer is not None and trainer.state.fn != TrainerFn.FITTING
    if evaluates:
        hand_to(method.data, method.preprocessing)


def hand_to(data: Any, stored: Mapping[str, Any] | None) -> None:
    """Gives a data module a checkpoint's preprocessing, where there is one and the module takes it."""
    if stored is not None and isinstance(data, HasPreprocessing):
        data.use_preprocessing(stored)
