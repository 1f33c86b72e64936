"""Synthetic 16-bit squares and circles as a data module (arXiv 2409.02281)."""

import dataclasses
from typing import Any, Literal, cast

import numpy as np
from torch.utils.data import Dataset

from datamodules.squares_data import PRESETS, ShapeKind, SquaresDataset, SquaresPreset
from framework.data import BaseDataModule
from framework.errors import ConfigError
from framework.suggest import nearest_names


class SquaresDataModule(BaseDataModule):
    """A stack of generated images; the last 30 % validate, fresh images of the same kind test.

    Every argument from `images` to `shape_kind` replaces the preset's value; None keeps it.

    Args:
        preset: one of the published data presets, e.g. `mixed`, `rfl_failure`, `int_layer_rgb`.
        images: number of images in the stack (training and validation together).
        side: height and width in pixels.
        radius_range: [smallest, largest + 1] radius; a square of radius r has sides of 2 r + 1 pixels.
        shapes_per_class: number of shapes of each foreground class.
        mean: mean intensity of each class, background first, in [0, 65535]; triples for RGB.
        std: standard deviation of each class.
        shape_kind: `square`, `circle` or `both`.
        val_fraction: share of the stack that validates, taken from its end.
        test_images: number of test images; None: as many as validate.
        cache: keep drawn images in memory as uint16.
        batch_size: images per training step and rank; the paper's code uses 3.
        **loading: the other arguments of `BaseDataModule`.

    Raises:
        ConfigError: an unknown preset, or values that no image can have.
    """

    def __init__(
        self,
        preset: str = "mixed",
        images: int | None = None,
        side: int | None = None,
        radius_range: list[int] | None = None,
        shapes_per_class: list[int] | None = None,
        mean: list[float] | list[list[float]] | None = None,
        std: list[float] | list[list[float]] | None = None,
        shape_kind: ShapeKind | None = None,
        val_fraction: float = 0.3,
        test_images: int | None = None,
        cache: bool = True,
        batch_size: int = 3,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loading)
        if preset not in PRESETS:
            near = nearest_names(preset, PRESETS)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PRESETS)}"
            raise ConfigError(f"data.preset: {preset!r} is not a preset; {hint}")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"data.val_fraction: expected a share of at least 0 and below 1, got {val_fraction}")
        changes: dict[str, Any] = {
            "images": images,
            "side": side,
            "radius_range": radius_range,
            "shapes_per_class": shapes_per_class,
            "mean": mean,
            "std": std,
            "shape_kind": shape_kind,
        }
        self.preset: SquaresPreset = dataclasses.replace(
            PRESETS[preset], **{name: value for name, value in changes.items() if value is not None}
        )
        val = round(self.preset.images * val_fraction)
        if not (val > 0 or val_fraction == 0) or val >= self.preset.images:
            raise ConfigError(
                f"data.images: {self.preset.images} images leave nothing to train or to validate at "
                f"val_fraction {val_fraction}; give more images"
            )
        self.train_images = self.preset.images - val
        self.test_images = (val or 1) if test_images is None else test_images
        if self.test_images < 1:
            raise ConfigError(f"data.test_images: expected at least 1, got {self.test_images}")
        self.cache = cache

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """Train and validation are the stack's first and last part; test and predict the images after the stack."""
        stack = self.preset.images
        indices = {
            "train": range(self.train_images),
            "val": range(self.train_images, stack),
            "test": range(stack, stack + self.test_images),
            "predict": range(stack, stack + self.test_images),
        }[split]
        if split == "val" and not indices:
            return cast(Dataset, [])  # val_fraction: 0
        return SquaresDataset(self.preset, self.seed, indices, cache=self.cache)

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """The generator's mean and standard deviation of every class, each (C, N) float64, background first."""
        return self.preset.class_statistics()
