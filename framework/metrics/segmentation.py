"""IoU and Dice of segmentations. All count on the device, in integers, in one confusion matrix.

One rule for a class that occurs in neither prediction nor truth of the whole dataset: it has no figure of its own (NaN)
and is left out of a mean. Where no foreground class occurs in either, prediction and truth agree and the mean is 1;
where no pixel was counted at all there is no figure (NaN). Pixels whose truth is `ignore_index` count nowhere.
"""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from framework.errors import ConfigError, DataError


def iou_by_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FP + FN) of every class.

    Args:
        confusion: (C, C) integer counts, rows truth, columns prediction.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class that occurs in neither.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 = NaN marks an absent class


def dice_by_class(confusion: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN) of every class, which is also its F1.

    Args:
        confusion: (C, C) integer counts, rows truth, columns prediction.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class that occurs in neither.
    """
    counts = confusion.double()
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def mean_over_present(values: Tensor) -> Tensor:
    """Mean over the foreground classes 1..C-1 that occur; 1 where none does.

    Args:
        values: (C,) floating point, NaN for absent classes.

    Returns:
        scalar.
    """
    mean = torch.nanmean(values[1:])
    return torch.where(mean.isnan(), torch.ones_like(mean), mean)


def confusion_counts(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """How often every pair of classes meets.

    Args:
        preds: (B, H, W) int64, or (B, C, H, W) scores.
        target: (B, H, W) int64.
        num_classes: C.
        ignore_index: truth of pixels that do not count.

    Returns:
        (C, C) int64, rows truth, columns prediction.
    """
    if not preds.is_cuda:
        return multiclass_confusion_matrix(preds, target, num_classes, ignore_index=ignore_index, validate_args=False)
    # torch.bincount reads the largest value and so waits for the device: a product of indicators does not. Zeros and
    # ones are exact in any precision, and so are float32 sums below 2^24 pixels an image.
    if preds.dim() > target.dim():
        preds = preds.argmax(1)
    classes = torch.arange(num_classes, device=preds.device)
    truth, said = (t.flatten(1).unsqueeze(-1) == classes for t in (target, preds))
    if ignore_index is not None:
        truth = truth & (target != ignore_index).flatten(1).unsqueeze(-1)
    with torch.autocast("cuda", enabled=False):
        return torch.bmm(truth.float().mT, said.float()).long().sum(0)


def check_maps(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Refuses what cannot be counted. It reads extremes, and so waits for the device.

    Args:
        preds: (B, H, W) classes, or (B, C, H, W) scores in floating point.
        target: (B, H, W) classes.
        num_classes: C.
        ignore_index: truth of pixels that do not count.

    Raises:
        DataError: other shapes or dtypes, or a class that is none of 0..C-1; names the value.
    """
    scores = preds.is_floating_point()
    shape = (target.shape[0], num_classes, *target.shape[1:]) if scores and target.dim() else target.shape
    if target.is_floating_point() or preds.shape != shape:
        raise DataError(
            f"preds and target: expected classes of one shape such as (B, H, W), or (B, {num_classes}, H, W) scores "
            f"beside classes, got {tuple(preds.shape)} {preds.dtype} and {tuple(target.shape)} {target.dtype}"
        )
    counted = target if ignore_index is None else target[target != ignore_index]
    for name, classes in (("target", counted), ("preds", None if scores else preds)):
        if classes is None or classes.numel() == 0:
            continue
        wrong = [value for value in torch.stack(classes.aminmax()).tolist() if not 0 <= value < num_classes]
        if wrong:
            hint = f"; give ignore_index={wrong[0]} if it marks pixels without a label" if name == "target" else ""
            raise DataError(f"{name}: expected classes 0 to {num_classes - 1} (num_classes), got {wrong[0]}{hint}")


def without_class(values: Tensor, ignore_index: int | None) -> Tensor:
    """(C,) figures with NaN for the class whose pixels are ignored, if it is one of them."""
    if ignore_index is not None and 0 <= ignore_index < len(values):
        values[ignore_index] = torch.nan
    return values


class _Overlap(MulticlassConfusionMatrix):
    """One figure of a dataset's confusion counts; figures with the same arguments can share one count.

    Updated with preds and target, both int64 (B, H, W) class maps; preds may be (B, C, H, W) scores as well.

    Args:
        num_classes: C, background (0) included.
        ignore_index: truth of pixels without a label; they count nowhere. None: every pixel has one.
        validate_args: False leaves out the checks of every update, for callers that have checked the maps.

    Raises:
        ConfigError: fewer than two classes.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int | None = None, validate_args: bool = True) -> None:
        if num_classes < 2:
            raise ConfigError(f"num_classes: expected at least 2, background included, got {num_classes}")
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=validate_args)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts one batch.

        Raises:
            DataError: what `check_maps` refuses, unless `validate_args` is false.
        """
        if self.validate_args:
            check_maps(preds, target, self.num_classes, self.ignore_index)
        self.confmat += confusion_counts(preds, target, self.num_classes, self.ignore_index)

    def mean(self) -> Tensor:
        """Over the foreground classes that occur; 1 where none does, NaN where no pixel was counted."""
        mean = mean_over_present(self.by_class()).float()
        return torch.where(self.confmat.sum() > 0, mean, torch.nan)

    def by_class(self) -> Tensor:
        """(C,) float64; NaN for classes that do not occur and for the one that is ignored."""
        return without_class(type(self).ratio(self.confmat), self.ignore_index)

    @staticmethod
    def ratio(confusion: Tensor) -> Tensor:
        """(C, C) counts -> (C,) figures."""
        raise NotImplementedError


class ForegroundIoU(_Overlap):
    """IoU over a whole dataset: counts first, one ratio per class, the mean over foreground classes that occur."""

    ratio = staticmethod(iou_by_class)

    def compute(self) -> Tensor:
        """Scalar float32 in [0, 1]; NaN before the first pixel."""
        return self.mean()


class ForegroundDice(ForegroundIoU):
    """Dice over a whole dataset: counts first, one ratio per class, the mean over foreground classes that occur."""

    ratio = staticmethod(dice_by_class)


class ClassIoU(_Overlap):
    """IoU of one class over a whole dataset, counts first.

    Args:
        num_classes: C, background (0) included.
        index: the class.
        ignore_index: truth of pixels without a label.
        validate_args: as in ForegroundIoU.
    """

    ratio = staticmethod(iou_by_class)

    def __init__(
        self, num_classes: int, index: int, ignore_index: int | None = None, validate_args: bool = True
    ) -> None:
        super().__init__(num_classes, ignore_index, validate_args)
        if not 0 <= index < num_classes:
            raise ConfigError(f"index: expected a class from 0 to {num_classes - 1}, got {index}")
        self.index = index

    def compute(self) -> Tensor:
        """Scalar float32 in [0, 1]; NaN when the class occurs in neither prediction nor truth."""
        return self.by_class()[self.index].float()


class ClassDice(ClassIoU):
    """Dice of one class over a whole dataset, counts first; the arguments are those of ClassIoU."""

    ratio = staticmethod(dice_by_class)


def overlap_metrics(
    num_classes: int, ignore_index: int | None = None, *, by_class: bool = False, validate_args: bool = True
) -> MetricCollection:
    """`iou` and `dice`, the foreground means, and with `by_class` also `iou_0`, `dice_0`, ...; counted once together.

    torchmetrics' ClasswiseWrapper is not used: in a compute group it keeps the value of its first `compute` when more
    batches follow, and Lightning logs scalars only.

    Args:
        num_classes: C, background (0) included.
        ignore_index: truth of pixels without a label.
        by_class: the figures of every class too.
        validate_args: False leaves out the checks of every update.
    """
    common = (ignore_index, validate_args)
    metrics: dict[str, Metric | MetricCollection] = {
        "iou": ForegroundIoU(num_classes, *common),
        "dice": ForegroundDice(num_classes, *common),
    }
    for c in range(num_classes if by_class else 0):
        metrics |= {f"iou_{c}": ClassIoU(num_classes, c, *common), f"dice_{c}": ClassDice(num_classes, c, *common)}
    # Named groups: torchmetrics' own search takes metrics for one whose counts happen to agree on the first batch.
    return MetricCollection(metrics, compute_groups=[list(metrics)])


class BatchForegroundIoU(Metric):
    """The K-Origins author's "custom accuracy": foreground IoU per batch, averaged over batches.

    It depends on how batches fall, so it is comparable only at one batch size on one process. A batch without any
    foreground in truth or prediction is skipped; without any in the whole dataset the figure is 1.

    Args:
        num_classes: C, background (0) included.
        ignore_index: truth of pixels without a label.
        validate_args: as in ForegroundIoU.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    batches: Tensor
    pixels: Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None, validate_args: bool = True) -> None:
        super().__init__()
        self.num_classes, self.ignore_index, self.validate_args = num_classes, ignore_index, validate_args
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("batches", "pixels"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts one batch of int64 (B, H, W) class maps.

        Raises:
            DataError: what `check_maps` refuses, unless `validate_args` is false.
        """
        if self.validate_args:
            check_maps(preds, target, self.num_classes, self.ignore_index)
        confusion = confusion_counts(preds, target, self.num_classes, self.ignore_index)
        values = without_class(iou_by_class(confusion), self.ignore_index)
        present = ~values[1:].isnan().all()
        self.total += torch.where(present, mean_over_present(values), 0.0)
        self.batches += present
        self.pixels += confusion.sum()

    def compute(self) -> Tensor:
        """Scalar float32 in [0, 1]; NaN before the first pixel."""
        mean = torch.where(self.batches > 0, self.total / self.batches, 1.0).float()
        return torch.where(self.pixels > 0, mean, torch.nan)
