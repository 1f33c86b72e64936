"""Explicit Vision: five published explicit ideas for vision networks in one PyTorch Lightning framework."""

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

__version__ = "0.1.0"

# Read by the run summary: wall time from here includes the heavy imports that follow.
IMPORTED_AT = time.monotonic()


def load(path: str | Path, device: str = "cpu") -> "LightningModule":
    """A method with the weights of a checkpoint; a segmenter has `predict(array or path, tile="auto")`.

    Args:
        path: the checkpoint.
        device: where the module goes, e.g. `cuda`.

    Raises:
        CheckpointError: no checkpoint, or one of a class that is not known.
    """
    # by name, as the command's verbs: what stands above is not imported from here
    return importlib.import_module("framework.commands.loading").load(path, device)
