"""Objects that are looked at block by block are those of the whole, pixel for pixel and number for number."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label, regionprops

from framework import blocks as module
from framework.blocks import ArrayPlane, ObjectSums, blocks, label_objects, label_seeds
from framework.instances import FROM_BORDER, objects_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "MARGIN", 12)


def classes_of(seed: int, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Blobs of insides with borders between and around them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), scale)
    noise /= noise.std()
    return np.select([noise > 0.7, noise > 0.3], [1, 2], 0).astype(np.uint8)


def within_reach(classes: np.ndarray) -> np.ndarray:
    """The same without borders that lie farther from every inside, along the border, than blocks look beyond them."""
    inside = classes == 1
    near = ndimage.binary_dilation(inside, iterations=module.MARGIN - 1, mask=classes > 0)
    return np.where(near, classes, 0).astype(np.uint8)


def in_blocks(classes: np.ndarray) -> np.ndarray:
    size = classes.shape[0], classes.shape[1]
    objects = label_objects(ArrayPlane(classes), size, ArrayPlane(np.zeros(size, np.uint32)), FROM_BORDER)
    out = np.full(size, -1)
    for y0, y1, x0, x1 in blocks(size):
        out[y0:y1, x0:x1] = objects.read(y0, y1, x0, x1)
    assert objects.count == out.max()
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.8, 1.5, 3.0]), height=st.integers(1, 70))
def test_objects_are_those_of_the_whole(seed: int, scale: float, height: int) -> None:
    classes = within_reach(classes_of(seed, (height, 53), scale))
    assert np.array_equal(in_blocks(classes), objects_of(classes))


def test_a_border_beyond_reach_costs_its_own_pixels_and_no_object() -> None:
    classes = np.zeros((1, 53), np.uint8)
    classes[0, 4:8], classes[0, 8:40], classes[0, 48:] = 1, 2, 1  # 32 pixels of border, of which blocks see 12
    found, whole = in_blocks(classes), objects_of(classes)
    assert found.max() == whole.max() == 2
    assert np.array_equal(found[classes != 2], whole[classes != 2])
    assert set(np.unique(found[found != whole])) == {0}
    assert np.array_equal(found[0, :20], whole[0, :20])


def test_an_object_through_many_blocks_is_one() -> None:
    spiral = np.zeros((80, 80), np.uint8)
    for r in range(4, 40, 4):
        spiral[40 - r : 40 + r, 40 + r] = spiral[40 + r, 40 - r : 40 + r + 1] = 1
        spiral[40 - r : 40 + r, 40 - r] = spiral[40 - r, 40 - r + 4 : 40 + r] = 1
        spiral[40 - r - 4 : 40 - r, 40 - r] = 1
    assert in_blocks(spiral).max() == ndimage.label(spiral)[1]
    assert in_blocks(np.ones((80, 80), np.uint8)).max() == 1
    assert in_blocks(np.zeros((80, 80), np.uint8)).max() == 0


def test_values_meet_only_their_like() -> None:
    values = np.random.default_rng(1).integers(0, 3, (50, 61))
    into = ArrayPlane(np.zeros(values.shape, np.uint32))
    final = label_seeds(lambda y0, y1, x0, x1: values[y0:y1, x0:x1], (50, 61), into)
    assert np.array_equal(final[into.values], label(values, background=0, connectivity=1))


def test_sums_are_regionprops() -> None:
    rng = np.random.default_rng(2)
    classes, image = classes_of(3, (60, 70), 2.0), rng.normal(size=(2, 60, 70))
    labels = objects_of(classes)
    sums = ObjectSums(labels.max(), 2)
    for y0, y1, x0, x1 in blocks((60, 70)):
        sums.add(y0, x0, labels[y0:y1, x0:x1], image[:, y0:y1, x0:x1], labels[y0:y1, x0:x1])
    parts: list[dict[str, Any]] = list(sums.parts(7))
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(parts) == -(-labels.max() // 7)
    found = regionprops(labels, np.moveaxis(image, 0, -1))
    assert table["object"].tolist() == table["value"].tolist() == [r.label for r in found]
    assert table["area"].tolist() == [r.area for r in found]
    for k in range(4):
        assert table[f"box_{k}"].tolist() == [r.bbox[k] for r in found]
    np.testing.assert_allclose(np.stack([table["y"], table["x"]], 1), [r.centroid for r in found])
    np.testing.assert_allclose(np.stack([table["mean_0"], table["mean_1"]], 1), [r.intensity_mean for r in found])
