"""What a training step takes is known before it is run, equals what is measured, and decides what is given up."""

import copy
import re
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks.device.methods import finola, korigins, pictures, prepared, segmentation
from framework import step_memory
from framework.errors import ConfigError
from framework.memory import SHARE
from framework.step_memory import Peak, activation_bytes, plan, weight_bytes
from tests.helpers.methods import method_and_data
from tests.helpers.small import Line, Points, PointsData, quiet
from tests.models.loe_tools import make_model

METHODS = ["korigins", "korigins, normalised", "kmunet", "master_key", "finola", "masked_finola, element"]


def measured(method: Any, batch: Any) -> int:
    """Bytes allocated at the highest point of a real step, above the start."""
    twin = copy.deepcopy(method).train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        twin.step(batch, "train")["loss"].backward()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = highest = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        now += change
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize("name", METHODS)
def test_the_try_without_values_is_the_real_step(name: str) -> None:
    method, batch = prepared(name, small=True)
    twin = copy.deepcopy(method).train()
    with Peak() as peak:
        twin.step(batch, "train")["loss"].backward()
    tried = activation_bytes(method, batch)
    assert tried == pytest.approx(peak.highest, rel=0.02)
    # the profiler sees what a CPU's convolutions take inside as well
    assert 0.9 * tried < measured(method, batch) < (1.15 if "finola" in name else 4) * tried


def test_bytes_are_counted_from_a_tensors_making_to_its_end() -> None:
    with Peak() as peak:
        a = torch.zeros(100)
        b = a.view(10, 10) + 1
        assert peak.now == 800
        del a, b
        c = torch.zeros(50)
        assert (peak.now, peak.highest) == (200, 800)
        c.add_(1)
    assert peak.highest == 800


def test_autocast_takes_less() -> None:
    method, batch = prepared("master_key", small=True)
    half = activation_bytes(method, batch, torch.autocast("cpu", torch.bfloat16))
    assert half < 0.9 * activation_bytes(method, batch)


@pytest.mark.parametrize("name", METHODS)
def test_a_lean_step_has_the_same_loss_and_gradients(name: str) -> None:
    method, batch = prepared(name, small=True)
    lean = copy.deepcopy(method)
    how = lean.save_memory()
    if how is None:
        assert "normalised" in name
        return
    found = []
    for one in (method, lean):
        loss = one.train().step(batch, "train")["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in one.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["korigins", "finola"])
def test_a_lean_step_takes_less(name: str) -> None:
    if name == "korigins":
        method, batch = korigins(True), segmentation(2, 64)
    else:
        # a map whose states are more than what the encoder's backward pass, later, holds
        method, batch = finola(True, channels=32, paths=4, map_size=16), pictures(2, 32)
    before = activation_bytes(method, batch), measured(method, batch)
    assert method.save_memory() is not None
    assert activation_bytes(method, batch) < 0.9 * before[0]
    # and by what torch's allocator says of the step itself
    assert measured(method, batch) < 0.9 * before[1]


def test_auto_gives_up_only_what_it_must_and_says_so() -> None:
    batch = segmentation(2, 64)
    fast, lean = korigins(True), korigins(True)
    needed = weight_bytes(fast) + activation_bytes(fast, batch)
    roomy = korigins(True)
    assert plan(roomy, batch, int(needed / SHARE) + 1) == (
        f"KOriginsSegmentation: a training step takes about {step_memory.gib(needed)} of "
        f"{step_memory.gib(int(needed / SHARE) + 1)}"
    )
    assert not roomy.network.checkpoint
    assert "run again in the backward pass (model.memory: auto)" in plan(lean, batch, int(0.9 * needed))
    assert lean.network.checkpoint
    with pytest.raises(ConfigError, match=r"data.batch_size: .*model\.memory: lean"):
        plan(korigins(True, memory="fast"), batch, int(0.9 * needed))
    with pytest.raises(ConfigError, match="data.batch_size: .*even with blocks that run again"):
        plan(korigins(True), batch, needed // 20)
    assert "unbounded" not in plan(korigins(True), batch, None)


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ConfigError, match="model.memory: expected one of auto, fast, lean, got 'small'"):
        korigins(True, memory="small")


def test_optimizers_count_by_what_they_keep() -> None:
    layer = torch.nn.Linear(10, 10)
    held = 110 * 4
    for optimizer, moments in (
        (torch.optim.SGD(layer.parameters(), lr=0.1), 0),
        (torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), 1),
        (torch.optim.AdamW(layer.parameters()), 2),
    ):
        assert weight_bytes(layer, [optimizer]) == held * (1 + moments)
    assert weight_bytes(layer) == 3 * held


def test_lean_is_done_on_a_cpu_too_and_said(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch import Trainer

    method, data = method_and_data("finola", tmp_path)
    method.memory = "lean"
    Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path,
    ).fit(method, data)  # fmt: skip
    assert "FinolaAutoencoder: a training step takes about" in capsys.readouterr().out
    assert method.network.growth.checkpoint  # type: ignore[union-attr]


def test_levels_of_experts_looks_after_its_own_memory() -> None:
    assert make_model().plans_memory is False


class Told(Line):
    """A line that says whether it has been asked to save memory."""

    asked = 0

    def save_memory(self) -> str:
        self.asked += 1
        return "less"


class ReadsValues(Told):
    def step(self, batch, split):
        outputs = super().step(batch, split)
        outputs["loss"].item()
        return outputs


class LossAlone(Told):
    def step(self, batch, split):
        return super().step(batch, split)["loss"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Told, "Told: a training step takes about .*, with less .model.memory: lean."),
        (LossAlone, "LossAlone: a training step takes about .*, with less .model.memory: lean."),
        (ReadsValues, "ReadsValues: the memory .* is not known beforehand .*, with less .model.memory: lean."),
    ],
)
def test_lean_is_done_whatever_the_step_does(tmp_path: Any, capsys: Any, kind: type[Told], said: str) -> None:
    method = kind(memory="lean")
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(method, PointsData(batch_size=5))
    assert method.asked == 1
    assert re.search(said, capsys.readouterr().out)


def test_a_step_that_cannot_be_tried_gives_nothing_up_by_itself() -> None:
    method = ReadsValues()
    said = plan(method, next(iter(DataLoader(Points(4), batch_size=4))), 1)
    assert "ReadsValues: the memory of a training step is not known beforehand" in said
    assert method.asked == 0
