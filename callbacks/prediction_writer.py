"""Predictions as files named by sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from skimage import io

from framework.distributed import gather_lists
from framework.errors import ConfigError
from framework.protocols import NamesSamples, WritesPredictions


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns: a mapping with `index` int64 (B,), and tensors whose first axis is the batch.

    A uint8 or uint16 tensor (B, H, W) or (B, 3, H, W) becomes `INDEX_KEY.png`, anything else `INDEX_KEY.npy`. The
    index is the sample's unique id, so that many processes write into one folder without meeting. A data module with
    `sample_name(index)` replaces INDEX by the sample's name, and one with `write_prediction` writes masks in its own
    way; what it measures becomes `objects.csv`.

    Args:
        output_dir: target folder; None: `predictions` in the run folder.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides the folder; the same on every rank."""
        self.folder = Path(self.output_dir or Path(trainer.log_dir or trainer.default_root_dir) / "predictions")
        if stage == "predict":
            self.folder.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Lightning's hook.

        Raises:
            ConfigError: `predict_step` does not return a mapping with `index`.
        """
        if not isinstance(prediction, Mapping) or "index" not in prediction:
            raise ConfigError(
                f"PredictionWriter: predict_step of {type(pl_module).__name__} must return a mapping with the key "
                f"'index', got {type(prediction).__name__}"
            )
        data = getattr(trainer, "datamodule", None)
        name = data.sample_name if isinstance(data, NamesSamples) else "{:06d}".format
        for key, values in prediction.items():
            if key == "index":
                continue
            for index, value in zip(prediction["index"].tolist(), values, strict=True):
                array = value.detach().cpu().numpy()
                if not (isinstance(data, WritesPredictions) and data.write_prediction(self.folder, index, key, array)):
                    _write(self.folder, f"{name(index)}_{key}", array)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts together what the ranks have measured, as `objects.csv`.

        Raises:
            ConfigError: the file is there already.
        """
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, WritesPredictions):
            return
        rows = gather_lists(data.take_measurements())
        path = self.folder / "objects.csv"
        if trainer.is_global_zero and rows:
            if path.exists():
                raise ConfigError(
                    f"{path} is there already, and no file is replaced; give another output_dir or move it"
                )
            pd.DataFrame(rows).to_csv(path, index=False)


def _write(folder: Path, name: str, array: np.ndarray) -> None:
    if array.dtype in (np.uint8, np.uint16) and (array.ndim == 2 or (array.ndim == 3 and array.shape[0] == 3)):
        pixels = array if array.ndim == 2 else array.transpose(1, 2, 0)
        io.imsave(folder / f"{name}.png", pixels, check_contrast=False)
    else:
        np.save(folder / f"{name}.npy", array)
