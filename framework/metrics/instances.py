"""Figures of objects: which predicted object is which true one, at every threshold of their overlap.

The definitions are those of stardist's `matching` (Schmidt et al., arXiv 1806.03535; Caicedo et al., Nature Methods 16,
2019): at a threshold t pairs with IoU >= t are matched one to one, as many as can be; F1 = 2 TP / (2 TP + FP + FN),
average precision = TP / (TP + FP + FN). Panoptic quality is the sum of the matched IoUs / (TP + FP / 2 + FN / 2) at
t = 0.5 (Kirillov et al., arXiv 1801.00868). Counts are summed over the dataset first. Where there is no object in
either, prediction and truth agree and the figure is 1.

Pixels whose truth is negative have no label: they belong to no object, and an unmatched object that lies on them with
more than half of its pixels is no false one (Kirillov et al., section 4.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from framework.errors import DataError

#: of IoU, as COCO and the Data Science Bowl count them
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True)
class Matches:
    """One picture's objects against the truth.

    Attributes:
        hits: (T,) int64, matched pairs at every threshold.
        false: (T,) int64, predicted objects that match none.
        missed: (T,) int64, true objects that none matches.
        overlap: (T,) float64, sum of the matched pairs' IoU.
        found: predicted objects.
        true: true objects.
    """

    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    overlap: np.ndarray
    found: int
    true: int

    def plain(self) -> dict[str, Any]:
        """As plain values, which processes can exchange."""
        arrays = {name: getattr(self, name).tolist() for name in ("hits", "false", "missed", "overlap")}
        return {**arrays, "found": self.found, "true": self.true}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Matches":
        """The inverse of `plain`."""
        hits, false, missed = (np.array(plain[name], np.int64) for name in ("hits", "false", "missed"))
        return cls(hits, false, missed, np.array(plain["overlap"], np.float64), plain["found"], plain["true"])

    def __add__(self, other: "Matches") -> "Matches":
        """Both pictures together."""
        names = ("hits", "false", "missed", "overlap", "found", "true")
        return Matches(*(getattr(self, name) + getattr(other, name) for name in names))

    def figures(self) -> dict[str, float]:
        """`f1_50`, `ap` (mean over the thresholds) and `pq` of this picture alone."""
        table = self.by_threshold()
        return {"f1_50": float(table["f1"][0]), "ap": float(table["ap"].mean()), "pq": float(table["pq"][0])}

    def by_threshold(self) -> dict[str, np.ndarray]:
        """`iou` (the thresholds), `tp`, `fp`, `fn`, `f1`, `ap`, `pq`, each (T,)."""
        hits, false, missed = (torch.from_numpy(v) for v in (self.hits, self.false, self.missed))
        quality = panoptic_quality(hits, false, missed, torch.from_numpy(self.overlap))
        ratios = {"f1": f1_score(hits, false, missed), "ap": average_precision(hits, false, missed), "pq": quality}
        counts = {"iou": np.array(THRESHOLDS), "tp": self.hits, "fp": self.false, "fn": self.missed}
        return counts | {name: values.numpy() for name, values in ratios.items()}


def match_objects(truth: np.ndarray, found: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> Matches:
    """Matches two label images.

    Args:
        truth: (H, W) integers: 0 ground, above it objects, below it no label.
        found: (H, W) integers: 0 ground, above it objects.
        thresholds: T of them, of IoU in (0, 1].

    Raises:
        DataError: of another shape.
    """
    if truth.shape != found.shape:
        raise DataError(f"match_objects: expected two label images of one shape, got {truth.shape} and {found.shape}")
    row, column, iou, true_count, unlabelled = _overlaps(truth, found)
    found_count = len(unlabelled)
    hits, false, overlap = [], [], []
    for threshold in thresholds:
        chosen = _one_to_one(row, column, iou, threshold)
        alone = np.ones(found_count, bool)
        alone[column[chosen]] = False
        hits.append(len(chosen))
        false.append(np.count_nonzero(alone & ~unlabelled))
        overlap.append(iou[chosen].sum())
    return Matches(
        np.array(hits, np.int64), np.array(false, np.int64), true_count - np.array(hits, np.int64),
        np.array(overlap, np.float64), int(np.count_nonzero(~unlabelled)), true_count,
    )  # fmt: skip


def matched_objects(truth: np.ndarray, found: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the true and of the predicted objects that are matched, pair by pair; see `match_objects`."""
    true_values, found_values = (np.unique(labels[labels > 0]) for labels in (truth, found))
    row, column, iou, *_ = _overlaps(truth, found)
    chosen = _one_to_one(row, column, iou, threshold)
    return true_values[row[chosen]], found_values[column[chosen]]


def _overlaps(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Places of the true and of the predicted object of every pair that overlaps, their IoU; how many true objects
    there are; and which predicted ones lie on pixels without a label."""
    true_count, true_at = _compact(truth)
    found_count, found_at = _compact(found)
    area = np.bincount(found_at.ravel(), minlength=found_count + 1)[1:]
    labelled = truth >= 0
    true_at, found_at = true_at[labelled], found_at[labelled]
    areas = [np.bincount(at, minlength=n + 1)[1:] for at, n in ((true_at, true_count), (found_at, found_count))]
    unlabelled = area - areas[1] > area / 2
    both = (true_at > 0) & (found_at > 0)
    pairs, shared = np.unique((true_at[both] - 1) * max(1, found_count) + found_at[both] - 1, return_counts=True)
    row, column = pairs // max(1, found_count), pairs % max(1, found_count)
    iou = shared / (areas[0][row] + areas[1][column] - shared)
    return row, column, iou, true_count, unlabelled


def _compact(labels: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of objects, and (H, W) int64 that numbers them 1, 2, ..., everything else 0."""
    values, at = np.unique(labels, return_inverse=True)
    ground = int(np.count_nonzero(values <= 0))
    return len(values) - ground, np.maximum(at.reshape(labels.shape) - ground + 1, 0)


def _one_to_one(row: np.ndarray, column: np.ndarray, iou: np.ndarray, threshold: float) -> np.ndarray:
    """Places of as many pairs as can be with IoU >= threshold, no object twice; of equally many those of most IoU."""
    fits = np.flatnonzero(iou >= threshold)
    rows, columns = row[fits], column[fits]
    if len(np.unique(rows)) == len(fits) == len(np.unique(columns)):
        return fits  # always so above one half
    r, c = np.unique(rows, return_inverse=True)[1], np.unique(columns, return_inverse=True)[1]
    gain, place = np.zeros((r.max() + 1, c.max() + 1)), np.full((r.max() + 1, c.max() + 1), -1)
    gain[r, c] = 1 + iou[fits] / (2 * min(gain.shape))
    place[r, c] = fits
    chosen = place[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.double() / whole.double(), 1.0)


def f1_score(hits: Tensor, false: Tensor, missed: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN), float64; 1 where there is no object at all."""
    return _share(2 * hits, 2 * hits + false + missed)


def average_precision(hits: Tensor, false: Tensor, missed: Tensor) -> Tensor:
    """TP / (TP + FP + FN), float64; 1 where there is no object at all."""
    return _share(hits, hits + false + missed)


def panoptic_quality(hits: Tensor, false: Tensor, missed: Tensor, overlap: Tensor) -> Tensor:
    """Sum of the matched IoUs / (TP + FP / 2 + FN / 2), float64; 1 where there is no object at all."""
    return _share(2 * overlap, 2 * hits + false + missed)


class InstanceFigure(Metric):
    """One figure of a dataset's objects; figures with the same thresholds can share one count.

    torchmetrics' PanopticQuality is the same as `pq` where no IoU is exactly one half (a test compares them); it
    matches at that threshold alone, in a Python loop over all pairs of objects.

    Args:
        figure: `f1_50` and the like: F1 at one threshold; `f1`: its mean over the thresholds; `ap_50`, `ap`: average
            precision; `pq`: panoptic quality; `count`, `count_true`: all predicted and all true objects; `count_error`:
            mean over pictures of | predicted - true |.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    hits: Tensor
    false: Tensor
    missed: Tensor
    overlap: Tensor
    counts: Tensor

    def __init__(self, figure: str) -> None:
        super().__init__()
        self.figure = figure
        for name in ("hits", "false", "missed"):
            self.add_state(name, torch.zeros(len(THRESHOLDS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("overlap", torch.zeros(len(THRESHOLDS), dtype=torch.float64), dist_reduce_fx="sum")
        # predicted, true, sum of their differences, pictures
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, matches: Sequence[Matches]) -> None:
        """Counts pictures."""
        for one in matches:
            for name in ("hits", "false", "missed", "overlap"):
                state: Any = getattr(self, name)
                state += torch.from_numpy(getattr(one, name)).to(state.device)
            counts = [one.found, one.true, abs(one.found - one.true), 1]
            self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> Tensor:
        """Scalar float32; NaN before the first picture."""
        if not self.counts[3]:
            return torch.full((), torch.nan, device=self.counts.device)
        kind, _, percent = self.figure.partition("_")
        if kind == "count":
            found, true, error, pictures = self.counts
            values = {"": found, "true": true, "error": error / pictures}
            return values[percent].float()
        if kind == "pq":
            return panoptic_quality(self.hits, self.false, self.missed, self.overlap)[0].float()
        values_at = {"f1": f1_score, "ap": average_precision}[kind](self.hits, self.false, self.missed)
        return (values_at[THRESHOLDS.index(int(percent) / 100)] if percent else values_at.mean()).float()


def instance_figures() -> MetricCollection:
    """`instance_f1_50`, `instance_f1_75`, `instance_f1`, the same of `ap`, `instance_pq`, the counts; counted once."""
    names = ("f1_50", "f1_75", "f1", "ap_50", "ap_75", "ap", "pq", "count", "count_true", "count_error")
    metrics: dict[str, Metric | MetricCollection] = {f"instance_{name}": InstanceFigure(name) for name in names}
    return MetricCollection(metrics, compute_groups=[list(metrics)])
