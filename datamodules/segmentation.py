"""Any folder of images and masks as a data module."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

from datamodules.segmentation_data import Augmentation, Normalize, Pair, SegmentationFiles, list_images
from framework.data import BaseDataModule
from framework.errors import ConfigError, DataError


class SegmentationDataModule(BaseDataModule):
    """Images and masks paired by file name without suffix; PNG, TIFF and others, 8 or 16 bits.

    Without `split_file` the sorted samples are cut into blocks: train first, then validation, then test, because
    neighbouring slices of a stack are alike and must not fall on both sides.

    Args:
        root: folder of the data set.
        images: folder of images below it.
        masks: folder of masks below it.
        predict_images: folder of unlabelled images below it for `predict`; None predicts the test images.
        split_file: CSV below `root` with columns `id` (the stem) and `split` (train, val, test; others are left out).
        val_fraction: share of the samples that validate, without `split_file`.
        test_fraction: share that tests.
        train_images: use only the first of the training images; None: all.
        channels: 1 or 3; files of the other kind are converted.
        bit_depth: 8 or 16 to insist on it; None takes any.
        labels: mask values in the order of the classes, background first.
        normalize: `zscore`, `percentile`, `depth` (that of the file), all per image, or `none` for raw intensities.
        downscale: whole factor by which images and masks are made smaller.
        crop: side of the random training crops; evaluation sees whole images.
        flip: mirror at random.
        rotate: largest random angle in degrees.
        scale: largest relative change of size.
        elastic: standard deviation in pixels of an elastic deformation.
        intensity: largest relative change of contrast and brightness.
        cache: keep decoded images in memory.
        batch_size: images per training step and rank.
        eval_batch_size: images per evaluation step; None: as `batch_size`; 1 for images of different sizes.
        num_workers: loader processes.
        seed: of training order and augmentation.

    Raises:
        ConfigError: values out of their range.
        DataError: folders or files that are missing or broken.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        masks: str = "masks",
        predict_images: str | None = None,
        split_file: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        train_images: int | None = None,
        channels: int = 1,
        bit_depth: int | None = None,
        labels: list[int] = [0, 255],  # noqa: B006 (only read)
        normalize: Normalize = "zscore",
        downscale: int = 1,
        crop: int | None = None,
        flip: bool = True,
        rotate: float = 0.0,
        scale: float = 0.0,
        elastic: float = 0.0,
        intensity: float = 0.0,
        cache: bool = True,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if channels not in (1, 3):
            raise ConfigError(f"data.channels: expected 1 or 3, got {channels}")
        if bit_depth not in (None, 8, 16):
            raise ConfigError(f"data.bit_depth: expected null, 8 or 16, got {bit_depth}")
        if normalize not in get_args(Normalize):
            raise ConfigError(f"data.normalize: expected one of {', '.join(get_args(Normalize))}, got {normalize!r}")
        if len(set(labels)) != len(labels) or not 2 <= len(labels) <= 255:
            raise ConfigError(f"data.labels: expected 2 to 255 different mask values, got {labels}")
        if downscale < 1 or (crop is not None and crop < 1):
            raise ConfigError(f"data.downscale, data.crop: expected at least 1, got {downscale} and {crop}")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction, data.test_fraction: expected shares with a sum below 1, got {val_fraction} and "
                f"{test_fraction}"
            )
        if min(rotate, scale, elastic, intensity) < 0:
            raise ConfigError("data.rotate, data.scale, data.elastic, data.intensity: expected 0 or more")
        self.root = Path(root)
        self.images, self.masks, self.predict_images, self.split_file = images, masks, predict_images, split_file
        self.val_fraction, self.test_fraction, self.train_images = val_fraction, test_fraction, train_images
        self.read = {
            "channels": channels,
            "bit_depth": bit_depth,
            "labels": list(labels),
            "normalize": normalize,
            "downscale": downscale,
        }
        self.crop, self.cache = crop, cache
        self.augmentation = Augmentation(flip, rotate, scale, elastic, intensity)

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """The files of a split; augmented in training."""
        training = split == "train"
        pairs = self._pairs(split)
        if not pairs:
            raise DataError(
                f"data: the {split} split is empty; see data.split_file, data.val_fraction, data.test_fraction"
            )
        self._check_sizes(pairs, self.batch_size if training else self.eval_batch_size, training)
        augmentation = self.augmentation if training else None
        return SegmentationFiles(pairs, self.read, augmentation, self.crop if training else None, self.seed, self.cache)

    def _pairs(self, split: str) -> list[Pair]:
        if split == "predict" and self.predict_images is not None:
            files = list_images(self.root / self.predict_images, "data.predict_images")
            return [Pair(i, path, None) for i, path in enumerate(files.values())]
        images = list_images(self.root / self.images, "data.images")
        masks = list_images(self.root / self.masks, "data.masks")
        for one, other, this, that in ((images, masks, "images", "masks"), (masks, images, "masks", "images")):
            alone = [path.name for stem, path in one.items() if stem not in other]
            if alone:
                raise DataError(
                    f"data.{that}: {len(alone)} of the files in {self.root / getattr(self, this)} have no counterpart "
                    f"of the same name in {self.root / getattr(self, that)}, first {alone[0]}"
                )
        pairs = [Pair(i, images[stem], masks[stem]) for i, stem in enumerate(images)]
        chosen = self._assigned(pairs)["test" if split == "predict" else split]
        return chosen[: self.train_images] if split == "train" else chosen

    def _assigned(self, pairs: list[Pair]) -> dict[str, list[Pair]]:
        if self.split_file is None:
            val, test = (round(len(pairs) * share) for share in (self.val_fraction, self.test_fraction))
            train = len(pairs) - val - test
            return {"train": pairs[:train], "val": pairs[train : train + val], "test": pairs[train + val :]}
        path = self.root / self.split_file
        try:
            table = pd.read_csv(path, dtype=str)
            assigned = dict(zip(table["id"], table["split"], strict=True))
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"data.split_file: {path} cannot be read as a CSV with columns id and split ({error})"
            ) from error
        missing = [p.image.stem for p in pairs if p.image.stem not in assigned]
        if missing:
            raise DataError(f"data.split_file: {path} has no row for {len(missing)} images, first {missing[0]}")
        return {s: [p for p in pairs if assigned[p.image.stem] == s] for s in ("train", "val", "test")}

    def _check_sizes(self, pairs: list[Pair], batch_size: int, training: bool) -> None:
        """Only one size may fall into one batch. Headers alone are read here."""
        if batch_size == 1 or (training and self.crop):
            return
        first = None
        for pair in pairs:
            try:
                with Image.open(pair.image) as header:
                    size = header.size[::-1]
            except OSError as error:
                raise DataError(f"data: {pair.image} cannot be read ({error}); restore or remove it") from error
            first = first or size
            if size != first:
                key = "data.crop" if training else "data.eval_batch_size: 1"
                raise DataError(
                    f"data.images: {pair.image.name} is {size}, {pairs[0].image.name} is {first}; one batch needs one "
                    f"size, give {key}"
                )

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every class in up to 16 whole training images, each (C, N), background first.

        They are in the units of the batches, that is after `normalize`; raw intensities need `none`.
        """
        dataset = SegmentationFiles(self._pairs("train"), self.read, None, None, 0, False)
        classes = len(self.read["labels"])  # type: ignore[arg-type]
        values: list[list[np.ndarray]] = [[] for _ in range(classes)]
        for place in range(min(16, len(dataset))):
            sample = dataset[place]
            image, mask = sample["image"].numpy(), sample["mask"].numpy()
            for c in range(classes):
                values[c].append(image[:, mask == c])
        joined = [np.concatenate(v, 1).astype(np.float64) for v in values]
        return np.stack([v.mean(1) for v in joined]), np.stack([v.std(1) for v in joined])
