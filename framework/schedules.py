"""Learning-rate schedules that torch does not have in one piece."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from framework.errors import ConfigError


class WarmupCosine(LambdaLR):
    """Linear warm-up from 1 / warmup of the rate, then half a cosine down to `final` times it; steps or epochs.

    Args:
        optimizer: its learning rates are the peak.
        total: length in the units of `model.lr_interval`.
        warmup: of these, for the warm-up.
        final: share of the peak at the end.

    Raises:
        ConfigError: a warm-up that does not end before the schedule does.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int = 0, final: float = 0.0) -> None:
        if not 0 <= warmup < total or not 0 <= final <= 1:
            raise ConfigError(
                f"lr_scheduler: expected 0 <= warmup < total and final in [0, 1], got warmup {warmup}, total {total}, "
                f"final {final}"
            )

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            done = min(1.0, (step - warmup) / (total - warmup))
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)
