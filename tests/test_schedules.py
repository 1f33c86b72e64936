"""Warm-up and cosine: the values written out, and bad input."""

import math

import pytest
import torch

from framework.errors import ConfigError
from framework.schedules import WarmupCosine


def rates(**kwargs) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, **kwargs)
    values = []
    for _ in range(kwargs["total"] + 2):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    expected = [2 * (i + 1) / 4 for i in range(3)] + [1 + math.cos(math.pi * i / 7) for i in range(8)]
    assert rates(total=10, warmup=3)[:11] == pytest.approx(expected)
    assert rates(total=10, warmup=3)[10:] == pytest.approx([0, 0], abs=1e-12)


def test_the_end_is_a_share_of_the_peak() -> None:
    assert rates(total=4, final=0.1)[4:] == pytest.approx([0.2, 0.2])
    assert rates(total=4, final=0.1)[0] == 2.0


@pytest.mark.parametrize("kwargs", [{"total": 3, "warmup": 3}, {"total": 0}, {"total": 5, "final": 2.0}])
def test_impossible_schedules_are_named(kwargs) -> None:
    with pytest.raises(ConfigError, match="lr_scheduler: expected 0 <= warmup < total"):
        rates(**kwargs)
