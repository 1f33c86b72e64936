"""Explicit Vision: five published explicit ideas for vision networks in one PyTorch Lightning framework."""

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
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


def export(module: "torch.nn.Module", out: str | Path, format: str = "pt2", **kwargs: Any) -> dict[str, Any]:
    """Writes a method's inference forms as files, each run in its own runtime and compared; see `framework.deploy`.

    Args:
        module: a method, or any module with `example`.
        out: folder of the files and of `export.json`.
        format: `pt2`, `onnx`, `torchscript` or `bioimageio`.
        kwargs: `precision`, `dynamic`, `sizes`, `example`, `calibration` of `framework.deploy.export`.

    Returns:
        the report.

    Raises:
        ConfigError: what cannot be, or would be wrong at other sizes.
    """
    return importlib.import_module("framework.deploy").export(module, out, format, **kwargs)
