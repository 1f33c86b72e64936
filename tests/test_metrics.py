"""Segmentation metrics against the formula written out, and against torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from framework.metrics import BatchForegroundIoU, ForegroundIoU


def iou_of_class(preds: np.ndarray, target: np.ndarray, c: int) -> float | None:
    union = np.count_nonzero((preds == c) | (target == c))
    return None if union == 0 else np.count_nonzero((preds == c) & (target == c)) / union


def mean_foreground(preds: np.ndarray, target: np.ndarray, classes: int) -> float:
    values = [v for c in range(1, classes) if (v := iou_of_class(preds, target, c)) is not None]
    return float(np.mean(values)) if values else float("nan")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 5), batches=st.integers(1, 4))
def test_both_are_the_written_out_formula(seed, classes, batches) -> None:
    rng = np.random.default_rng(seed)
    # the last class is often missing, so that absent classes occur
    preds = rng.integers(0, max(1, classes - 1), (batches, 3, 5, 5))
    target = rng.integers(0, classes, (batches, 3, 5, 5)) * rng.integers(0, 2, (batches, 1, 1, 1))
    dataset, per_batch = ForegroundIoU(classes), BatchForegroundIoU(classes)
    for p, t in zip(preds, target, strict=True):
        dataset.update(torch.from_numpy(p), torch.from_numpy(t))
        per_batch.update(torch.from_numpy(p), torch.from_numpy(t))
    expected = mean_foreground(preds, target, classes)
    each = np.array([mean_foreground(p, t, classes) for p, t in zip(preds, target, strict=True)])
    np.testing.assert_allclose(float(dataset.compute()), expected, rtol=1e-6)
    np.testing.assert_allclose(
        float(per_batch.compute()), np.nanmean(each) if not np.isnan(each).all() else np.nan, rtol=1e-6
    )


def test_over_a_dataset_it_is_torchmetrics_jaccard_of_the_foreground() -> None:
    generator = torch.Generator().manual_seed(0)
    preds, target = (torch.randint(0, 4, (6, 8, 8), generator=generator) for _ in range(2))
    ours, theirs = ForegroundIoU(4), MulticlassJaccardIndex(4, average=None)
    ours.update(preds, target)
    theirs.update(preds, target)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()[1:].mean()), rel=1e-6)


def test_background_errors_count() -> None:
    # one false foreground pixel on background halves the IoU: ignoring class 0 in torchmetrics would miss it
    metric = ForegroundIoU(2)
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 0]]]))
    assert float(metric.compute()) == 0.5
