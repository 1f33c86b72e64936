"""Figures of objects against stardist's own numbers, torchmetrics' panoptic quality, and brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.detection import PanopticQuality

from framework.errors import DataError
from framework.instances import objects_of
from framework.metrics import Matches, instance_figures, match_objects
from framework.metrics.instances import THRESHOLDS, matched_objects


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Two label images of 40 rectangles: shifted, split in halves, merged, lost and invented ones."""
    rng = np.random.default_rng(7)
    truth, found = np.zeros((2, 96, 120), np.int64)
    for n in range(1, 41):
        y, x = 19 * ((n - 1) // 8) + 1, 15 * ((n - 1) % 8) + 1
        h, w = rng.integers(6, 18), rng.integers(5, 14)
        dy, dx, kind = rng.integers(0, 3), rng.integers(0, 3), rng.integers(0, 6)
        if kind != 1:
            truth[y : y + h, x : x + w] = n
        if kind == 0:
            found[y : y + h, x : x + w // 2] = 2 * n
            found[y : y + h, x + w // 2 : x + w] = 2 * n + 1
        elif kind != 2:
            found[y + dy : y + h, x + dx : x + w] = 2 * n
    found[20:37][found[20:37] > 40] = 41
    return truth, found


#: stardist 0.9.2, `matching(truth, found, thresh=...)` of `sample`: thresh, tp, fp, fn, f1, accuracy, panoptic_quality
STARDIST = [
    (0.5, 26, 15, 6, 0.7123287671232876, 0.5531914893617021, 0.5066766085690015),
    (0.55, 19, 22, 13, 0.5205479452054794, 0.35185185185185186, 0.4093410805480121),
    (0.6, 19, 22, 13, 0.5205479452054794, 0.35185185185185186, 0.4093410805480121),
    (0.65, 16, 25, 16, 0.4383561643835616, 0.2807017543859649, 0.3590692494013538),
    (0.7, 16, 25, 16, 0.4383561643835616, 0.2807017543859649, 0.3590692494013538),
    (0.75, 12, 29, 20, 0.3287671232876712, 0.19672131147540983, 0.2811522026584573),
    (0.8, 11, 30, 21, 0.3013698630136986, 0.1774193548387097, 0.2597480669413527),
    (0.85, 5, 36, 27, 0.136986301369863, 0.07352941176470588, 0.1244413820031571),
    (0.9, 2, 39, 30, 0.0547945205479452, 0.028169014084507043, 0.05296803827155126),
    (0.95, 1, 40, 31, 0.0273972602739726, 0.013888888888888888, 0.0273972602739726),
]


def test_the_figures_are_stardists() -> None:
    found = match_objects(*sample()).by_threshold()
    table = np.stack([found[name] for name in ("iou", "tp", "fp", "fn", "f1", "ap", "pq")], 1)
    np.testing.assert_allclose(table, STARDIST, rtol=1e-6)  # its panoptic quality is float32


def test_the_logged_figures_are_those_of_all_pictures_together() -> None:
    truth, found = sample()
    metrics = instance_figures()
    metrics.update([match_objects(truth[:38], found[:38]), match_objects(truth[38:], found[38:])])
    metrics.update([match_objects(np.zeros((4, 4), int), np.zeros((4, 4), int))])
    figures = {name: float(value) for name, value in metrics.compute().items()}
    whole = np.array(STARDIST)
    assert figures == pytest.approx({
        "instance_f1_50": whole[0, 4], "instance_f1_75": whole[5, 4], "instance_f1": whole[:, 4].mean(),
        "instance_ap_50": whole[0, 5], "instance_ap_75": whole[5, 5], "instance_ap": whole[:, 5].mean(),
        "instance_pq": whole[0, 6], "instance_count": 41, "instance_count_true": 32,
        "instance_count_error": sum(
            abs(len(np.unique(a)) - len(np.unique(b)))
            for a, b in ((truth[:38], found[:38]), (truth[38:], found[38:]))
        ) / 3,
    }, rel=1e-6)  # fmt: skip


def brute(truth: np.ndarray, found: np.ndarray, threshold: float) -> tuple[int, float]:
    """Most pairs with IoU >= threshold, and their summed IoU, over all ways to pair the objects."""
    rows, columns = (sorted(set(v[v > 0].tolist())) for v in (truth, found))
    known = truth >= 0

    def iou(a: int, b: int) -> float:
        first, second = (truth == a) & known, (found == b) & known
        either = np.count_nonzero(first | second)
        return np.count_nonzero(first & second) / either if either else 0.0

    fewer, more, turned = (rows, columns, False) if len(rows) <= len(columns) else (columns, rows, True)
    best = (0, 0.0)
    for chosen in itertools.permutations(more, len(fewer)):
        pairs = [iou(b, a) if turned else iou(a, b) for a, b in zip(fewer, chosen, strict=True)]
        hits = [v for v in pairs if v >= threshold]
        best = max(best, (len(hits), sum(hits)))
    return best


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), objects=st.integers(0, 5), unlabelled=st.booleans(), same=st.booleans(),
    threshold=st.sampled_from([0.1, 0.3, *THRESHOLDS]),
)  # fmt: skip
def test_matching_is_the_best_of_all_pairings(
    seed: int, objects: int, unlabelled: bool, same: bool, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, objects + 1, (2, 4, 5))
    found = np.where(same & (rng.random(truth.shape) < 0.8), truth, found)
    truth = np.where(unlabelled & (rng.random(truth.shape) < 0.2), -1, truth)
    got = match_objects(truth, found, [threshold])
    hits, overlap = brute(truth, found, threshold)
    assert got.hits[0] == hits
    assert got.overlap[0] == pytest.approx(overlap)
    assert got.missed[0] == len(np.unique(truth[truth > 0])) - hits
    pairs = matched_objects(truth, found, threshold)
    assert len(set(pairs[0])) == len(set(pairs[1])) == hits


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), unlabelled=st.booleans())
def test_panoptic_quality_is_torchmetrics_where_nothing_is_exactly_half(seed: int, unlabelled: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (7, 9))
    found = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 6, truth.shape))
    truth = np.where(unlabelled & (rng.random(truth.shape) < 0.3), -1, truth)
    ours = match_objects(truth, found, [0.5 + 1e-9])
    theirs = PanopticQuality(things={1}, stuffs={0}, return_per_class=True)
    kinds = [np.stack([np.where(v > 0, 1, np.where(v < 0, 7, 0)), np.maximum(v, 0)], -1) for v in (found, truth)]
    theirs.update(*(torch.from_numpy(k)[None] for k in kinds))
    got = float(2 * ours.overlap[0] / (2 * ours.hits[0] + ours.false[0] + ours.missed[0]))
    assert got == pytest.approx(float(theirs.compute()[0, 0]), abs=1e-6)


def test_empty_pictures_agree_and_an_invented_object_does_not() -> None:
    ground, one = np.zeros((5, 5), int), np.pad([[3]], 2)
    assert match_objects(ground, ground).figures() == {"f1_50": 1, "ap": 1, "pq": 1}
    for truth, found in ((ground, one), (one, ground)):
        assert match_objects(truth, found).figures() == {"f1_50": 0, "ap": 0, "pq": 0}
    assert match_objects(np.where(one, -1, 0), one).figures()["f1_50"] == 1  # where nobody labelled
    with pytest.raises(DataError, match=r"of one shape, got \(5, 5\) and \(4, 5\)"):
        match_objects(ground, ground[:4])


def test_matches_are_plain_and_add_up() -> None:
    truth, found = sample()
    one, other = match_objects(truth[:19], found[:19]), match_objects(truth[57:], found[57:])
    assert np.array_equal(Matches.of((one + other).plain()).hits, one.hits + other.hits)
    assert (one + other).found == one.found + other.found


def test_large_numbers_of_objects_take_a_moment() -> None:
    truth = np.arange(1, 10001).reshape(100, 100).repeat(6, 0).repeat(6, 1) * 70001
    got = match_objects(truth, np.roll(truth, 1, 0))
    assert got.true == got.found == 10000
    assert got.hits[0] == 10000
    assert got.hits[-1] == 0


def test_nothing_inside_is_no_object() -> None:
    assert objects_of(np.full((4, 4), 2)).max() == 0
