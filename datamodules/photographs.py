"""Crops of the photographs that scikit-image carries: real pictures without a download."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.io import read_rgb
from datamodules.transforms import Finish, TrainTransform
from framework.data import BaseDataModule
from framework.errors import ConfigError, DataError

#: files inside the scikit-image wheel; those for evaluation show other scenes than those for training
TRAIN = (
    "astronaut.png",
    "brick.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
EVALUATION = ("camera.png", "chelsea.png", "coffee.png")


class PhotographsDataModule(BaseDataModule):
    """Random crops of 11 photographs to train, fixed crops of 3 others to evaluate.

    A sample is `image` float32 (3, image_size, image_size) in [0, 1], `label` int64 (the photograph) and `index`.
    Small and of one kind: good for a quickstart and for tests, not for figures to compare.

    Args:
        image_size: side of a crop in pixels.
        crops: training crops of every photograph per epoch, drawn from (seed, epoch, index).
        eval_crops: crops of every photograph in evaluation, the same in every epoch.
        scale: [smallest, largest] share of a photograph's area that a crop covers.
        **loading: the arguments of `BaseDataModule`.

    Raises:
        ConfigError: values that no crop can have.
        DataError: (in `setup`) a scikit-image without its photographs.
    """

    def __init__(
        self,
        image_size: int = 64,
        crops: int = 40,
        eval_crops: int = 8,
        scale: list[float] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        scale = [0.05, 0.5] if scale is None else scale
        for name, value in {"image_size": image_size, "crops": crops, "eval_crops": eval_crops}.items():
            if value < 1:
                raise ConfigError(f"data.{name}: expected at least 1, got {value}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"data.scale: expected [smallest, largest] in (0, 1], got {scale}")
        self.image_size, self.crops, self.eval_crops = image_size, crops, eval_crops
        self.scale = (scale[0], scale[1])

    def configure_dataset(self, split: Literal["train", "val", "test", "predict"]) -> Dataset:
        """Training crops, or the evaluation crops, which all other splits share."""
        names, crops = (TRAIN, self.crops) if split == "train" else (EVALUATION, self.eval_crops)
        folder = Path(skimage.data.__file__).parent
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(f"data: scikit-image lacks {', '.join(missing)} in {folder}; install it from its wheel")
        transform = TrainTransform(
            self.image_size,
            self.image_size,
            "bicubic",
            "random_resized",
            self.scale,
            flip=split == "train",
            policy=None,
            erase=0.0,
            finish=Finish(),
        )
        return Crops([Image.fromarray(read_rgb(folder / name)) for name in names], crops, transform, self.seed)


class Crops(Dataset):
    """`crops` windows of every picture, drawn from (seed, epoch, index); the pictures stay decoded in memory."""

    def __init__(self, pictures: list[Image.Image], crops: int, transform: TrainTransform, seed: int) -> None:
        self.pictures, self.crops, self.transform, self.seed = pictures, crops, transform, seed

    def __len__(self) -> int:
        return len(self.pictures) * self.crops

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        index = int(item)
        picture = index % len(self.pictures)
        rng = np.random.default_rng([self.seed, getattr(item, "epoch", 0), index])
        image = self.transform(self.pictures[picture], rng)
        return {"image": image, "label": torch.tensor(picture), "index": torch.tensor(index)}
