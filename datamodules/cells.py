"""Generated micrographs of cells with nuclei, for quickstarts and tests: no files, no download."""

from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from framework.data import BaseDataModule
from framework.errors import ConfigError


def draw_cells(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image of ellipses with inner ellipses under uneven light, blur and noise.

    Args:
        side: height and width in pixels.
        rng: decides everything.

    Returns:
        image (side, side) float32 of mean 0 and deviation 1; classes (side, side) uint8: 0 ground, 1 cell, 2 nucleus.
    """
    y, x = np.mgrid[:side, :side] / side
    clean = 0.25 * ndimage.zoom(rng.normal(size=(4, 4)), side / 4, order=3, grid_mode=True, mode="nearest")
    classes = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(5, 9)):
        cy, cx, angle = rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95), rng.uniform(0, np.pi)
        long = rng.uniform(0.09, 0.16)
        short = long * rng.uniform(0.6, 1)
        a = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / long
        b = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / short
        radius = np.hypot(a, b)
        body, core = radius < 1, radius < rng.uniform(0.4, 0.6)
        clean[body] = rng.uniform(0.7, 1.1)
        # nuclei are brighter or darker than their cell: no threshold finds them
        clean[core] += rng.choice([-0.6, 0.6])
        classes[body], classes[core] = 1, 2
    image = ndimage.gaussian_filter(clean, 0.7) + rng.normal(0, 0.15, clean.shape)
    return ((image - image.mean()) / image.std()).astype(np.float32), classes


class CellsDataset(Dataset):
    """Sample i is a function of (seed, i).

    Args:
        indices: the samples' unique numbers.
        side: height and width in pixels.
        seed: of all images.
    """

    def __init__(self, indices: range, side: int, seed: int) -> None:
        self.indices, self.side, self.seed = indices, side, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """`image` float32 (1, side, side), `mask` int64 (side, side) of classes 0 to 2, `index` int64."""
        index = self.indices[int(place)]
        image, mask = draw_cells(self.side, np.random.default_rng([self.seed, index]))
        return {
            "image": torch.from_numpy(image)[None],
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "index": torch.tensor(index),
        }


class CellsDataModule(BaseDataModule):
    """Generated cells in three classes: ground, cell, nucleus.

    Args:
        images: training images; a quarter as many validate and test each.
        side: height and width in pixels.
        batch_size: images per training step and rank.
        **loading: the other arguments of `BaseDataModule`.

    Raises:
        ConfigError: values that no image can have.
    """

    def __init__(
        self,
        images: int = 96,
        side: int = 64,
        batch_size: int = 8,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **loading)
        if images < 4 or side < 8:
            raise ConfigError(f"data.images, data.side: expected at least 4 and 8, got {images} and {side}")
        self.images, self.side = images, side

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """Train, validation and test images have consecutive numbers."""
        held = self.images // 4
        start = {"train": 0, "val": self.images, "test": self.images + held, "predict": self.images + held}[split]
        return CellsDataset(range(start, start + (self.images if split == "train" else held)), self.side, self.seed)
