"""Pictures made up on the spot, for quickstarts and tests without a download."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from framework.data import BaseDataModule
from framework.errors import ConfigError


class GeneratedImages(Dataset):
    """Noisy gratings, a class being an orientation and a wavelength; picture i is a function of (seed, i).

    Args:
        indices: of the pictures.
        classes: number of classes.
        image_size: side in pixels.
        seed: of everything drawn.
    """

    def __init__(self, indices: range, classes: int, image_size: int, seed: int) -> None:
        self.indices, self.classes, self.image_size, self.seed = indices, classes, image_size, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        index = self.indices[item]
        rng = np.random.default_rng([self.seed, index])
        label = index % self.classes
        angle = np.pi * (label + rng.uniform(-0.2, 0.2)) / self.classes
        wavelength = self.image_size / (4 + 4 * (label % 2)) * rng.uniform(0.9, 1.1)
        y, x = np.mgrid[: self.image_size, : self.image_size]
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + rng.uniform(0, 2 * np.pi))
        color = rng.uniform(0.3, 1.0, 3)
        noise = rng.standard_normal((3, self.image_size, self.image_size))
        image = color[:, None, None] * wave + 0.3 * noise
        return {
            "image": torch.from_numpy(image.astype(np.float32)),
            "label": torch.tensor(label),
            "index": torch.tensor(index),
        }


class GeneratedImagesDataModule(BaseDataModule):
    """Generated gratings with labels, as a stand-in for a folder of pictures; already normalised.

    A sample is `image` float32 (3, image_size, image_size) of about mean 0 and standard deviation 0.6, `label` and
    `index`.

    Args:
        classes: number of classes.
        image_size: side in pixels.
        train_images: training pictures.
        val_images: validation pictures; as many others test.
        calibration_images: pictures for recalibration, again others.
        **loading: the arguments of `BaseDataModule`.

    Raises:
        ConfigError: counts or sizes below what a picture needs.
    """

    def __init__(
        self,
        classes: int = 8,
        image_size: int = 64,
        train_images: int = 256,
        val_images: int = 64,
        calibration_images: int = 32,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        least: dict[str, tuple[Any, int]] = {
            "classes": (classes, 2),
            "image_size": (image_size, 8),
            "train_images": (train_images, 1),
            "val_images": (val_images, 1),
            "calibration_images": (calibration_images, 1),
        }
        for name, (value, low) in least.items():
            if value < low:
                raise ConfigError(f"data.{name}: expected at least {low}, got {value}")
        self.classes, self.image_size = classes, image_size
        edges = np.cumsum([0, train_images, val_images, val_images, calibration_images]).tolist()
        self.ranges = {
            name: range(a, b)
            for name, a, b in zip(("train", "val", "test", "set aside"), edges, edges[1:], strict=False)
        }

    def input_contract(self) -> dict[str, Any]:
        """What checkpoints and exported files state of the samples."""
        return {"image_size": self.image_size, "mean": None, "std": None, "class_names": self.class_names}

    @property
    def class_names(self) -> list[str]:
        """`grating 0`, `grating 1`, ..."""
        return [f"grating {label}" for label in range(self.classes)]

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """The pictures of a split; predict takes those of test."""
        return self._images("test" if split == "predict" else split)

    def calibration_dataset(self) -> Dataset:
        """Pictures of no split, the same on every rank."""
        return self._images("set aside")

    def _images(self, name: str) -> Dataset:
        return GeneratedImages(self.ranges[name], self.classes, self.image_size, self.seed)
