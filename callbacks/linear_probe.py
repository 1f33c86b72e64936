"""A linear probe on a module's frozen features at the end of training."""

from collections.abc import Callable, Mapping, Sized
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from framework.data import spread
from framework.distributed import say
from framework.errors import ConfigError
from framework.nn import linear_probe
from framework.nn.filters.replacement import evaluating
from framework.protocols import HasDatasets, HasFeatures


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
        """Checks the module and, before a fit, the data.

        Raises:
            ConfigError: the module has no `features(image)`, or the data no labelled train and val split.
        """
        if not isinstance(pl_module, HasFeatures):
            raise ConfigError(
                f"LinearProbe: {type(pl_module).__name__} has no method features(image); take the callback out of "
                "trainer.callbacks or give the module one"
            )
        if stage == "fit":
            _check_data(getattr(trainer, "datamodule", None))

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits and logs.

        Raises:
            ConfigError: data without labels.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        datasets: Mapping[str, Any] = trainer.datamodule.datasets  # type: ignore[attr-defined]
        with evaluating(pl_module), trainer.precision_plugin.forward_context():
            convert = trainer.precision_plugin.convert_input
            train, labels = self._features(pl_module, datasets["train"], self.max_images, convert)
            val, val_labels = self._features(pl_module, datasets["val"], None, convert)
        accuracy = linear_probe(train, labels, val, val_labels, self.l2)
        for logger in trainer.loggers:
            logger.log_metrics({"probe/accuracy": accuracy}, step=trainer.global_step)
        say(f"linear probe: accuracy {accuracy:.4f} on {len(val)} validation images")

    def _features(
        self, module: Any, dataset: Any, limit: int | None, convert: Callable[[Tensor], Any] = lambda image: image
    ) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        chosen = dataset if limit is None else Subset(dataset, spread(len(dataset), limit, _labels(dataset)))
        for batch in DataLoader(chosen, batch_size=64):
            if "label" not in batch:
                raise ConfigError("LinearProbe: the batches have no label; use a data module with classes")
            features.append(module.features(convert(batch["image"].to(module.device))).float().cpu())
            labels.append(batch["label"])
        return torch.cat(features), torch.cat(labels)


def _check_data(data: Any) -> None:
    splits = ("train", "val")
    datasets: Mapping[str, Any] = data.datasets if isinstance(data, HasDatasets) else {}
    short = [s for s in splits if s not in datasets or (isinstance(datasets[s], Sized) and not len(datasets[s]))]
    if short:
        raise ConfigError(
            f"LinearProbe: expected a data module whose `datasets` have pictures in train and val, got none in "
            f"{' and '.join(short)} of {type(data).__name__}; take the callback out of trainer.callbacks or give one"
        )
    for split in splits:
        if isinstance(datasets[split], IterableDataset):
            continue
        first = datasets[split][0]
        if not isinstance(first, Mapping) or not {"image", "label"} <= set(first):
            raise ConfigError(
                f"LinearProbe: expected samples with image and label, got others in the {split} split; use a data "
                "module with classes"
            )


def _labels(dataset: Any) -> list[int] | None:
    labels = getattr(dataset, "labels", None)
    return None if labels is None or len(labels) != len(dataset) else [int(label) for label in labels]
