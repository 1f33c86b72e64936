"""The paths of K-Origins layers through training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.figure_writer import save_figure
from callbacks.when import begins_anew, builds_late, is_whole
from framework.errors import ConfigError
from framework.figures import origin_paths
from framework.nn import KOrigins


class OriginPaths(Callback):
    """Records the origins of the first K-Origins layer of any module and draws them against the class histograms.

    Pixels without a label, whose class is the module's `ignore_index`, are in no histogram.

    Args:
        every_n_steps: how often the origins are recorded.
        bins: of the histograms.
    """

    def __init__(self, every_n_steps: int = 10, bins: int = 128) -> None:
        for name, value in {"every_n_steps": every_n_steps, "bins": bins}.items():
            if not is_whole(value, 1):
                raise ConfigError(f"OriginPaths.{name}: expected a whole number, at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.bins = bins
        self._begin()

    def _begin(self) -> None:
        self._epochs: list[float] = []
        self._paths: list[np.ndarray] = []
        self._pixels: list[tuple[np.ndarray, np.ndarray]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the layer.

        Raises:
            ConfigError: the module has no K-Origins layer.
        """
        if begins_anew(trainer, stage):
            self._begin()
        if _origins(pl_module) or not builds_late(pl_module):
            self._find(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks again at a module that makes layers after the callbacks' `setup`."""
        if builds_late(pl_module):
            self._find(pl_module)

    def _find(self, pl_module: LightningModule) -> None:
        layers = _origins(pl_module)
        if not layers:
            raise ConfigError(
                f"OriginPaths: {type(pl_module).__name__} has no framework.nn.KOrigins layer; take the callback out of "
                "trainer.callbacks or give the model origins"
            )
        self._name, self._layer = layers[0]

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records where the origins begin; a resumed run brings its paths with it."""
        if not self._paths:
            self._record(float(trainer.current_epoch))

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the origins, and a few batches of pixels by class."""
        if trainer.global_step % self.every_n_steps == 0:
            self._record(trainer.current_epoch + (batch_idx + 1) / max(1, trainer.num_training_batches))
        if len(self._pixels) < 8 and isinstance(batch, Mapping) and {"image", "mask"} <= set(batch):
            image = batch["image"].float()
            values, labels = (image.mean(1) if image.ndim == 4 else image).flatten(), batch["mask"].flatten()
            if (ignored := getattr(pl_module, "ignore_index", None)) is not None:
                values, labels = values[labels != ignored], labels[labels != ignored]
            self._pixels.append((values.cpu().numpy(), labels.cpu().numpy()))

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws `figures/origin_paths.png`."""
        if not self._paths or not self._pixels or not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        self._record(float(trainer.current_epoch))
        values, labels = (np.concatenate(part) for part in zip(*self._pixels, strict=True))
        if not len(labels):
            return
        paths = np.stack(self._paths)
        edges = np.linspace(values.min(), values.max() + 1, self.bins + 1)
        histograms = np.stack([np.histogram(values[labels == c], edges)[0] for c in range(int(labels.max()) + 1)])
        figure = origin_paths(paths, np.array(self._epochs), histograms, edges, title=f"origins of {self._name}")
        save_figure(trainer, "origin_paths", figure)

    def _record(self, epoch: float) -> None:
        with torch.no_grad():
            # (K, N) averaged over channels, one path per origin
            self._paths.append(self._layer.weight.detach().float().mean(1).cpu().numpy().copy())
        self._epochs.append(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The paths so far, so that a resumed run draws all of them."""
        return {"epochs": list(self._epochs), "paths": [p.tolist() for p in self._paths]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._epochs = list(state_dict["epochs"])
        self._paths = [np.asarray(p, dtype=np.float32) for p in state_dict["paths"]]


def _origins(module: LightningModule) -> list[tuple[str, KOrigins]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, KOrigins)]
