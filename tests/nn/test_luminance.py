import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import io
from skimage.filters import threshold_multiotsu

from framework.errors import ConfigError, DataError
from framework.nn import equal_bins, kmeans_colours, luminance, map_bits, multi_otsu

quick = settings(max_examples=25, deadline=None)

# golden values: thresholds, class shares, bits of the map (entropy, PNG, context), quantiles
GOLDEN = {
    "kodim01": ((76, 113, 146), (0.252, 0.262, 0.272, 0.213), (1.994, 1.186, 0.835), (76, 111, 143)),
    "kodim02": ((62, 89, 146), (0.110, 0.748, 0.127, 0.015), (1.131, 0.648, 0.373), (75, 79, 83)),
    "kodim03": ((78, 116, 162), (0.305, 0.366, 0.260, 0.069), (1.825, 0.410, 0.213), (68, 99, 126)),
    "kodim04": ((74, 108, 147), (0.323, 0.307, 0.262, 0.108), (1.902, 0.669, 0.409), (68, 94, 123)),
    "kodim05": ((59, 107, 169), (0.348, 0.425, 0.163, 0.063), (1.733, 0.940, 0.588), (46, 77, 103)),
    "kodim06": ((101, 153, 210), (0.387, 0.285, 0.173, 0.154), (1.900, 0.805, 0.448), (84, 119, 180)),
    "kodim07": ((69, 108, 143), (0.167, 0.258, 0.413, 0.161), (1.887, 0.569, 0.325), (84, 119, 134)),
    "kodim08": ((73, 119, 185), (0.246, 0.318, 0.234, 0.202), (1.980, 0.894, 0.616), (74, 107, 160)),
    "kodim09": ((88, 131, 171), (0.132, 0.305, 0.450, 0.113), (1.782, 0.522, 0.299), (112, 137, 153)),
    "kodim10": ((80, 128, 176), (0.108, 0.522, 0.295, 0.076), (1.637, 0.518, 0.273), (99, 118, 145)),
    "kodim11": ((56, 101, 150), (0.231, 0.233, 0.498, 0.038), (1.659, 0.671, 0.422), (61, 106, 122)),
    "kodim12": ((120, 180, 218), (0.166, 0.549, 0.210, 0.075), (1.658, 0.403, 0.218), (153, 168, 187)),
    "kodim13": ((79, 127, 191), (0.320, 0.422, 0.165, 0.093), (1.799, 1.244, 0.834), (72, 98, 129)),
    "kodim14": ((63, 105, 149), (0.310, 0.297, 0.239, 0.153), (1.952, 0.911, 0.550), (55, 92, 129)),
    "kodim15": ((50, 93, 173), (0.301, 0.318, 0.091, 0.290), (1.880, 0.421, 0.231), (46, 74, 205)),
    "kodim16": ((77, 117, 169), (0.287, 0.363, 0.278, 0.072), (1.834, 0.649, 0.361), (71, 104, 128)),
    "kodim17": ((44, 88, 134), (0.296, 0.306, 0.252, 0.146), (1.949, 0.583, 0.335), (35, 74, 114)),
    "kodim18": ((55, 93, 153), (0.357, 0.444, 0.157, 0.042), (1.663, 0.952, 0.619), (49, 65, 87)),
    "kodim19": ((85, 125, 176), (0.276, 0.378, 0.225, 0.121), (1.896, 0.649, 0.386), (82, 112, 140)),
    "kodim20": ((69, 136, 213), (0.176, 0.218, 0.069, 0.538), (1.666, 0.336, 0.188), (87, 235, 253)),
    "kodim21": ((68, 112, 180), (0.164, 0.202, 0.594, 0.040), (1.526, 0.643, 0.394), (85, 125, 140)),
    "kodim22": ((86, 130, 188), (0.279, 0.419, 0.264, 0.038), (1.726, 0.630, 0.398), (83, 106, 142)),
    "kodim23": ((78, 113, 165), (0.259, 0.395, 0.193, 0.152), (1.906, 0.445, 0.236), (77, 97, 129)),
    "kodim24": ((79, 121, 194), (0.318, 0.380, 0.216, 0.087), (1.840, 0.762, 0.493), (72, 98, 130)),
}
# the rest takes 15 s; two landscapes and a portrait of unusual shares stand for it in the quick run
QUICK = ("kodim02", "kodim04", "kodim20")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GOLDEN])
def test_golden_values_on_kodak(name: str, shared_data: Path) -> None:
    thresholds, shares, bits, quantiles = GOLDEN[name]
    luma = luminance(io.imread(shared_data / "kodak" / f"{name}.png"))
    labels, found = multi_otsu(luma)
    assert tuple(found) == thresholds
    assert np.bincount(labels.ravel(), minlength=4) / labels.size == pytest.approx(shares, abs=6e-4)
    assert tuple(map_bits(labels, 4).values()) == pytest.approx(bits, abs=6e-4)
    assert tuple(equal_bins(luma)[1]) == quantiles


def test_luminance_is_bt601_of_either_dtype() -> None:
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]], np.uint8)
    assert luminance(rgb).tolist() == [76, 150, 29, 255, 18]
    assert luminance(rgb / 255).tolist() == luminance(rgb).tolist()
    assert luminance(rgb).dtype == np.uint8


@quick
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.integers(2, 5))
def test_thresholds_belong_to_the_lower_class_and_classes_ascend(values: list[int], classes: int) -> None:
    luma = np.array(values, np.uint8)
    labels, thresholds = multi_otsu(luma, classes)
    assert labels.dtype == np.int64
    assert labels.tolist() == [sum(v > t for t in thresholds) for v in values]
    assert len(thresholds) <= classes - 1
    assert labels.max() < classes
    distinct = np.unique(luma)
    if len(distinct) > classes:
        assert thresholds.tolist() == list(threshold_multiotsu(luma, classes))
    else:  # every value a class of its own
        assert len(np.unique(labels)) == len(distinct)


def test_ties_constant_images_and_few_grey_values() -> None:
    assert multi_otsu(np.full((4, 4), 7, np.uint8))[0].max() == 0
    assert multi_otsu(np.full((4, 4), 7, np.uint8))[1].tolist() == []
    labels, thresholds = multi_otsu(np.array([[0, 9, 90, 255]], np.uint8))
    assert thresholds.tolist() == [0, 9, 90]
    assert labels.tolist() == [[0, 1, 2, 3]]
    assert multi_otsu(np.array([[3, 3, 200]], np.uint8))[0].tolist() == [[0, 0, 1]]
    assert equal_bins(np.full((4, 4), 7, np.uint8))[0].max() == 0
    labels, thresholds = equal_bins(np.array([0, 0, 0, 0, 0, 0, 1, 2], np.uint8))
    assert thresholds.tolist() == [0, 0, 0.25]
    assert np.bincount(labels, minlength=4).tolist() == [6, 0, 0, 2]  # empty classes are legal


def test_equal_bins_are_equal_without_ties() -> None:
    labels, _ = equal_bins(np.arange(240, dtype=np.uint8), 3)
    assert np.bincount(labels).tolist() == [80, 80, 80]


def test_kmeans_finds_separate_colours_in_ascending_luminance() -> None:
    colours = np.array([[250, 250, 250], [5, 5, 5], [200, 10, 10], [10, 90, 200]], np.uint8)
    pick = np.random.default_rng(0).integers(0, 4, (20, 30))
    labels = kmeans_colours(colours[pick], 4)
    rank = np.argsort(np.argsort(luminance(colours)))
    assert np.array_equal(labels, rank[pick])
    assert kmeans_colours(np.zeros((3, 3, 3), np.uint8), 4).max() == 0


def test_context_bits_equal_the_adaptive_coder_symbol_by_symbol() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (9, 11))
    counts: dict[tuple, list[float]] = {}
    bits = 0.0
    at = lambda y, x: int(labels[y, x]) if y >= 0 and 0 <= x < labels.shape[1] else 0  # noqa: E731
    for y in range(9):
        for x in range(11):
            context = (at(y, x - 1), at(y - 1, x), at(y - 1, x - 1), at(y - 1, x + 1))
            seen = counts.setdefault(context, [0.05] * 3)
            bits -= math.log2(seen[labels[y, x]] / sum(seen))
            seen[labels[y, x]] += 1
    assert map_bits(labels, 3)["context"] * labels.size == pytest.approx(bits)


def test_a_constant_map_costs_no_entropy() -> None:
    bits = map_bits(np.zeros((64, 64), int), 4)
    assert bits["entropy"] == 0
    assert bits["context"] < 0.01


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"expected an array \(\.\.\., 3\), got \(4, 4\)"):
        luminance(np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"floats in \[0, 1\], got 0\.0 to 2\.0"):
        luminance(np.array([0.0, 1.0, 2.0]))
    with pytest.raises(DataError, match=r"floats in \[0, 1\], got nan"):
        luminance(np.array([0.0, 1.0, np.nan]))
    with pytest.raises(DataError, match="expected uint8 or floating point, got int64"):
        luminance(np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match="classes: expected at least 2, got 1"):
        multi_otsu(np.zeros((2, 2), np.uint8), 1)
    with pytest.raises(DataError, match="luminance: expected an image of uint8, got float64"):
        equal_bins(np.zeros((2, 2)))
    for classes in (0, 1, 257, 300):
        with pytest.raises(ConfigError, match=rf"classes: expected 2 to 256, got {classes}"):
            map_bits(np.zeros((2, 2), int), classes)
    assert map_bits(np.zeros((2, 2), int), 256)["entropy"] == 0
    with pytest.raises(DataError, match=r"classes 0\.\.1"):
        map_bits(np.full((2, 2), 2), 2)
