"""Folders of pictures, with a folder per class or flat, as a data module."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

from torch.utils.data import Dataset

from datamodules.leaks import warn_of_shared
from datamodules.listing import ImageFiles, Listing, check_labels, scan
from datamodules.on_device import FolderOnDevice
from datamodules.tables import read_table
from datamodules.transforms import EvalTransform, Finish, Interpolation, TrainTransform
from framework.errors import ConfigError, DataError, few


class ImageFolderDataModule(FolderOnDevice):
    """Any folder of pictures, with a folder per class or flat, split by folders, by a file or by a fraction.

    A sample is `image` float32 (3, image_size, image_size), `label` int64 (only where there are class folders; the
    position of the class among the sorted names) and `index` int64 (position in the sorted tree). Grey pictures and
    pictures with alpha become RGB. The test split is the folder `test` where there is one, else the validation part.

    Args:
        root: the folder: `train/` and `val/` (or `validation/`) inside it, or one tree with `split_file` or
            `val_fraction`.
        image_size: side of the result in pixels.
        resize: shorter side before the evaluation crop (and before a `random` or `center` training crop); None: as
            `image_size`.
        interpolation: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`, with antialiasing.
        eval_crop: `center`, or `squash` (the whole picture, aspect ratio lost).
        train_crop: `random_resized`, `random` or `center`.
        scale: [smallest, largest] share of the area of a `random_resized` crop.
        flip: mirror every second training picture.
        auto_augment: a training policy in timm's words, e.g. `rand-m9-mstd0.5-inc1`; None: without.
        erase: probability of random erasing in training.
        mean: subtracted per channel, in units of [0, 1]; None: nothing, pictures stay in [0, 1].
        std: divided by per channel; None: nothing.
        split_file: a CSV in `root` with columns `path`, `split` (train, val, test) and, with classes, `class`.
        val_fraction: share of one tree that validates and tests: every (1 / val_fraction)-th picture from the first on;
            1 evaluates everything, 0 trains on everything.
        classes: the first so many classes, or these names; None: all.
        images_per_class: at most so many pictures of a class (of a flat folder) in each split, the first by name.
        calibration_images: pictures set aside for callbacks that recalibrate, with evaluation transforms: from the
            training part where there is one, else from the evaluation part, which they leave.
        calibration_step: they are pictures 0, step, 2 step, ... of that part; None: evenly spread.
        **loading: the arguments of `BaseDataModule`.

    Raises:
        ConfigError: values that cannot work.
        DataError: (in `setup`) a folder that is missing, empty or has other classes than its sibling.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        resize: int | None = None,
        interpolation: Interpolation = "bicubic",
        eval_crop: Literal["center", "squash"] = "center",
        train_crop: Literal["random_resized", "random", "center"] = "random_resized",
        scale: Sequence[float] = (0.08, 1.0),
        flip: bool = True,
        auto_augment: str | None = None,
        erase: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        split_file: str | None = None,
        val_fraction: float | None = None,
        classes: int | list[str] | None = None,
        images_per_class: int | None = None,
        calibration_images: int = 0,
        calibration_step: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        resize = image_size if resize is None else resize
        if image_size < 1 or resize < image_size:
            raise ConfigError(
                f"data.image_size and data.resize: expected 1 <= image_size <= resize, got {image_size} and {resize}"
            )
        for name, values in {"mean": mean, "std": std}.items():
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise ConfigError(f"data.{name}: expected three numbers{' above 0' * (name == 'std')}, got {values}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"data.scale: expected [smallest, largest] in (0, 1], got {scale}")
        if not 0 <= erase <= 1 or (val_fraction is not None and not 0 <= val_fraction <= 1):
            raise ConfigError(f"data.erase and data.val_fraction: expected 0 to 1, got {erase} and {val_fraction}")
        if split_file is not None and val_fraction is not None:
            raise ConfigError("data.split_file and data.val_fraction: give one of the two")
        for name, count in {"images_per_class": images_per_class, "calibration_step": calibration_step}.items():
            if count is not None and count < 1:
                raise ConfigError(f"data.{name}: expected at least 1, got {count}")
        if calibration_images < 0:
            raise ConfigError(f"data.calibration_images: expected 0 or more, got {calibration_images}")
        self.root = Path(root)
        finish = Finish(None if mean is None else tuple(mean), None if std is None else tuple(std))
        self.eval_transform = EvalTransform(image_size, resize, interpolation, eval_crop, finish)
        self.train_transform = TrainTransform(
            image_size, resize, interpolation, train_crop, (scale[0], scale[1]), flip, auto_augment, erase, finish
        )
        self.split_file, self.val_fraction = split_file, val_fraction
        self.classes, self.images_per_class = classes, images_per_class
        self.calibration_images, self.calibration_step = calibration_images, calibration_step
        self._parts: dict[str, tuple[Listing, list[int]]] | None = None

    # ------------------------------------------------------------------ what there is

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in label order; empty for a flat folder."""
        return next(iter(self.parts().values()))[0].class_names

    def input_contract(self) -> dict[str, Any]:
        """How evaluation pictures are read and what the labels mean, as checkpoints and exported files state it."""
        return {**self.eval_transform.plain(), "class_names": self.class_names}

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """The pictures of a split; test and predict fall back on the validation part, less the calibration pictures."""
        parts = self.parts()
        name = split if split in parts else "test" if split == "predict" and "test" in parts else "val"
        if split == "train" and name != split:
            raise DataError(f"data.root: {self.root} has no training part; only validate, test and predict can run")
        if split == "val" and name not in parts and self.val_fraction == 0:
            return cast(Dataset, [])
        if name not in parts:
            raise DataError(f"data.root: {self.root} has no {split} part; there are {', '.join(parts)}")
        listing, positions = parts[name]
        if split != "predict" and self.class_names:
            check_labels(listing, f"the {name} part of {self.root}")
        if split == "train":
            return ImageFiles(listing, positions, self.train_transform, self.seed)
        aside = set(self._calibration_positions()[1]) if self._calibration_part() == name else ()
        return ImageFiles(listing, [p for p in positions if p not in aside], self.eval_transform, self.seed)

    def setup(self, stage: str) -> None:
        """Warns of pictures that are in both the train and the val split."""
        super().setup(stage)
        parts = self.parts()
        if stage == "fit" and {"train", "val"} <= parts.keys():
            train, val = ([parts[s][0].paths[i] for i in parts[s][1]] for s in ("train", "val"))
            warn_of_shared(train, val)

    def calibration_dataset(self) -> Dataset:
        """The pictures set aside for recalibration, the same on every rank, with evaluation transforms.

        Raises:
            ConfigError: `calibration_images` is 0, or more than there are.
        """
        listing, positions = self._calibration_positions()
        if not positions:
            raise ConfigError("data.calibration_images: recalibration needs pictures set aside; give e.g. 64")
        return ImageFiles(listing, positions, self.eval_transform, self.seed)

    def parts(self) -> dict[str, tuple[Listing, list[int]]]:
        """Split name -> the tree's listing and the positions in it, subsets applied; scanned once."""
        if self._parts is None:
            parts = {name: part for name, part in self._find_parts().items() if part[1]}
            if not parts:
                raise DataError(f"data.root: no picture of {self.root} is left for any split")
            self._parts = {name: (listing, self._subset(listing, part)) for name, (listing, part) in parts.items()}
        return self._parts

    # ------------------------------------------------------------------ splits

    def _find_parts(self) -> dict[str, tuple[Listing, list[int]]]:
        if not self.root.is_dir():
            raise DataError(f"data.root: there is no folder {self.root}")
        if self.split_file is not None:
            return self._parts_from_file(self.root / self.split_file)
        if self.val_fraction is not None:
            listing = self.scan(self.root)
            val = every_share(len(listing.paths), self.val_fraction)
            chosen = set(val)
            return {
                "train": (listing, [i for i in range(len(listing.paths)) if i not in chosen]),
                "val": (listing, val),
            }
        folders = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
        found = {
            split: self.root / name for split, names in folders.items() for name in names if (self.root / name).is_dir()
        }
        if not set(found) & {"val", "test"}:
            raise DataError(
                f"data.root: {self.root} has no folder train, val or test to split by; give data.val_fraction or "
                "data.split_file"
            )
        listings = {split: self.scan(folder) for split, folder in found.items()}
        reference = listings.get("train") or next(iter(listings.values()))
        for split, listing in listings.items():
            if listing.class_names and listing.class_names != reference.class_names:
                here, there = set(listing.class_names), set(reference.class_names)
                raise DataError(
                    f"data.root: {found[split]} has other classes than {next(iter(found.values()))}: "
                    f"{len(there - here)} missing ({few(sorted(there - here))}), {len(here - there)} more "
                    f"({few(sorted(here - there))})"
                )
        return {split: (listing, list(range(len(listing.paths)))) for split, listing in listings.items()}

    def scan(self, folder: Path) -> Listing:
        """The listing of one tree; a subclass may check or renumber the classes."""
        return scan(folder)

    def _parts_from_file(self, path: Path) -> dict[str, tuple[Listing, list[int]]]:
        rows = _rows(path)
        rows.sort(key=lambda row: (row.get("class") or "", row["path"]))
        names = sorted({row["class"] for row in rows}) if "class" in rows[0] else []
        numbers = {name: number for number, name in enumerate(names)}
        missing = [row["path"] for row in rows if not (self.root / row["path"]).is_file()]
        if missing:
            raise DataError(
                f"data.split_file: {len(missing)} of the {len(rows)} pictures that {path} names are not in "
                f"{self.root}: {few(missing)}"
            )
        labels = [numbers[row["class"]] for row in rows] if names else None
        listing = Listing([str(self.root / row["path"]) for row in rows], labels, names)
        splits = sorted({row["split"] for row in rows})
        if unknown := [split for split in splits if split not in ("train", "val", "test")]:
            raise DataError(f"data.split_file: {path}: expected a split train, val or test, got {', '.join(unknown)}")
        return {split: (listing, [i for i, row in enumerate(rows) if row["split"] == split]) for split in splits}

    def _subset(self, listing: Listing, positions: list[int]) -> list[int]:
        if self.classes is not None:
            if listing.labels is None:
                raise ConfigError(f"data.classes: {self.root} is a flat folder without classes")
            keep = set(self._chosen_classes(listing))
            positions = [p for p in positions if listing.labels[p] in keep]
        if self.images_per_class is not None:
            seen: Counter[int] = Counter()
            kept = []
            for p in positions:
                label = 0 if listing.labels is None else listing.labels[p]
                seen[label] += 1
                if seen[label] <= self.images_per_class:
                    kept.append(p)
            positions = kept
        return positions

    def _chosen_classes(self, listing: Listing) -> list[int]:
        names = listing.class_names
        if isinstance(self.classes, int):
            if not 1 <= self.classes <= len(names):
                raise ConfigError(f"data.classes: expected 1 to {len(names)} classes, got {self.classes}")
            return list(range(self.classes))
        unknown = [name for name in self.classes or () if name not in names]
        if unknown:
            raise ConfigError(f"data.classes: {few(unknown)} not among the {len(names)} classes of {self.root}")
        return [names.index(name) for name in self.classes or ()]

    def _calibration_part(self) -> str:
        parts = self.parts()
        return "train" if "train" in parts else "test" if "test" in parts else "val"

    def _calibration_positions(self) -> tuple[Listing, list[int]]:
        listing, positions = self.parts()[self._calibration_part()]
        count = self.calibration_images
        if count == 0:
            return listing, []
        step = self.calibration_step or max(1, len(positions) // count)
        chosen = positions[::step][:count]
        if len(chosen) < count:
            raise ConfigError(
                f"data.calibration_images: {count} pictures at a step of {step} are more than the {len(positions)} of "
                f"the {self._calibration_part()} part"
            )
        return listing, chosen


def every_share(count: int, share: float) -> list[int]:
    """Positions of an even share: ceil(count * share) of them, beginning with the first."""
    exact = Fraction(str(share))
    return [i for i in range(count) if math.ceil((i + 1) * exact) > math.ceil(i * exact)]


def _rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a split file."""
    rows = [row for row in read_table(path, ("path", "split"), ["class"]) if any(row.values())]
    if not rows:
        raise DataError(f"data.split_file: {path} has no rows")
    for row in rows:
        if not row.get("path") or not row.get("split") or row.keys() != rows[0].keys():
            raise DataError(
                f"data.split_file: {path}: {', '.join(map(repr, row.values()))} is no whole row; give path, split and, "
                "with classes, class in each"
            )
    return rows
