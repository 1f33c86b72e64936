"""Any folder of images and masks as a data module."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import Augmentation
from datamodules.exposure import Exposure, evaluation_exposure, training_exposure
from datamodules.large import LargePicture
from datamodules.leaks import warn_of_shared
from datamodules.on_device import SegmentationOnDevice
from datamodules.prediction_files import PredictionFiles
from datamodules.reading import MasksAre, Normalize, Reading, Slices, Targets
from datamodules.scan import check_evaluation, check_foreground, check_sizes, check_training
from datamodules.segmentation_data import SegmentationFiles, checked_cache
from datamodules.splits import Splits
from datamodules.statistics import class_counts, class_statistics, know_channels, of_files
from framework.distributed import say
from framework.errors import ConfigError, DataError
from framework.serialization import class_path


class SegmentationDataModule(SegmentationOnDevice):
    """Images and masks paired by name, as people lay them out; every format and depth of `datamodules.io`.

    The splits are those of `split_file`, of `fold`, of folders `train`, `val`, `test` (without `val` the last
    `val_fraction` of the training pictures validate), or else blocks in natural order: train first, then validation,
    then test, because neighbouring slices of a stack are alike and must not fall on both sides.

    Args:
        root: folder of the data set.
        images: folder of images below it (`datamodules.pairing.find_pairs` says what else is found).
        masks: folder of masks below it, or the same as `images`.
        predict_images: folder of unlabelled images below it for `predict`; None predicts the test images, or where
            there are no masks all images of `images`, or of `root` itself.
        split_file: CSV below `root` with columns `id` (the stem) and `split` (train, val, test; others are left out).
        val_fraction: share of the samples that validate, without `split_file`; 0: nothing needs to validate.
        test_fraction: share that tests.
        fold: this fold of `folds` tests, the next one validates; None: no folds.
        folds: number of folds, drawn from the names.
        train_images: use only the first of the training images; None: all.
        channels: channels of a sample (1: colour becomes grey, 3: grey is repeated), a list of those to take, counted
            from 0, or null for all that the files have.
        axes: a letter for each axis of files that do not say it: `YXC`, `CYX` (channels), `ZYX` (slices), ...
        slices: what is made of slices: `each` a sample, the `max` over them, or the number of one.
        bit_depth: 8 or 16 to insist on it; None takes any.
        labels: mask values in the order of the classes, background first; a mask of 1 bit holds 0 and 255, or 1.
        colors: [red, green, blue] of every class in masks that are in colour or have a palette.
        ignore_label: mask value of pixels without a label; they arrive as class 255 (give `model.ignore_index: 255`).
        masks_are: `classes`, or `instances`: every value above 0 is an object, and the classes are background, inside
            and border between objects.
        border: pixels within which two objects make a border.
        targets: what objects are for the network: `border` (those three classes), or `distance`: the distance to the
            object's edge as a share of its largest, in `levels` classes beside the background.
        levels: steps of that distance.
        connected: every connected region of a value is an object of its own, for masks that number no objects.
        normalize: `zscore`, `percentile`, `depth` (that of the file), all per image, `dataset` (mean and deviation of
            the training images) or `none` for raw intensities; all per channel.
        downscale: whole factor by which images and masks are made smaller.
        crop: side of the random training crops; evaluation sees whole images.
        flip: mirror at random.
        rotate: largest random angle in degrees.
        scale: largest relative change of size.
        elastic: standard deviation in pixels of an elastic deformation.
        intensity: largest relative change of contrast and brightness.
        exposure: [lowest, highest] factor on the raw intensities of a training picture, drawn log-uniformly in every
            epoch, behind `downscale` and before all else, cut at the largest number of the file's depth; null: none.
        eval_exposure: the same factor for all pictures that validate and test; predictions take the files as they are.
        cache: keep decoded images in memory: true, false, or at most so many megabytes per split and loader process;
            crops of what has no room are read as windows of the files where their format allows it.
        batch_size: images per training step and rank.
        **loading: the other arguments of `BaseDataModule`.

    Raises:
        ConfigError: values out of their range.
        DataError: folders or files that are missing or broken.
    """

    #: what all training files have in common, once it has been asked for
    _of_files: dict[str, int] | None = None
    #: what PredictionWriter wants, and the files that it is given
    _wanted: tuple[Path, Mapping[str, Any], Callable[[], dict[str, Any]]] | None = None
    _files: PredictionFiles | None = None

    def __init__(
        self,
        root: str,
        images: str = Splits.images,
        masks: str = Splits.masks,
        predict_images: str | None = Splits.predict_images,
        split_file: str | None = Splits.split_file,
        val_fraction: float = Splits.val_fraction,
        test_fraction: float = Splits.test_fraction,
        train_images: int | None = Splits.train_images,
        channels: int | list[int] | None = Reading.channels,
        bit_depth: int | None = Reading.bit_depth,
        labels: list[int] = [0, 255],  # noqa: B006 (only read)
        normalize: Normalize = Reading.normalize,
        downscale: int = Reading.downscale,
        crop: int | None = None,
        flip: bool = Augmentation.flip,
        rotate: float = Augmentation.rotate,
        scale: float = Augmentation.scale,
        elastic: float = Augmentation.elastic,
        intensity: float = Augmentation.intensity,
        cache: bool | int = True,
        batch_size: int = 4,
        fold: int | None = Splits.fold,
        folds: int = Splits.folds,
        axes: str | None = Reading.axes,
        slices: Slices | None = Reading.slices,
        colors: list[list[int]] | None = Reading.colors,
        ignore_label: int | None = Reading.ignore_label,
        masks_are: MasksAre = Reading.masks_are,
        border: int = Reading.border,
        targets: Targets = Reading.targets,
        levels: int = Reading.levels,
        connected: bool = Reading.connected,
        exposure: list[float] | None = None,
        eval_exposure: float = 1.0,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loading)
        contract: dict[str, Any] = {"channels": channels, "bit_depth": bit_depth, "axes": axes, "slices": slices}
        contract |= {"labels": list(labels), "colors": colors, "ignore_label": ignore_label, "border": border}
        contract |= {"targets": targets, "levels": levels, "connected": connected}
        self.reading = Reading(**contract, masks_are=masks_are, normalize=normalize, downscale=downscale)
        if crop is not None and crop < 1:
            raise ConfigError(f"data.crop: expected at least 1, got {crop}")
        if min(rotate, scale, elastic, intensity) < 0:
            raise ConfigError("data.rotate, data.scale, data.elastic, data.intensity: expected 0 or more")
        self.exposure, self.eval_exposure = training_exposure(exposure), evaluation_exposure(eval_exposure)
        self.root = Path(root)
        files: dict[str, Any] = {"images": images, "masks": masks, "predict_images": predict_images}
        files |= {"split_file": split_file, "val_fraction": val_fraction, "test_fraction": test_fraction}
        self.splits = Splits(self.root, **files, train_images=train_images, fold=fold, folds=folds)
        self.crop, self.cache = crop, checked_cache(cache)
        self.augmentation = Augmentation(flip=flip, rotate=rotate, scale=scale, elastic=elastic, intensity=intensity)

    # ------------------------------------------------------------------ datasets

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """The files of a split; augmented in training."""
        training = split == "train"
        pairs = self.splits.pairs(split, self.reading)
        if split == "predict" and (words := self.splits.left_out()) is not None:
            say(words)
        if not pairs:
            if split == "val" and self.splits.val_fraction == 0:
                return cast(Dataset, [])
            raise DataError(
                f"data: the {split} split is empty; see data.split_file, data.val_fraction, data.test_fraction"
            )
        crop = self.crop if training else None
        if training:
            check_training(pairs, self.reading, self.batch_size, crop)
            know_channels(pairs, self.reading)
        else:
            check_evaluation(pairs, self.reading, self.eval_batch_size)
        augmentation = self.augmentation if training else None
        exposure = {"train": self.exposure, "predict": Exposure()}.get(split, self.eval_exposure)
        return SegmentationFiles(
            pairs, self.reading, augmentation, crop, self.seed, self.cache, split == "test", exposure
        )

    def sample_name(self, index: int) -> str:
        """Name of a sample of the split that is tested or predicted: its image's, without the ending."""
        split: Literal["test", "predict"] = "test" if self.trainer is not None and self.trainer.testing else "predict"
        dataset: Any = self.datasets.get(split) or self.configure_dataset(split)
        return next(pair.name for pair in dataset.pairs if pair.index == index)

    # ------------------------------------------------------------------ what is known of the data

    @property
    def num_classes(self) -> int:
        """Classes of a mask, background included."""
        return self.reading.num_classes

    @property
    def class_names(self) -> list[str]:
        """What a figure calls them."""
        return self.reading.class_words

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every class in 16 whole training images, each (C, N), background first.

        The images are evenly spread over the training split; more are looked at while a class has not been seen. The
        figures are in the units of the batches, that is after `exposure` and `normalize`; raw intensities need `none`.

        Raises:
            DataError: a class that no training mask holds.
        """
        pairs = self.splits.pairs("train", self.reading)
        know_channels(pairs, self.reading)
        files = SegmentationFiles(pairs, self.reading, seed=self.seed, exposure=self.exposure)
        return class_statistics(files, self.reading.class_names)

    def class_counts(self) -> np.ndarray:
        """(C,) int64 pixels of every class in all training masks; the images are not read."""
        return class_counts(self.splits.pairs("train", self.reading), self.reading)

    def check_sizes(self, least: int) -> None:
        """Refuses pictures, by name, and training crops with a side below `least` pixels."""
        check_sizes(self.datasets, self.reading, self.crop, least)

    # ------------------------------------------------------------------ what belongs to a checkpoint

    def preprocessing(self) -> dict[str, Any]:
        """The input contract in plain form, with the class that it belongs to; see also `of_files`."""
        if self._of_files is None and "train" in self.datasets:
            self._of_files = of_files(self.splits.pairs("train", self.reading), self.reading)
        return {"class_path": class_path(type(self)), **self.reading.plain(), **(self._of_files or {})}

    def use_preprocessing(self, stored: Mapping[str, Any]) -> None:
        """Reads files as a checkpoint's network was trained to; says what that changes."""
        for name, (was, now) in sorted(self.reading.take_over(self.reading.completed(stored)).items()):
            if name not in ("mean", "std", "file_channels") and (name, was) != ("bit_depth", None):
                say(f"data.{name}: {now!r} from the checkpoint in place of {was!r}")
        for dataset in self.datasets.values():
            if isinstance(dataset, SegmentationFiles):
                dataset.forget()

    # ------------------------------------------------------------------ predictions

    def setup(self, stage: str) -> None:
        """Also forgets what an earlier prediction has left out; a fit looks for the first object in its masks, and
        warns of pictures that are in both the train and the val split.

        Raises:
            DataError: files that are broken or do not go together, or masks without any foreground.
        """
        if stage == "predict":
            self.datasets.pop("predict", None)
            self._wanted, self._files = None, None
        begins = stage == "fit" and "train" not in self.datasets
        super().setup(stage)
        if begins:
            check_foreground(self.splits.pairs("train", self.reading), self.reading)
            # slices of one file may well be parted
            both = (getattr(self.datasets[split], "pairs", ()) for split in ("train", "val"))
            train, val = ([pair.image for pair in pairs if pair.part is None] for pairs in both)
            warn_of_shared(train, val)

    def want_predictions(self, folder: Path, options: Mapping[str, Any], plan: Callable[[], dict[str, Any]]) -> None:
        """For PredictionWriter: where the predictions go; the files are begun when the network is complete."""
        self._wanted = (folder, options, plan)

    def predict_dataloader(self) -> DataLoader:
        """In order, without padding; what an earlier run has finished is left out."""
        if self._wanted is not None:
            folder, options, plan = self._wanted
            dataset: Any = self.datasets["predict"]
            batched = self.eval_batch_size > 1
            self._files = PredictionFiles(folder, dataset.pairs, self.reading, options, plan(), batched)
            dataset.pairs, dataset.bare = self._files.remaining(), frozenset(self._files.grids)
            self._wanted = None
        return super().predict_dataloader()

    def write_prediction(self, folder: Path, index: int, key: str, value: np.ndarray) -> bool:
        """Writes a predicted mask as `NAME_mask.tif` and measures its objects; other keys are left to the caller."""
        return self._files is not None and self._files.write(index, key, value)

    def large_prediction(self, index: int) -> LargePicture:
        """A picture that is predicted by windows."""
        assert self._files is not None
        return self._files.large(index)

    def end_predictions(self, complete: bool) -> None:
        """Writes `objects.csv`, or leaves what is done for another time."""
        if self._files is not None:
            self._files.end(complete)
            self._files = None
