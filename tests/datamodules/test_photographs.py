"""Crops of scikit-image's photographs: where they come from, that they repeat, bad input."""

import numpy as np
import pytest
import torch
from skimage import data

from datamodules import PhotographsDataModule
from datamodules.photographs import EVALUATION, TRAIN
from framework.distributed import EpochIndex
from framework.errors import ConfigError


def dataset(split="train", **kwargs):
    module = PhotographsDataModule(**{"image_size": 16, "crops": 2, "eval_crops": 2, **kwargs})
    return module.configure_dataset(split)


def test_a_sample_is_rgb_in_zero_to_one_with_label_and_unique_index() -> None:
    crops = dataset()
    samples = [crops[i] for i in range(len(crops))]
    assert len(samples) == 2 * len(TRAIN)
    assert [int(s["index"]) for s in samples] == list(range(len(samples)))
    assert all(s["image"].shape == (3, 16, 16) and s["image"].dtype == torch.float32 for s in samples)
    assert all(s["image"].min() >= 0 and s["image"].max() <= 1 for s in samples)
    assert {int(s["label"]) for s in samples} == set(range(len(TRAIN)))


def test_evaluation_shows_other_photographs_and_the_same_crops_every_time() -> None:
    assert not set(TRAIN) & set(EVALUATION)
    first, again = dataset("val"), dataset("test")
    assert all(torch.equal(first[i]["image"], again[i]["image"]) for i in range(len(first)))


def test_training_crops_are_drawn_from_seed_epoch_and_index() -> None:
    crops = dataset()
    assert torch.equal(crops[EpochIndex(3, 1)]["image"], crops[EpochIndex(3, 1)]["image"])
    assert not torch.equal(crops[EpochIndex(3, 1)]["image"], crops[EpochIndex(3, 2)]["image"])
    assert not torch.equal(crops[3]["image"], dataset(seed=1)[3]["image"])


def test_a_crop_of_everything_is_the_photograph_resized() -> None:
    crops = dataset("val", scale=[1.0, 1.0], eval_crops=1)
    coffee = crops[EVALUATION.index("coffee.png")]["image"]
    mean = torch.from_numpy(np.asarray(data.coffee(), dtype=np.float32)).mean((0, 1)) / 255
    assert (coffee.mean((1, 2)) - mean).abs().max() < 0.05


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 0}, "data.image_size: expected at least 1"),
        ({"crops": 0}, "data.crops"),
        ({"scale": [0.5, 0.1]}, r"data.scale: expected \[smallest, largest\] in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_named(kwargs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PhotographsDataModule(**kwargs)
