"""Objects as distance levels: by the definition, back again, and through a network's training and prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer
from scipy import ndimage

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from datamodules.masks import IGNORED, read_mask
from datamodules.reading import Reading
from framework import blocks
from framework.errors import ConfigError
from framework.levels import distance_levels, from_levels, objects_of_levels
from models import KMUNet, KOriginsSegmentation
from tests.datamodules.test_predictions import QUIET, discs


def by_definition(objects: np.ndarray, levels: int) -> np.ndarray:
    """Every pixel's distance to all pixels that are not its object's, one by one."""
    found = np.zeros(objects.shape, np.uint8)
    places = np.argwhere(np.ones(objects.shape, bool))
    for number in np.unique(objects[objects > 0]):
        own, other = np.argwhere(objects == number), places[(objects != number).ravel()]
        distances = np.sqrt(((own[:, None] - other[None]) ** 2).sum(-1).min(1))
        found[objects == number] = np.ceil(distances / distances.max() * levels)
    return found


@pytest.mark.parametrize("levels", [2, 4, 7])
def test_levels_are_shares_of_the_largest_distance(levels: int) -> None:
    objects = discs(24)
    objects[:5, 20:] = 9  # at the picture's border
    objects[23, 0] = 10  # one pixel
    assert np.array_equal(distance_levels(objects, levels), by_definition(objects, levels))
    assert distance_levels(np.full((4, 5), 3), levels).tolist() == [[levels] * 5] * 4
    assert not distance_levels(np.zeros((4, 5), int), levels).any()


def matched(truth: np.ndarray, found: np.ndarray) -> float:
    """Share of the true objects that have an IoU above 0.7 with one that was found."""
    shares = []
    for number in np.unique(truth[truth > 0]):
        own = truth == number
        other = found == np.bincount(found[own]).argmax()
        shares.append((own & other).sum() / (own | other).sum() > 0.7)
    return float(np.mean(shares))


def test_watershed_gives_touching_objects_back() -> None:
    objects = discs()
    found = objects_of_levels(distance_levels(objects, 4), 4)
    assert found.max() == 5
    assert np.array_equal(found > 0, objects > 0)
    assert matched(objects, found) == 1


def test_real_nuclei_come_back(shared_data: Path) -> None:
    folder = shared_data / "bitdepth_nucseg_16bit" / "masks_instance"
    if not folder.is_dir():
        pytest.skip("no bitdepth_nucseg_16bit beside the project")
    shares = []
    for path in sorted(folder.iterdir())[4:6]:
        values = tifffile.imread(path)
        objects = np.unique(values, return_inverse=True)[1].reshape(values.shape)
        for number in np.unique(objects)[1:]:  # crumbs and halves with one number are no objects
            own = objects == number
            if own.sum() < 20 or ndimage.label(own)[1] > 1:
                objects[own] = 0
        shares.append(matched(objects, objects_of_levels(distance_levels(objects, 4), 4)))
    assert np.mean(shares) > 0.95


def test_a_part_of_a_mask_is_a_part_of_its_levels(tmp_path: Path) -> None:
    objects = discs().astype(np.int32)
    objects[:3] = 77
    tifffile.imwrite(tmp_path / "x.tif", objects)
    reading = Reading(masks_are="instances", targets="distance", levels=5, ignore_label=77)
    whole = read_mask([tmp_path / "x.tif"], reading, (64, 64))
    assert (whole[:3] == IGNORED).all()
    assert whole[3:].max() == 5
    part = read_mask([tmp_path / "x.tif"], reading, (64, 64), None, (10, 20, 5, 44))
    assert np.array_equal(part, whole[10:20, 5:44])


@pytest.mark.parametrize("seed", range(6))
def test_objects_that_are_looked_at_block_by_block_are_those_of_the_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(70, 90)), 2)
    classes = np.digitize(noise / noise.std(), [0.2, 0.6, 1.0, 1.4]).astype(np.uint8)
    monkeypatch.setattr(blocks, "BLOCK", 32)
    monkeypatch.setattr(blocks, "MARGIN", 32)
    size = classes.shape[0], classes.shape[1]
    scratch = blocks.ArrayPlane(np.zeros(size, np.uint32))
    objects = blocks.label_objects(blocks.ArrayPlane(classes), size, scratch, from_levels(4))
    found = np.full(size, -1)
    for y0, y1, x0, x1 in blocks.blocks(size):
        found[y0:y1, x0:x1] = objects.read(y0, y1, x0, x1)
    assert found.max() > 5
    assert np.array_equal(found, objects_of_levels(classes, 4))


def test_a_test_measures_objects_by_their_levels() -> None:
    model, objects = KMUNet(width=2, stages=1, num_classes=5), discs()
    model.preprocessing = {"targets": "distance", "levels": 4}
    levels = torch.from_numpy(distance_levels(objects, 4))[None]
    assert matched(objects, model.predicted_objects(levels)[0]) == 1
    model.preprocessing = None  # the same numbers as background, inside and border
    assert matched(objects, model.predicted_objects(levels)[0]) < 1


@pytest.mark.parametrize("method", ["kmunet", "korigins"])
def test_distances_train_and_come_back_as_label_images(tmp_path: Path, method: str) -> None:
    objects = discs(40)
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(6):
        tifffile.imwrite(tmp_path / "images" / f"s{i}.tif", (rng.random((40, 40)) * 99 + objects).astype(np.uint16))
        tifffile.imwrite(tmp_path / "masks" / f"s{i}.tif", objects.astype(np.uint8))
    raw: Any = {"normalize": "none"} if method == "korigins" else {}
    data = SegmentationDataModule(
        str(tmp_path), masks_are="instances", targets="distance", levels=3, crop=24, batch_size=2, eval_batch_size=1,
        cache=False, rotate=20, **raw,
    )  # fmt: skip
    made: Any = {
        "kmunet": lambda: KMUNet(num_classes=4, width=2, stages=1),
        "korigins": lambda: KOriginsSegmentation(rfl=8, num_classes=4, width=2),
    }
    model = made[method]()
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.fit(model, data)
    assert model.preprocessing is None or model.preprocessing["targets"] == "distance"
    (figures,) = trainer.test(model, data, verbose=False)
    assert 0 <= figures["test/instance_f1_50"] <= 1
    trainer.predict(model, data, return_predictions=False)
    assert tifffile.imread(tmp_path / "out" / "s5_mask.tif").shape == (40, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "distance"}, "data.targets: distance is for data.masks_are: instances"),
        ({"targets": "edges"}, "data.targets, data.levels: expected border or distance"),
        ({"masks_are": "instances", "targets": "distance", "levels": 1}, "2 to 254 levels, got 'distance' and 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationDataModule(str(tmp_path), **arguments)
