"""What is kept of every image: its learning rate, its plateau, its divergence, its best evaluation."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from framework.errors import few

#: (images,) tensors by name; all go into checkpoints
Progress = dict[str, Tensor]


def fresh_progress(count: int) -> Progress:
    """Before the first step of `count` images.

    `best_psnr` float64 dB and `best_step`; `diverged_step`, -1 while it has not; `learning_rate_factor` on the
    optimizer's rate, 0 for an image that is frozen; `lowest_loss` of an epoch and `epochs_since_lowest`.
    """
    return {
        "best_psnr": torch.full((count,), -torch.inf, dtype=torch.float64),
        "best_step": torch.zeros(count, dtype=torch.int64),
        "diverged_step": torch.full((count,), -1, dtype=torch.int64),
        "learning_rate_factor": torch.ones(count),
        "lowest_loss": torch.full((count,), torch.inf),
        "epochs_since_lowest": torch.zeros(count, dtype=torch.int64),
    }


def note_best(progress: Progress, psnr: Tensor, step: int) -> Tensor:
    """Takes the (images,) float64 figures of an evaluation; returns the (n,) int64 images that are better than ever."""
    better = (psnr > progress["best_psnr"]).nonzero().flatten()
    progress["best_psnr"][better] = psnr[better]
    progress["best_step"][better] = step
    return better


def best_or_last(best: nn.Module, last: nn.Module, best_psnr: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """Parameters of a stack of best networks; the last ones of images that were never evaluated, and a warning.

    Args:
        best: a stack, whose tensors' first axis is the image.
        last: another of the same form.
        best_psnr: (images,) float64 dB as in `Progress`; None: all have been evaluated.
        names: of the images.
    """
    parameters: dict[str, Tensor] = dict(best.named_parameters())
    if best_psnr is None or not (never := best_psnr.isneginf()).any():
        return parameters
    untried = [name for name, is_so in zip(names, never.tolist(), strict=True) if is_so]
    warnings.warn(
        f"model.weights: best, but no validation in fit has chosen any of {few(untried)}; the last weights are used",
        stacklevel=2,
    )
    present = dict(last.named_parameters())
    return {
        name: torch.where(never.to(p.device).view(-1, *[1] * (p.dim() - 1)), present[name], p)
        for name, p in parameters.items()
    }


def note_epoch(progress: Progress, losses: Tensor, patience: int, factor: float) -> None:
    """Takes an epoch's (images,) float32 losses: an image without a lower one for more than `patience` epochs slows."""
    lower = losses < progress["lowest_loss"]
    progress["lowest_loss"] = torch.minimum(losses, progress["lowest_loss"])
    progress["epochs_since_lowest"] = torch.where(lower, 0, progress["epochs_since_lowest"] + 1)
    stuck = progress["epochs_since_lowest"] > patience
    progress["learning_rate_factor"][stuck] *= factor
    progress["epochs_since_lowest"][stuck] = 0
