"""Warm-up and cosine: the values written out, and bad input."""

import functools
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim import lr_scheduler

from framework.errors import ConfigError
from framework.schedules import WarmupCosine
from tests.helpers.small import Line, PointsData, quiet


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


# ---------------------------------------------------------------------- schedulers that are made of others


def chained(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)


def sequential(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=9), lr_scheduler.StepLR(optimizer, 1, 0.5)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


@pytest.mark.parametrize(("make", "rate"), [(chained, 0.1 * 0.5**3), (sequential, 0.1 * 0.5)])
def test_schedulers_of_several_run_and_resume_in_the_middle(tmp_path, make, rate) -> None:
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    keep = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, filename="{step}", dirpath=tmp_path)
    words = {"optimizer": adam, "lr_scheduler": make}
    trainer = quiet(tmp_path, max_epochs=3, callbacks=[keep])
    trainer.fit(Line(**words), PointsData(batch_size=5))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
    for step in (2, 3):  # the end of the first epoch, the middle of the second
        trainer = quiet(tmp_path, max_epochs=3, enable_checkpointing=False)
        trainer.fit(Line(**words), PointsData(batch_size=5), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_a_found_rate_is_that_of_the_schedulers_inside(tmp_path) -> None:
    class Finds(Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = pl_module.lr = 0.8

    trainer = quiet(tmp_path, max_epochs=3, enable_checkpointing=False, callbacks=[Finds()])
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    trainer.fit(Line(optimizer=adam, lr_scheduler=sequential), PointsData(batch_size=5))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.8 * 0.5)


class OwnSchedule(Line):
    """A scheduler that is added behind the method's own way of building its optimizer."""

    def __init__(self, shape=lr_scheduler.LambdaLR, **kwargs) -> None:
        super().__init__(**kwargs)
        self.shape = shape

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        made = {
            lr_scheduler.LambdaLR: lambda: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            lr_scheduler.OneCycleLR: lambda: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20),
            lr_scheduler.SequentialLR: lambda: sequential(optimizer),
        }[self.shape]()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"}}


@pytest.mark.parametrize("shape", [lr_scheduler.LambdaLR, lr_scheduler.OneCycleLR, lr_scheduler.SequentialLR])
@pytest.mark.parametrize("change", [{"weight_decay": 1e-3}, {"lr": 0.02}, {}])
def test_a_users_own_scheduler_goes_on_when_a_setting_is_changed(tmp_path, shape, change) -> None:
    def fitted(epochs, path=None, **words):
        adam = functools.partial(torch.optim.Adam, **{"lr": 0.1, **words})
        keep = ModelCheckpoint(tmp_path, filename="half", enable_version_counter=False)
        trainer = quiet(tmp_path, max_epochs=epochs, callbacks=[keep])
        trainer.fit(OwnSchedule(shape, optimizer=adam), PointsData(batch_size=5), ckpt_path=path)
        group = trainer.optimizers[0].param_groups[0]
        return trainer.lr_scheduler_configs[0].scheduler.last_epoch, group["lr"], group["weight_decay"]

    fitted(2)
    ends = [fitted(4, tmp_path / "half.ckpt", **change), fitted(4, **change)]
    assert ends[0] == pytest.approx(ends[1])
    assert ends[0][0] == 8
