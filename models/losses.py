"""The losses of the methods that give every pixel a class, by name, and weights that make up for rare classes."""

from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data import spread, training_set
from framework.distributed import say
from framework.errors import ConfigError, few
from framework.protocols import HasClassCounts

#: names of `LOSSES`, joined by `+` or as a list
Loss = str | list[str]
ClassWeights = list[float] | Literal["balanced"]

#: exponent of the focal loss (Lin et al., section 5.1)
GAMMA = 2.0


class LossFunction(Protocol):
    """One term of a loss."""

    def __call__(self, logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
        """A scalar.

        Args:
            logits: (B, C, H, W) float32 or float64.
            target: (B, H, W) int64, 0 where there is no label.
            labelled: (B, H, W) bool; None: every pixel.
            weights: (C,) of mean 1, for the terms that are weighted.
        """
        ...


def cross_entropy(logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
    """Mean of -log p over the labelled pixels."""
    return _mean(F.cross_entropy(logits, target, reduction="none"), labelled)


def weighted_cross_entropy(logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
    """Mean of -w log p with the weight of a pixel's class."""
    return _mean(F.cross_entropy(logits, target, reduction="none") * weights[target], labelled)


def focal(logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
    """Mean of -(1 - p)^2 log p, which leaves well classified pixels aside (Lin et al., arXiv 1708.02002, eq. 4)."""
    return _mean(_focal(logits, target), labelled)


def weighted_focal(logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
    """The same with the weight of a pixel's class (Lin et al., eq. 5)."""
    return _mean(_focal(logits, target) * weights[target], labelled)


def dice(logits: Tensor, target: Tensor, labelled: Tensor | None, weights: Tensor) -> Tensor:
    """1 - mean over samples and classes of (2 sum p t + 1) / (sum p + sum t + 1).

    Milletari et al., arXiv 1606.04797, with the sums to the first power.
    """
    probabilities = logits.softmax(1)
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    if labelled is not None:
        probabilities, truth = probabilities * labelled[:, None], truth * labelled[:, None]
    overlap = (probabilities * truth).sum((2, 3))
    size = probabilities.sum((2, 3)) + truth.sum((2, 3))
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


#: name -> term; `models.losses.LOSSES["mine"] = mine` in a module given to `--import` adds one
LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "weighted_cross_entropy": weighted_cross_entropy,
    "focal": focal,
    "weighted_focal": weighted_focal,
    "dice": dice,
}


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    entropy = F.cross_entropy(logits, target, reduction="none")
    return (-torch.expm1(-entropy)) ** GAMMA * entropy


def _mean(values: Tensor, labelled: Tensor | None) -> Tensor:
    return values.mean() if labelled is None else (values * labelled).sum() / labelled.sum().clamp(min=1)


def segmentation_loss(
    logits: Tensor, target: Tensor, kind: Loss, class_weights: Tensor, ignore_index: int | None = None
) -> Tensor:
    """The sum of the terms of `kind`; every sample counts alike. Computed in float32 at least, under autocast too.

    Args:
        logits: (B, C, H, W) floating point.
        target: (B, H, W) int64.
        kind: names of `LOSSES`, joined by `+` or as a list.
        class_weights: (C,) of mean 1, for the terms that are weighted.
        ignore_index: truth of pixels without a label, which are in no sum and no mean.

    Returns:
        scalar; where no pixel has a label the means are 0 and Dice is that of nothing against nothing, 0.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if terms(kind) == ["cross_entropy"]:
        return pixel_cross_entropy(logits, target, ignore_index)  # torch's own mean, one kernel
    labelled = None if ignore_index is None else target != ignore_index
    if labelled is not None:
        target = torch.where(labelled, target, 0)
    weights = class_weights.to(logits)
    return torch.stack([LOSSES[term](logits, target, labelled, weights) for term in terms(kind)]).sum()


def terms(kind: Loss) -> list[str]:
    """The names in `loss`.

    Raises:
        ConfigError: none, one that is not in `LOSSES`, or one twice.
    """
    names = [name.strip() for name in (kind.split("+") if isinstance(kind, str) else kind)]
    if not names or len(set(names)) != len(names) or not set(names) <= LOSSES.keys():
        raise ConfigError(
            f"model.loss: expected some of {', '.join(LOSSES)}, each once, joined by + or as a list, got {kind!r}"
        )
    return names


def first_weights(kind: Loss, class_weights: ClassWeights | None, num_classes: int) -> Tensor:
    """(C,) float32 of mean 1: those given; ones where none are needed, or until `balanced_weights` are known.

    Raises:
        ConfigError: a weighted loss without weights, weights without a weighted loss, or another number of them.
    """
    weighted = any(term.startswith("weighted") for term in terms(kind))
    numbers = None if isinstance(class_weights, str) else class_weights
    fits = numbers is None or (len(numbers) == num_classes and min(numbers) >= 0 and sum(numbers) > 0)
    named = class_weights is None or numbers is not None or class_weights == "balanced"
    if weighted != (class_weights is not None) or not fits or not named:
        raise ConfigError(
            f"model.class_weights: expected {num_classes} weights, or balanced, with a weighted loss and none "
            f"otherwise, got {class_weights!r} with loss {kind}"
        )
    weights = torch.ones(num_classes) if numbers is None else torch.tensor(numbers, dtype=torch.float32)
    return weights / weights.mean()


def balanced_weights(data: Any, num_classes: int, images: int = 256) -> Tensor:
    """(C,) float32 of mean 1, inversely proportional to the pixels of every class in the training masks.

    A class that is in no mask gets 0 and says so; the mean is then that of the others.

    Args:
        data: a data module with `class_counts()`, or with a training dataset, of which samples from all over are taken.
        num_classes: C.
        images: samples at most.

    Raises:
        ConfigError: neither is there, or no pixel has a label.
    """
    if isinstance(data, HasClassCounts):
        counts = np.asarray(data.class_counts(), np.float64)
    elif (dataset := training_set(data)) is not None:
        counts = np.zeros(num_classes)
        for i in spread(len(dataset), images):
            counts += np.bincount(dataset[i]["mask"].numpy().ravel(), minlength=num_classes)[:num_classes]
    else:
        raise ConfigError(
            f"model.class_weights: balanced needs a data module with class_counts() or a train dataset, got "
            f"{type(data).__name__}; give {num_classes} weights"
        )
    if len(counts) != num_classes or not counts.any():
        raise ConfigError(
            f"model.num_classes: class_weights: balanced expected pixels of {num_classes} classes in the training "
            f"masks, got the counts {counts.astype(int).tolist()}"
        )
    present = counts > 0
    weights = np.where(present, counts.sum() / np.maximum(counts, 1), 0.0)
    weights /= weights[present].mean()
    if not present.all():
        say(f"class_weights: class {few(np.flatnonzero(~present).tolist())} is in no training mask; its weight is 0")
    say(f"class_weights: {[round(float(w), 4) for w in weights]} from the training masks")
    return torch.from_numpy(weights).float()


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> Tensor:
    """Cross-entropy averaged over the pixels that have a label; 0 where none has.

    Args:
        logits: (B, C, H, W) float32.
        target: (B, H, W) int64.
        ignore_index: truth of pixels without a label.

    Returns:
        scalar.
    """
    if ignore_index is None:
        return F.cross_entropy(logits, target)
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)
