"""Figures at exposures, and the floor without any network."""

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer
from scipy import ndimage
from skimage import filters
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from benchmarks.microscopy import EXPOSURES, at_exposures, figures, floor, otsu_watershed, without_specks
from datamodules import SegmentationDataModule
from models import KOriginsSegmentation


def discs(rng, centres, radius=9, side=96):
    """Bright discs on dark ground with noise; a number for each."""
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.uint16)
    for number, (cy, cx) in enumerate(centres, 1):
        labels[np.hypot(y - cy, x - cx) < radius] = number
    image = rng.normal(2000, 100, labels.shape) + 18000 * (labels > 0)
    return image.astype(np.uint16), labels


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(10):
        image, labels = discs(rng, [(20, 20 + i), (60, 30), (30, 70), (72, 72)])
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", image)
        tifffile.imwrite(tmp_path / "masks" / f"{i}.tif", labels)
    return tmp_path


def otsu(image):
    """The bound between two classes of a histogram of 256 bins, of most variance between them, by trying every one."""
    counts, edges = np.histogram(image, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    best, bound = -1.0, 0.0
    for k in range(1, 256):
        left, right = counts[:k].sum(), counts[k:].sum()
        if left and right:
            means = (counts[:k] @ middles[:k]) / left, (counts[k:] @ middles[k:]) / right
            if (spread := left * right * (means[0] - means[1]) ** 2) > best * (1 + 1e-12):
                best, bound = spread, middles[k - 1]
    return bound


def test_the_floor_is_multi_otsu_and_a_watershed_written_out() -> None:
    image, _ = discs(np.random.default_rng(1), [(30, 30), (30, 44), (70, 60)])
    smooth = filters.gaussian(image.astype(np.float32), 1.0, preserve_range=True)
    bright = smooth > otsu(smooth)
    depth = ndimage.distance_transform_edt(bright)
    seeds = np.zeros(image.shape, int)
    for number, (y, x) in enumerate(
        peak_local_max(depth, min_distance=5, labels=ndimage.label(bright)[0], exclude_border=False), 1
    ):
        seeds[y, x] = number
    found = otsu_watershed(image.astype(np.float32), 2)
    assert np.array_equal(found > 0, bright)
    assert np.array_equal(found, watershed(-depth, seeds, mask=bright))


def test_the_floor_parts_discs_that_touch() -> None:
    image, labels = discs(np.random.default_rng(1), [(30, 30), (30, 46), (70, 60)])
    found = otsu_watershed(image.astype(np.float32), 2)
    assert ndimage.label(labels > 0)[1] == 2
    for number in (1, 2, 3):
        here = labels == number
        other = np.bincount(found[here]).argmax()
        assert (here & (found == other)).sum() / (here | (found == other)).sum() > 0.8


def test_an_even_picture_has_no_objects() -> None:
    assert not otsu_watershed(np.full((20, 20), 7, np.float32), 3).any()


def test_figures_at_exposures_are_those_of_the_exposed_pictures(folder) -> None:
    data = SegmentationDataModule(str(folder), masks_are="instances", normalize="none")

    def bright(image):  # and a speck that does not count
        parts, count = ndimage.label(image[0] > 10000)
        parts[0, 0] = count + 1
        return parts

    row = at_exposures(bright, data)
    # 20000 of the discs and 2000 of the ground: dark at 0.1 and 0.3, all of it bright at 10
    assert [row[f"f1_x{e:g}"] for e in EXPOSURES] == [0, 0, 1, 1, 0]
    assert [row[f"ap_x{e:g}"] for e in EXPOSURES] == [0, 0, 1, 1, 0]
    discs_of = [tifffile.imread(folder / "masks" / f"{i}.tif") > 0 for i in (8, 9)]
    share = sum(d.sum() for d in discs_of) / sum(d.size for d in discs_of)
    dice = [row[f"dice_x{e:g}"] for e in EXPOSURES]
    assert dice[:4] == [0, 0, 1, 1]
    assert dice[4] == pytest.approx(2 * share / (1 + share), abs=1e-4)


def test_specks_are_no_objects() -> None:
    objects = np.array([[1, 1, 0, 2], [3, 3, 3, 0]])
    assert np.array_equal(without_specks(objects, 2), [[1, 1, 0, 0], [3, 3, 3, 0]])


def test_a_network_has_the_figures_of_its_test_at_exposure_one(folder, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.microscopy.SMALLEST", 0)
    torch.manual_seed(0)
    data = SegmentationDataModule(str(folder), masks_are="instances", normalize="none", eval_batch_size=1)
    model = KOriginsSegmentation(num_classes=3, rfl=8, width=4, origins="multi_otsu")
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    row = figures(model, data)
    assert row["f1_x1"] == pytest.approx(float(trainer.callback_metrics["test/instance_f1_50"]), abs=1e-4)
    assert row["ap_x1"] == pytest.approx(float(trainer.callback_metrics["test/instance_ap"]), abs=1e-4)
    origins = [float(value) for value in str(row["origins"]).split()]
    assert len(origins) == 6
    assert origins == sorted(origins)


def test_the_floor_as_rows_of_a_study(folder) -> None:
    rows = list(floor(2, root=str(folder), masks_are="instances"))
    assert len(rows) == 1
    assert rows[0]["f1_x0.3"] == rows[0]["f1_x1"] == 1.0
