"""Figures of a run, as PNG files and in TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from callbacks.when import begins_anew, is_whole
from framework.distributed import run_folder
from framework.errors import ConfigError
from framework.figures import training_curves
from framework.nn.filters.replacement import evaluating
from framework.outputs import free_path, optional_output
from framework.protocols import DrawsFigures


class FigureWriter(Callback):
    """Writes the figures a module draws of its first evaluation batch, and the training curves, at the end of a run.

    They go to `figures/NAME.png` in the run folder, `NAME_1.png` for those of a second verb of one Trainer, and to
    TensorBoard when it is there.

    Args:
        max_samples: of the first batch to draw.
        dpi: dots per inch of the PNG files.
    """

    def __init__(self, max_samples: int = 4, dpi: int = 110) -> None:
        for name, value in {"max_samples": max_samples, "dpi": dpi}.items():
            if not is_whole(value, 1):
                raise ConfigError(f"FigureWriter.{name}: expected a whole number, at least 1, got {value}")
        self.max_samples = max_samples
        self.dpi = dpi
        self._begin()

    def _begin(self) -> None:
        self.elapsed: float | None = None
        self._first_step_at: float | None = None
        self._batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets what it has kept of another fit."""
        if begins_anew(trainer, stage):
            self._begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers when training began."""
        if self._first_step_at is None:
            self._first_step_at = time.monotonic()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the first samples of the first batch."""
        if batch_idx == 0 and dataloader_idx == 0 and trainer.is_global_zero:
            self._batch = self._head(batch)

    on_test_batch_start = on_validation_batch_start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws everything."""
        self._write_all(trainer, pl_module, curves=True)
        if self._first_step_at is not None:
            self.elapsed = time.monotonic() - self._first_step_at

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the module's figures."""
        self._write_all(trainer, pl_module, curves=False)

    @rank_zero_only
    def _write_all(self, trainer: Trainer, pl_module: LightningModule, curves: bool) -> None:
        if getattr(trainer, "fast_dev_run", False) or not trainer.loggers:
            return
        if isinstance(pl_module, DrawsFigures) and self._batch is not None:
            with evaluating(pl_module), trainer.precision_plugin.forward_context():
                drawn = pl_module.figures(self._batch)
            for name, figure in drawn.items():
                save_figure(trainer, name, figure, self.dpi)
        if curves and (figure_of_curves := _curves(trainer)) is not None:
            save_figure(trainer, "training_curves", figure_of_curves, self.dpi)

    def _head(self, batch: Any) -> Any:
        if not isinstance(batch, Mapping):
            return batch
        lengths = [len(v) for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim]
        lengths = lengths or [len(v) for v in batch.values() if isinstance(v, list | tuple)]

        def cut(value: Any) -> bool:
            many = isinstance(value, list | tuple) and len(value) == max(lengths)
            return many or (isinstance(value, torch.Tensor) and value.ndim > 0)

        return {k: v[: self.max_samples] if cut(v) else v for k, v in batch.items()}


def save_figure(trainer: Trainer, name: str, figure: Figure, dpi: int = 110) -> Path:
    """Writes `figures/NAME.png` into the run folder, and to TensorBoard when it is there. Rank 0 only.

    A file that is there stays: the figures of a second verb of one Trainer are called `NAME_1.png`.
    """
    path = free_path(run_folder(trainer) / "figures" / f"{name}.png")
    with optional_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with optional_output(f"TensorBoard's file in {logger.log_dir}"):
                logger.experiment.add_figure(name, figure, global_step=trainer.global_step, close=False)
    return path


def _curves(trainer: Trainer) -> Figure | None:
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            path = Path(logger.log_dir) / "metrics.csv"
            if path.is_file():
                log = pd.read_csv(path)
                if any(c.startswith(("train/", "val/")) and not c.endswith("_step") for c in log.columns):
                    return training_curves(log)
    return None
