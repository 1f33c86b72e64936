"""Any folder of images and masks as a data module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from datamodules.io import open_picture
from datamodules.masks import IGNORED
from datamodules.pairing import Pair, find_pairs, from_file, in_blocks, in_folds, pictures_in
from datamodules.planes import count_slices
from datamodules.reading import MasksAre, Normalize, Reading, Slices
from datamodules.segmentation_data import Augmentation, SegmentationFiles
from framework.data import BaseDataModule
from framework.errors import ConfigError, DataError


class SegmentationDataModule(BaseDataModule):
    """Images and masks paired by name, as people lay them out; every format and depth of `datamodules.io`.

    The splits are those of `split_file`, of `fold`, of folders `train`, `val`, `test`, or else blocks in natural order:
    train first, then validation, then test, because neighbouring slices of a stack are alike and must not fall on both
    sides.

    Args:
        root: folder of the data set.
        images: folder of images below it (`datamodules.pairing.find_pairs` says what else is found).
        masks: folder of masks below it, or the same as `images`.
        predict_images: folder of unlabelled images below it for `predict`; None predicts the test images, or where
            there are no masks all images of `images`, or of `root` itself.
        split_file: CSV below `root` with columns `id` (the stem) and `split` (train, val, test; others are left out).
        val_fraction: share of the samples that validate, without `split_file`.
        test_fraction: share that tests.
        fold: this fold of `folds` tests, the next one validates; None: no folds.
        folds: number of folds, drawn from the names.
        train_images: use only the first of the training images; None: all.
        channels: channels of a sample (1: colour becomes grey, 3: grey is repeated), a list of those to take, counted
            from 0, or null for all that the files have.
        axes: a letter for each axis of the files, where they do not say it themselves: `YXC`, `CYX` (channels), `ZYX`
            (slices), ...
        slices: what is made of slices: `each` a sample, the `max` over them, or the number of one.
        bit_depth: 8 or 16 to insist on it; None takes any.
        labels: mask values in the order of the classes, background first; a mask of 1 bit holds 0 and 255, or 1.
        colors: [red, green, blue] of every class in masks that are in colour or have a palette.
        ignore_label: mask value of pixels without a label; they arrive as class 255 (give `model.ignore_index: 255`).
        masks_are: `classes`, or `instances`: every value above 0 is an object, and the classes are background, inside
            and border between objects.
        border: pixels within which two objects make a border.
        normalize: `zscore`, `percentile`, `depth` (that of the file), all per image, `dataset` (mean and deviation of
            the training images) or `none` for raw intensities; all per channel.
        downscale: whole factor by which images and masks are made smaller.
        crop: side of the random training crops; evaluation sees whole images.
        flip: mirror at random.
        rotate: largest random angle in degrees.
        scale: largest relative change of size.
        elastic: standard deviation in pixels of an elastic deformation.
        intensity: largest relative change of contrast and brightness.
        cache: keep decoded images in memory: true, false, or at most so many megabytes per split.
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
        channels: int | list[int] | None = 1,
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
        cache: bool | int = True,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        fold: int | None = None,
        folds: int = 5,
        axes: str | None = None,
        slices: Slices | None = None,
        colors: list[list[int]] | None = None,
        ignore_label: int | None = None,
        masks_are: MasksAre = "classes",
        border: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.reading = Reading(
            channels,
            bit_depth,
            list(labels),
            normalize,
            downscale,
            axes,
            slices,
            masks_are,
            border,
            colors,
            ignore_label,
        )
        if crop is not None and crop < 1:
            raise ConfigError(f"data.crop: expected at least 1, got {crop}")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction, data.test_fraction: expected shares with a sum below 1, got {val_fraction} and "
                f"{test_fraction}"
            )
        if min(rotate, scale, elastic, intensity) < 0:
            raise ConfigError("data.rotate, data.scale, data.elastic, data.intensity: expected 0 or more")
        if fold is not None and not (folds >= 3 and 0 <= fold < folds):
            raise ConfigError(
                f"data.fold, data.folds: expected at least 3 folds and a fold below, got {fold} of {folds}"
            )
        if fold is not None and split_file is not None:
            raise ConfigError("data.fold, data.split_file: give one of the two")
        self.root = Path(root)
        self.images, self.masks, self.predict_images, self.split_file = images, masks, predict_images, split_file
        self.val_fraction, self.test_fraction, self.train_images = val_fraction, test_fraction, train_images
        self.fold, self.folds = fold, folds
        self.crop, self.cache = crop, cache
        self.augmentation = Augmentation(flip, rotate, scale, elastic, intensity)

    # ------------------------------------------------------------------ datasets

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """The files of a split; augmented in training."""
        training = split == "train"
        pairs = self._pairs(split)
        if not pairs:
            raise DataError(
                f"data: the {split} split is empty; see data.split_file, data.val_fraction, data.test_fraction"
            )
        self._check_sizes(pairs, self.batch_size if training else self.eval_batch_size, training)
        if self.reading.normalize == "dataset" and self.reading.mean is None:
            self._set_statistics()
        augmentation = self.augmentation if training else None
        return SegmentationFiles(
            pairs, self.reading, augmentation, self.crop if training else None, self.seed, self.cache
        )

    def sample_name(self, index: int) -> str:
        """Name of a sample of the predict split: its image's, without the ending."""
        return self._predicted()[index].name

    def _predicted(self) -> dict[int, Pair]:
        dataset: Any = self.datasets.get("predict") or self.configure_dataset("predict")
        return {pair.index: pair for pair in dataset.pairs}

    def _pairs(self, split: str) -> list[Pair]:
        if split == "predict" and (folder := self._unlabelled()) is not None:
            files = pictures_in(folder, "data.predict_images")
            return self._by_slices([Pair(i, path, (), name) for i, (name, path) in enumerate(files.items())])
        pairs = self._by_slices(find_pairs(self.root, self.images, self.masks))
        chosen = self._assigned(pairs)["test" if split == "predict" else split]
        return chosen[: self.train_images] if split == "train" else chosen

    def _unlabelled(self) -> Path | None:
        """Where the images to predict are when they have no masks."""
        if self.predict_images is not None:
            return self.root / self.predict_images
        if (self.root / self.images).is_dir():
            return None if (self.root / self.masks).is_dir() else self.root / self.images
        try:
            find_pairs(self.root, self.images, self.masks)
        except DataError:
            return self.root
        return None

    def _by_slices(self, pairs: list[Pair]) -> list[Pair]:
        """With `slices: each`, a sample for every slice; headers alone are read."""
        if self.reading.slices != "each":
            return pairs
        out: list[Pair] = []
        for pair in pairs:
            count = count_slices(open_picture(pair.image, self.reading.axes))
            parts = range(count) if count > 1 else [None]
            for part in parts:
                name = pair.name if part is None else f"{pair.name}_slice{part:0{len(str(count - 1))}d}"
                out.append(Pair(len(out), pair.image, pair.masks, name, part, pair.split))
        return out

    def _assigned(self, pairs: list[Pair]) -> dict[str, list[Pair]]:
        if self.split_file is not None:
            return from_file(self.root / self.split_file, pairs)
        if self.fold is not None:
            return in_folds(pairs, self.fold, self.folds)
        if any(pair.split for pair in pairs):
            return {s: [p for p in pairs if p.split == s] for s in ("train", "val", "test")}
        return in_blocks(pairs, self.val_fraction, self.test_fraction)

    def _check_sizes(self, pairs: Sequence[Pair], batch_size: int, training: bool) -> None:
        """Only one size may fall into one batch. Headers alone are read here."""
        if batch_size == 1 or (training and self.crop):
            return
        first = None
        for pair in pairs:
            size = open_picture(pair.image, self.reading.axes).size
            first = first or size
            if size != first:
                key = "data.crop" if training else "data.eval_batch_size: 1"
                raise DataError(
                    f"data.images: {pair.image.name} is {size}, {pairs[0].image.name} is {first}; one batch needs one "
                    f"size, give {key}"
                )

    # ------------------------------------------------------------------ what is known of the data

    @property
    def num_classes(self) -> int:
        """Classes of a mask, background included."""
        return self.reading.num_classes

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every class, each (C, N), background first, in 16 whole training images.

        The images are evenly spread over the training split; more are looked at while a class has not been seen. The
        figures are in the units of the batches, that is after `normalize`; raw intensities need `none`.

        Raises:
            DataError: a class that no training mask holds.
        """
        dataset = SegmentationFiles(self._pairs("train"), self.reading)
        if self.reading.normalize == "dataset" and self.reading.mean is None:
            self._set_statistics()
        first = np.unique(np.linspace(0, len(dataset) - 1, min(16, len(dataset))).round().astype(int)).tolist()
        values: list[list[np.ndarray]] = [[] for _ in range(self.num_classes)]
        for place in [*first, *(i for i in range(len(dataset)) if i not in set(first))]:
            if place not in first and all(values):
                break
            sample = dataset[place]
            image, mask = sample["image"].numpy(), sample["mask"].numpy()
            for c in range(self.num_classes):
                if (mask == c).any():
                    values[c].append(image[:, mask == c])
        if missing := [c for c, found in enumerate(values) if not found]:
            raise DataError(
                f"data.labels: no training mask holds class {missing[0]} ({self._class_name(missing[0])}), so that "
                "nothing is known of its intensities; look at data.labels, or give model.class_mean and model.class_std"
            )
        joined = [np.concatenate(v, 1).astype(np.float64) for v in values]
        return np.stack([v.mean(1) for v in joined]), np.stack([v.std(1) for v in joined])

    def _class_name(self, position: int) -> str:
        if self.reading.masks_are == "instances":
            return ("background", "inside", "border")[position]
        return f"mask value {(self.reading.colors or self.reading.labels)[position]}"

    def _set_statistics(self) -> None:
        """Mean and deviation per channel over all training images."""
        raw = Reading(**{**self.reading.plain(), "normalize": "none"})
        pairs = [Pair(p.index, p.image, (), p.name, p.part) for p in self._pairs("train")]
        dataset = SegmentationFiles(pairs, raw)
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        for place in range(len(dataset)):
            image = dataset[place]["image"].double().numpy()
            count += image[0].size
            total, squares = total + image.sum((1, 2)), squares + (image**2).sum((1, 2))
        mean = total / count
        self.reading.mean = mean.tolist()
        self.reading.std = np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()


__all__ = ["IGNORED", "SegmentationDataModule"]
