"""Predictions as files named by sample."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.tile_progress import tile_progress
from framework.distributed import agreed_run_folder, checksum, say
from framework.errors import ConfigError, DataError
from framework.protocols import Large, NamesSamples, PredictsInTiles, WritesPredictions
from framework.signals import arrived


class _Stopped(Exception):
    """A signal has come: what is done is kept, and all ranks agree behind the batch."""


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns: a mapping with `index` int64 (B,), and tensors whose first axis is the batch,
    or lists of B tensors.

    A uint8 or uint16 tensor (B, H, W) or (B, 3, H, W) becomes `INDEX_KEY.png`, anything else `INDEX_KEY.npy`. The
    index is the sample's unique id, so that many processes write into one folder without meeting. A data module with
    `sample_name(index)` replaces INDEX by the sample's name, and one with `write_prediction` writes masks in its own
    way: with SegmentationDataModule pictures that are large enough for tiles are read, predicted and written by
    windows, and a run that was stopped goes on where it was when it is given its `output_dir` again.

    Args:
        output_dir: target folder; None: `predictions` in the run folder.
        probabilities: also write `NAME_probabilities.tif`, (C, H, W) float32 in steps of 1 / 65535.
        overlays: also write `NAME_overlay.png`, the prediction drawn over the picture.
    """

    def __init__(self, output_dir: str | None = None, probabilities: bool = False, overlays: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.probabilities, self.overlays = probabilities, overlays

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides the folder, the same on every rank, and says what is wanted.

        Raises:
            ConfigError: probabilities or overlays that nobody gives. DataError: a folder that cannot be made.
        """
        self.folder = Path(self.output_dir or agreed_run_folder(trainer) / "predictions")
        if stage != "predict":
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"output_dir: {self.folder} cannot be made ({error.strerror}); give another") from error
        in_tiles = isinstance(pl_module, PredictsInTiles)
        data = getattr(trainer, "datamodule", None)
        if (self.probabilities and not in_tiles) or (self.overlays and not isinstance(data, WritesPredictions)):
            raise ConfigError(
                f"PredictionWriter.probabilities, .overlays: {type(pl_module).__name__} with {type(data).__name__} has "
                "none; they are for segmentations of a SegmentationDataModule"
            )
        if isinstance(pl_module, PredictsInTiles):
            pl_module.predict_probabilities = self.probabilities
        if isinstance(data, WritesPredictions):
            grid = pl_module.tile_grid if isinstance(pl_module, PredictsInTiles) else (lambda size: None)
            options = {"probabilities": self.probabilities, "overlays": self.overlays, "grid": grid}
            data.want_predictions(self.folder, options, lambda: self._plan(pl_module))

    def _plan(self, module: LightningModule) -> dict[str, Any]:
        weights = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
        kept: dict[str, Any] = {"probabilities": self.probabilities, "overlays": self.overlays}
        kept["tile"] = getattr(module, "tile", None)
        return {"method": type(module).__name__, "weights": checksum(weights), **kept}

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
            ConfigError: `predict_step` does not return a mapping with `index` and a value for each in every other key,
                or there is more than one loader.
            DataError: no room.
        """
        if dataloader_idx > 0:
            raise ConfigError(
                "PredictionWriter: expected one loader to predict, whose samples are named by their index, got a "
                "second; predict them one after the other, each with its own output_dir"
            )
        _check(prediction, pl_module)
        data = getattr(trainer, "datamodule", None)
        indices = prediction["index"].tolist()
        if set(prediction) == {"index"} and isinstance(data, WritesPredictions):
            for index in indices:
                self._write_large(trainer, pl_module, data.large_prediction(index))
            return
        name = data.sample_name if isinstance(data, NamesSamples) else "{:06d}".format
        for key in sorted(set(prediction) - {"index"}, key=lambda key: key == "mask"):  # the mask finishes a picture
            for index, value in zip(indices, prediction[key], strict=True):
                array = _array(value)
                if not (isinstance(data, WritesPredictions) and data.write_prediction(self.folder, index, key, array)):
                    _write(self.folder, f"{name(index)}_{key}", array)

    def _write_large(self, trainer: Trainer, module: LightningModule, large: Large) -> None:
        """Tile by tile; a signal leaves the rest for another time."""
        assert isinstance(module, PredictsInTiles)
        done, total = large.tiles
        try:
            with (
                tile_progress(trainer, f"tiles of {large.name}", total, done) as step,
                trainer.precision_plugin.forward_context(),
            ):
                for y0, x0, logits in module.in_tiles(large.read, large.size, large.is_done):
                    probabilities = logits.float().softmax(0).cpu().numpy() if self.probabilities else None
                    large.put(y0, x0, logits.argmax(0).to(torch.uint8).cpu().numpy(), probabilities)
                    _step(step)
            with tile_progress(trainer, f"objects of {large.name}", large.parts(), 0) as step:
                large.finish(lambda: _step(step))
        except _Stopped:
            done, total = large.tiles
            say(f"{done} of {total} tiles of {large.name} are kept")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts together what has been measured, as `objects.csv`.

        Raises:
            DataError: no room.
        """
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, WritesPredictions):
            data.end_predictions(True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how a run that was stopped goes on."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, WritesPredictions) or trainer.state.fn != "predict":
            return
        data.end_predictions(False)
        if isinstance(exception, KeyboardInterrupt):
            say(
                f"what is done is kept in {self.folder}; the same command goes on with --trainer.callbacks="
                f"PredictionWriter --trainer.callbacks.output_dir={self.folder}"
            )


def _step(step: Any) -> None:
    step()
    if arrived():
        raise _Stopped


def _check(prediction: Any, module: LightningModule) -> None:
    """Raises ConfigError for anything but a mapping of as many tensors for each key as its integer `index` has."""
    place, asked = "PredictionWriter: expected", f"from predict_step of {type(module).__name__}"
    if not isinstance(prediction, Mapping) or "index" not in prediction:
        got = f"the keys {', '.join(prediction)}" if isinstance(prediction, Mapping) else type(prediction).__name__
        raise ConfigError(f"{place} a mapping with the key 'index' {asked}, got {got}")
    index = prediction["index"]
    if not isinstance(index, torch.Tensor) or index.dim() != 1 or index.is_floating_point() or index.is_complex():
        got = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, torch.Tensor) else type(index).__name__
        raise ConfigError(f"{place} an integer tensor (B,) as 'index' {asked}, got {got}")
    for key, value in prediction.items():
        of_samples = isinstance(value, list | tuple) and all(isinstance(one, torch.Tensor) for one in value)
        if not of_samples and not (isinstance(value, torch.Tensor) and value.dim() > 0):
            raise ConfigError(
                f"{place} a tensor, or a list of tensors, with a value for each of {len(index)} samples as {key!r} "
                f"{asked}, got {type(value).__name__}"
            )
        if len(value) != len(index):
            raise ConfigError(f"{place} a value for each of {len(index)} samples as {key!r} {asked}, got {len(value)}")


def _array(value: torch.Tensor) -> np.ndarray:
    """NumPy has no bfloat16."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _check_same(path: Path, array: np.ndarray) -> None:
    """Lets a run that goes on meet its own files, and raises ConfigError for all others."""
    try:
        there = np.load(path) if path.suffix == ".npy" else imagecodecs.png_decode(path.read_bytes())
    except (OSError, ValueError, RuntimeError):  # the last is imagecodecs' own
        there = None
    if there is None or not np.array_equal(there, array):
        raise ConfigError(f"{path} is there already, and no file is replaced; give another output_dir or move it")


def _write(folder: Path, name: str, array: np.ndarray) -> None:
    """Raises DataError where there is no room, ConfigError where another file has that name."""
    is_picture = array.dtype in (np.uint8, np.uint16) and (array.ndim == 2 or (array.ndim == 3 and array.shape[0] == 3))
    if is_picture:
        array = np.ascontiguousarray(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)
    path = folder / f"{name}.{'png' if is_picture else 'npy'}"
    if path.exists():
        _check_same(path, array)
        return
    part = folder / f".{path.name}.{os.getpid()}.part"
    try:
        with part.open("wb") as file:
            if is_picture:
                file.write(imagecodecs.png_encode(array))
            else:
                np.save(file, array)
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}); make room") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
