"""The samples of every split of a segmentation data set."""

from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.io import open_picture
from datamodules.masks import check_mask_slices
from datamodules.pairing import (
    Pair,
    check_names,
    find_pairs,
    from_file,
    in_blocks,
    in_folds,
    pictures_in,
    results_among,
)
from datamodules.planes import count_slices
from datamodules.reading import Reading
from framework.errors import ConfigError, DataError


@dataclass(frozen=True)
class Splits:
    """Where the files are and how they are parted; SegmentationDataModule explains every field.

    Raises:
        ConfigError: values that do not go together.
    """

    root: Path
    images: str = "images"
    masks: str = "masks"
    predict_images: str | None = None
    split_file: str | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    train_images: int | None = None
    fold: int | None = None
    folds: int = 5

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction, data.test_fraction: expected shares with a sum below 1, got {self.val_fraction} "
                f"and {self.test_fraction}"
            )
        if self.fold is not None and not (self.folds >= 3 and 0 <= self.fold < self.folds):
            raise ConfigError(
                f"data.fold, data.folds: expected at least 3 folds and one of them, got {self.fold} of {self.folds}"
            )
        if self.fold is not None and self.split_file is not None:
            raise ConfigError("data.fold, data.split_file: give one of the two")

    def pairs(self, split: str, reading: Reading) -> list[Pair]:
        """The samples of `train`, `val`, `test` or `predict`, in order.

        Raises:
            DataError: files that are missing or cannot be assigned.
        """
        if split == "predict" and (folder := self._unlabelled()) is not None:
            files = pictures_in(folder, "data.predict_images")
            left = results_among(files)
            kept = [(name, path) for name, path in files.items() if name not in left]
            chosen = by_slices([Pair(i, path, (), name) for i, (name, path) in enumerate(kept)], reading)
        else:
            pairs = by_slices(find_pairs(self.root, self.images, self.masks), reading)
            chosen = self._assigned(pairs)["test" if split == "predict" else split]
        check_names(chosen, split)
        return chosen[: self.train_images] if split == "train" else chosen

    def left_out(self) -> str | None:
        """What a prediction passes over, in words; None: nothing."""
        folder = self._unlabelled()
        if folder is not None:
            files = pictures_in(folder, "data.predict_images")
            left = sorted(results_among(files))
            words = f"{len(left)} of the {len(files)} pictures in {folder} are masks or predictions of others there"
            return f"data: {words}, such as {files[left[0]].name}, and are left out" if left else None
        pairs = find_pairs(self.root, self.images, self.masks)
        test = self._assigned(pairs)["test"]
        if len(test) == len(pairs):
            return None
        words = f"data: the test split is predicted, {len(test)} of the {len(pairs)} pictures in {self.root}"
        everything = self.images if (self.root / self.images).is_dir() else "."
        return (
            words if any(pair.split for pair in pairs) else f"{words}; for all give data.predict_images: {everything}"
        )

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

    def _assigned(self, pairs: list[Pair]) -> dict[str, list[Pair]]:
        if self.split_file is not None:
            return from_file(self.root / self.split_file, pairs)
        if self.fold is not None:
            return in_folds(pairs, self.fold, self.folds)
        if any(pair.split for pair in pairs):
            parts = {s: [p for p in pairs if p.split == s] for s in ("train", "val", "test")}
            if not parts["val"]:
                parts |= in_blocks(parts["train"], self.val_fraction, 0) | {"test": parts["test"]}
            return parts
        return in_blocks(pairs, self.val_fraction, self.test_fraction)


def by_slices(pairs: list[Pair], reading: Reading) -> list[Pair]:
    """With `slices: each`, a sample for every slice; headers alone are read.

    Raises:
        DataError: a mask of another number of slices than its image.
    """
    if reading.slices != "each":
        return pairs
    out: list[Pair] = []
    for pair in pairs:
        count = count_slices(open_picture(pair.image, reading.axes))
        check_mask_slices(pair.masks, reading, pair.image, count)
        for part in range(count) if count > 1 else [None]:
            name = pair.name if part is None else f"{pair.name}_slice{part:0{len(str(count - 1))}d}"
            out.append(replace(pair, index=len(out), name=name, part=part))
    return out
