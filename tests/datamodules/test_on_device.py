"""What the loaders leave to the device comes out as on the host."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderDataModule, SegmentationDataModule, SquaresDataModule
from framework.errors import ConfigError, DataError


def write_masks(folder: Path, sizes: tuple[tuple[int, int], ...] = ((40, 36),) * 8) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        smooth = np.cumsum(rng.integers(-3, 4, (height, width)), 1) + 120
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[5 + i : 20 + i, 8:30] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def batches(data: Any, split: str) -> list[dict[str, torch.Tensor]]:
    data.setup("fit")
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


BENT = {"rotate": 30.0, "scale": 0.2, "elastic": 2.0, "intensity": 0.1}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": "zscore", **BENT},
        {"normalize": "percentile", "crop": 24, **BENT},
        {"normalize": "depth", "crop": 24},
        {"normalize": "dataset", "rotate": 90.0},
        {"normalize": "none", "flip": False, "elastic": 4.0},
    ],
    ids=str,
)
def test_segmentation_batches_are_those_of_the_host(settings: dict[str, Any], split: str, tmp_path: Path) -> None:
    root = str(write_masks(tmp_path / "set"))
    here, there = (
        batches(SegmentationDataModule(root, batch_size=3, on_device=on, **settings), split) for on in (False, True)
    )
    for ours, theirs in zip(there, here, strict=True):
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["index"], theirs["index"])
        scale = float(theirs["image"].abs().max())
        torch.testing.assert_close(ours["image"], theirs["image"], rtol=1e-4, atol=1e-5 * max(1.0, scale))
        assert ours["mask"].dtype == torch.int64
        assert (ours["mask"] != theirs["mask"]).float().mean() < 2e-3  # places half way between two pixels


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("settings", [{}, {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "auto_augment": "rand-m9"}])
def test_pictures_are_those_of_the_host_bit_for_bit(settings: dict[str, Any], split: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    here, there = (
        ImageFolderDataModule(str(tmp_path), image_size=32, batch_size=4, on_device=on, **settings)
        for on in (False, True)
    )
    for ours, theirs in zip(batches(there, split), batches(here, split), strict=True):
        assert ours["image"].dtype == torch.float32
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(there.datasets["val"][0]["image"], here.datasets["val"][0]["image"])  # for those who look inside
    assert next(iter(there.val_dataloader()))["image"].dtype == torch.uint8  # type: ignore[arg-type]


def test_what_cannot_be_left_to_the_device_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "flat" / part).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "flat" / part / "0.png")
    erasing = ImageFolderDataModule(str(tmp_path / "flat"), image_size=32, erase=0.2, on_device=True)
    erasing.setup("fit")
    with pytest.raises(ConfigError, match="data.on_device: random erasing"):
        erasing.train_dataloader()
    root = write_masks(tmp_path / "uneven", ((40, 36), (44, 36), (40, 36), (40, 36), (40, 36), (40, 36)))
    uneven = SegmentationDataModule(str(root), crop=24, batch_size=2, on_device=True)
    uneven.setup("fit")
    with pytest.raises(DataError, match="data.on_device: the training pictures are of 2 sizes"):
        uneven.train_dataloader()
    with pytest.raises(ConfigError, match="data.on_device: SquaresDataModule has nothing to leave"):
        SquaresDataModule(on_device=True)
