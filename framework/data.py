"""BaseDataModule, the LightningDataModule that people subclass: loaders that are the same on any number of ranks."""

import os
from collections.abc import Sequence, Sized
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, IterableDataset

from framework.distributed import EpochSampler, UnpaddedDistributedSampler, ranks_of
from framework.errors import ConfigError
from framework.protocols import datasets_of


class BaseDataModule(LightningDataModule):
    """Loaders with a training order drawn from (seed, epoch) and evaluation that never repeats a sample.

    A subclass overrides `configure_dataset`. A sample is a dict of tensors with the keys `image`, `mask`, `label`,
    `coords`, `index`, of which `index` (int64) is unique within its split.

    Args:
        batch_size: samples per training step and rank.
        eval_batch_size: samples per evaluation step; None: as `batch_size`; 1 for pictures of different sizes.
        num_workers: loader processes; 0 loads in the main process.
        seed: seed of the training order (and of augmentation or synthesis in subclasses).
        drop_last: leave out a training epoch's last batch when it is smaller than the others; None: when it is a single
            sample and the method has batch normalisation, which cannot train on one.
        on_device: leave to the device what can be done there to whole batches (`deferred`), instead of sample by sample
            in the loaders: pictures of folders are sent in 8 bits and normalised there, the same numbers; those of
            segmentation are augmented and normalised there, the same up to rounding.

    Raises:
        ConfigError: a value out of its range, or `on_device` where nothing can be left.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool | None = None,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        if on_device and type(self).deferred is BaseDataModule.deferred:
            raise ConfigError(f"data.on_device: {type(self).__name__} has nothing to leave to the device")
        self.on_device = on_device
        if eval_batch_size is None:
            eval_batch_size = batch_size
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise ConfigError(f"data.{name}: expected at least 1, got {value}")
        most = max(64, 4 * (os.cpu_count() or 1))
        if not 0 <= num_workers <= most:
            raise ConfigError(
                f"data.num_workers: expected 0 to {most} on this machine, got {num_workers}; each is a process"
            )
        if seed < 0:
            raise ConfigError(f"data.seed: expected 0 or more, got {seed}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self.datasets: dict[str, Dataset] = {}

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset | None:
        """The dataset of a split, with `__len__` and `__getitem__`; None or an empty one for no validation.

        Called once per split that a verb needs, after `prepare_data`, on every rank.
        """
        raise NotImplementedError(f"{type(self).__name__} must override configure_dataset(split)")

    def setup(self, stage: str) -> None:
        """Builds the datasets that `stage` (fit, validate, test or predict) needs.

        Raises:
            ConfigError: no dataset, one without a length, or more ranks than samples to evaluate.
        """
        needs = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for split in needs[stage]:
            if split not in self.datasets:
                made = self.configure_dataset(cast(Any, split))
                self.datasets[split] = self._checked(split, made)
        if stage == "validate" and isinstance(val := self.datasets["val"], Sized) and not len(val):
            raise ConfigError(f"{type(self).__name__}: the val split is empty, so nothing can be validated; use fit")
        self._check_ranks(stage, needs[stage])

    def _checked(self, split: str, dataset: Any) -> Any:
        """None is an empty val split; a loader of the user's own takes whatever he makes."""
        if dataset is None and split == "val":
            return []
        loader = f"{split}_dataloader"
        own = getattr(type(self), loader) is not getattr(BaseDataModule, loader)
        if not own and (not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset)):
            raise ConfigError(
                f"{type(self).__name__}.configure_dataset({split!r}): expected a dataset with __len__ and __getitem__, "
                f"whose order is drawn by the loader, got a {type(dataset).__name__}; return one, or override {loader}"
            )
        return dataset

    def _check_ranks(self, stage: str, splits: Sequence[str]) -> None:
        # Here every rank raises; later, the rank without a sample would fail alone and leave the others waiting.
        world_size = ranks_of(self.trainer)[0]
        for split in splits:
            dataset = self.datasets[split]
            unused = split == "train" or (stage == "fit" and getattr(self.trainer, "limit_val_batches", None) == 0)
            if not unused and isinstance(dataset, Sized) and 0 < len(dataset) < world_size:
                raise ConfigError(
                    f"trainer.devices: expected at most one process per sample of the {split} split, got {world_size} "
                    f"processes for {len(dataset)} samples; give fewer devices or nodes, or a larger {split} split"
                )

    def train_dataloader(self) -> DataLoader:
        """Shuffled, equally many samples per rank."""
        dataset = cast(Any, self.datasets["train"])
        if len(dataset) == 0:
            raise ConfigError(f"{type(self).__name__}: the train split is empty")
        world_size, rank = ranks_of(self.trainer)
        sampler = EpochSampler(dataset, world_size, rank, seed=self.seed)
        # With workers, a resumed run fetches its first batches before Lightning sets the epoch; `current_epoch` is not
        # right yet, it counts the epochs whose last hook has run.
        progress: Any = None if self.trainer is None else self.trainer.fit_loop.epoch_progress.current
        sampler.set_epoch(0 if progress is None else progress.processed)
        return self._loader(dataset, self.batch_size, sampler, self._drops_last(len(sampler)))

    def _drops_last(self, samples: int) -> bool:
        if self.drop_last is not None:
            if self.drop_last and samples < self.batch_size:
                raise ConfigError(
                    f"data.drop_last: leaves nothing of {samples} training samples per process in batches of "
                    f"{self.batch_size}; give a smaller data.batch_size"
                )
            return self.drop_last
        module = getattr(self.trainer, "lightning_module", None)
        normalised = module is not None and any(isinstance(m, _BatchNorm) for m in module.modules())
        return normalised and self.batch_size > 1 and samples > self.batch_size and samples % self.batch_size == 1

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """In order, without padding; none for an empty split."""
        return self._evaluation_loader("val") if len(cast(Any, self.datasets["val"])) else []

    def test_dataloader(self) -> DataLoader:
        """In order, without padding."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """In order, without padding."""
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = cast(Any, self.datasets[split])
        return self._loader(dataset, self.eval_batch_size, UnpaddedDistributedSampler(dataset, *ranks_of(self.trainer)))

    def deferred(self, dataset: Dataset) -> Dataset:
        """What the loaders read in place of a dataset, where part of a sample's making is left to the device."""
        return dataset

    def _loader(self, dataset: Dataset, batch_size: int, sampler: Any, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            self.deferred(dataset),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def training_set(data: Any) -> Any:
    """The training dataset of a data module, if it can be looked into by number; None where there is none."""
    dataset = datasets_of(data).get("train")
    return dataset if isinstance(dataset, Sized) else None


def spread(length: int, count: int, labels: Sequence[int] | None = None) -> list[int]:
    """Indices of `count` samples from all over a dataset, the same every time: files are sorted, the first are alike.

    Args:
        length: of the dataset.
        count: how many at most.
        labels: (length,) classes; with them every class gives equally many, as far as it has them.

    Returns:
        sorted indices.
    """
    order = np.random.default_rng(0).permutation(length)
    if labels is not None:
        seen: dict[int, int] = {}
        turn = np.empty(length, dtype=np.int64)
        for place, index in enumerate(order.tolist()):
            turn[place] = seen.get(labels[index], 0)
            seen[labels[index]] = int(turn[place]) + 1
        order = order[np.argsort(turn, kind="stable")]
    return sorted(order[:count].tolist())
