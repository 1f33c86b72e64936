"""What the methods that give every pixel a class share: the losses and the check of a mask."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError

Loss = Literal["cross_entropy", "weighted_cross_entropy", "dice", "cross_entropy+dice", "weighted_cross_entropy+dice"]


def check_classes(mask: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Raises ConfigError for a class that the method does not have; masks on an accelerator are not read.

    Args:
        mask: (B, H, W) int64.
        num_classes: C, background (0) included.
        ignore_index: mask value of pixels without a label.
    """
    if mask.is_cuda:
        return  # reading a value waits for the device
    labelled = mask if ignore_index is None else mask[mask != ignore_index]
    if labelled.numel() and (int(labelled.max()) >= num_classes or int(labelled.min()) < 0):
        raise ConfigError(
            f"model.num_classes: expected classes 0..{num_classes - 1}, but a mask holds {int(labelled.min())} to "
            f"{int(labelled.max())}; set num_classes, or model.ignore_index to the value of pixels without a label"
        )


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


def segmentation_loss(
    logits: Tensor, target: Tensor, kind: Loss, class_weights: Tensor, ignore_index: int | None = None
) -> Tensor:
    """Cross-entropy, soft Dice, or their sum; every sample counts alike.

    Args:
        logits: (B, C, H, W) float32.
        target: (B, H, W) int64.
        kind: the sum's terms joined by `+`.
        class_weights: (C,) float32 of mean 1, applied in `weighted_cross_entropy`.
        ignore_index: truth of pixels without a label, which are in no sum and no mean.

    Returns:
        scalar. Dice is 1 - mean over samples and classes of (2 sum p t + 1) / (sum p + sum t + 1) (Milletari et al.,
        arXiv 1606.04797, with the sums to the first power).
    """
    labelled = None if ignore_index is None else target != ignore_index
    if labelled is not None:
        target = torch.where(labelled, target, 0)
    terms = []
    for term in kind.split("+"):
        if term == "dice":
            terms.append(_soft_dice(logits, target, labelled))
            continue
        losses = F.cross_entropy(logits, target, reduction="none")
        if term.startswith("weighted"):
            losses = losses * class_weights[target]
        if labelled is None:
            terms.append(losses.mean())
        else:
            terms.append((losses * labelled).sum() / labelled.sum().clamp(min=1))
    return torch.stack(terms).sum()


def _soft_dice(logits: Tensor, target: Tensor, labelled: Tensor | None) -> Tensor:
    probabilities = logits.softmax(1)
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    if labelled is not None:
        probabilities, truth = probabilities * labelled[:, None], truth * labelled[:, None]
    overlap = (probabilities * truth).sum((2, 3))
    size = probabilities.sum((2, 3)) + truth.sum((2, 3))
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()
