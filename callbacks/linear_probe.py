"""A linear probe on a module's frozen features at the end of training."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from framework.data import spread
from framework.distributed import say
from framework.errors import ConfigError
from framework.nn import linear_probe
from framework.nn.filters.replacement import evaluating
from framework.protocols import HasFeatures


class LinearProbe(Callback):
    """Fits a linear classifier on the features of the training images and logs its validation accuracy.

    `probe/accuracy` goes to the loggers once, at the end of fit, computed on the first process.

    Args:
        l2: of the classifier.
        max_images: training images at most, spread over the classes; None: all.
    """

    def __init__(self, l2: float = 1e-3, max_images: int | None = None) -> None:
        self.l2, self.max_images = l2, max_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the module.

        Raises:
            ConfigError: it has no `features(image)`.
        """
        if not isinstance(pl_module, HasFeatures):
            raise ConfigError(
                f"LinearProbe: {type(pl_module).__name__} has no method features(image); take the callback out of "
                "trainer.callbacks or give the module one"
            )

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits and logs.

        Raises:
            ConfigError: data without labels.
        """
        datasets: Mapping[str, Any] = getattr(trainer.datamodule, "datasets", {})  # type: ignore[attr-defined]
        if getattr(trainer, "fast_dev_run", False) or not {"train", "val"} <= set(datasets):
            return
        with evaluating(pl_module):
            train, labels = self._features(pl_module, datasets["train"], self.max_images)
            val, val_labels = self._features(pl_module, datasets["val"], None)
        accuracy = linear_probe(train, labels, val, val_labels, self.l2)
        for logger in trainer.loggers:
            logger.log_metrics({"probe/accuracy": accuracy}, step=trainer.global_step)
        say(f"linear probe: accuracy {accuracy:.4f} on {len(val)} validation images")

    def _features(self, module: Any, dataset: Any, limit: int | None) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        chosen = dataset if limit is None else Subset(dataset, spread(len(dataset), limit, _labels(dataset)))
        for batch in DataLoader(chosen, batch_size=64):
            if "label" not in batch:
                raise ConfigError("LinearProbe: the batches have no label; use a data module with classes")
            features.append(module.features(batch["image"].to(module.device)).float().cpu())
            labels.append(batch["label"])
        return torch.cat(features), torch.cat(labels)


def _labels(dataset: Any) -> list[int] | None:
    labels = getattr(dataset, "labels", None)
    return None if labels is None or len(labels) != len(dataset) else [int(label) for label in labels]
