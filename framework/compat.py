"""Whatever leans on the insides of another library, each with the version that it was read from.

A test (`tests/test_compat.py`) fails when one of these changes.
"""

from collections.abc import Iterator

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer a module is in, or None; `LightningModule.trainer` raises instead (lightning 2.6.6)."""
    return module._trainer  # type: ignore[return-value]


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Copies of the model that Lightning's averaging callbacks (EMA, SWA) keep, with the model's own names inside.

    `_average_model` of WeightAveraging and StochasticWeightAveraging (lightning 2.6.6).
    """
    for callback in getattr(trainer, "callbacks", []):
        copy = getattr(callback, "_average_model", None)
        if isinstance(copy, AveragedModel):  # EMA wraps its copy, SWA does not
            copy = copy.module
        if isinstance(copy, nn.Module):
            yield copy
