"""The mean of a number over samples."""

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleMean(Metric):
    """Mean of what every batch reports, weighted by its samples.

    torchmetrics' MeanMetric is the same figure, but it looks for NaN, and so waits for the device in every step.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        """Counts one batch: a scalar float32 and its number of samples."""
        self.total += value * weight
        self.samples += weight

    def compute(self) -> Tensor:
        """Scalar float32; NaN before the first batch."""
        return self.total / self.samples
