"""Callbacks on a user's own modules: layers made late, several optimizers, schedules, and instances used twice."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from callbacks import GridExtension, SplinePruning
from framework.errors import ConfigError
from framework.nn import KANLinear, spline_layers
from tests.callbacks.test_grid_extension import quiet

BATCHES = DataLoader(torch.linspace(-2, 2, 64).view(16, 4), batch_size=4)


class Splines(LightningModule):
    """Two spline layers, made in `__init__`, `setup` or `configure_model`."""

    def __init__(self, made_in: str = "__init__") -> None:
        super().__init__()
        self.made_in = made_in
        self.apart = torch.nn.Parameter(torch.zeros(1))
        self.make("__init__")

    def make(self, where: str) -> None:
        if where == self.made_in and not hasattr(self, "b"):
            self.a = KANLinear(4, 4, max_grid_size=20)
            self.b = KANLinear(4, 3, max_grid_size=20)

    def setup(self, stage: str) -> None:
        self.make("setup")

    def configure_model(self) -> None:
        self.make("configure_model")

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.b(self.a(batch)) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def grown_and_pruned(module: LightningModule) -> tuple[set[int], float]:
    layers = spline_layers(module).values()
    live = sum(int(x.live.sum()) for x in layers) / sum(x.live.numel() for x in layers)
    return {x.grid_size for x in layers}, live


@pytest.mark.parametrize("made_in", ["__init__", "setup", "configure_model"])
def test_layers_may_be_made_after_the_setup_of_callbacks(tmp_path: Path, made_in: str) -> None:
    module = Splines(made_in)
    callbacks = [GridExtension([2]), SplinePruning([1])]
    quiet(tmp_path, max_epochs=3, callbacks=callbacks).fit(module, BATCHES)
    assert grown_and_pruned(module) == ({10}, 0.5)


@pytest.mark.parametrize("make", [lambda: GridExtension([1]), lambda: SplinePruning([1])], ids=["grid", "pruning"])
def test_a_module_without_layers_is_refused_before_it_is_trained(tmp_path: Path, make: Callable[[], Callback]) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[make()])
    with pytest.raises(ConfigError, match="Splines has no framework.nn spline layer; take the callback out of"):
        trainer.fit(Splines("nowhere"), BATCHES)
    assert trainer.train_dataloader is None


def test_room_of_layers_that_are_made_late_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a \(room for 20, needs 40\)"):
        quiet(tmp_path, max_epochs=9, callbacks=[GridExtension([1, 2, 3])]).fit(Splines("configure_model"), BATCHES)


# ---------------------------------------------------------------------- used twice


def test_an_instance_acts_in_every_fold(tmp_path: Path) -> None:
    grid, pruning = GridExtension([2]), SplinePruning([1])
    for _ in range(2):
        module = Splines()
        quiet(tmp_path, max_epochs=3, callbacks=[grid, pruning]).fit(module, BATCHES)
        assert grown_and_pruned(module) == ({10}, 0.5)


class Falling(Splines):
    """Logs a figure that gets no better."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("figure", 1.0, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


def test_patience_begins_anew_in_every_fold(tmp_path: Path) -> None:
    grid = GridExtension(monitor="figure", patience=2)
    for _ in range(2):
        quiet(tmp_path, max_epochs=3, callbacks=[grid]).fit(module := Falling(), BATCHES)
        assert (grid._waited, grid._due, grid.done) == (0, True, [])
        assert grown_and_pruned(module)[0] == {5}


def test_a_trainer_that_goes_on_keeps_what_was_done(tmp_path: Path) -> None:
    grid, pruning = GridExtension([1]), SplinePruning([2])
    module, trainer = Splines(), quiet(tmp_path, max_epochs=3, callbacks=[grid, pruning])
    trainer.fit(module, BATCHES)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, BATCHES)
    assert (grid.done, pruning.done) == ([1], [2])
    assert grown_and_pruned(module) == ({10}, 0.5)


def test_a_used_instance_that_resumes_has_the_checkpoints_state(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    quiet(tmp_path, max_epochs=2, callbacks=[GridExtension([1, 3]), kept], enable_checkpointing=True).fit(
        Splines(), BATCHES
    )
    used = GridExtension([1, 3])
    quiet(tmp_path, max_epochs=5, callbacks=[used]).fit(Splines(), BATCHES)
    trainer = quiet(tmp_path, max_epochs=5, callbacks=[used])
    trainer.fit(module := Splines(), BATCHES, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert used.done == [1, 3]
    assert grown_and_pruned(module)[0] == {20}


# ---------------------------------------------------------------------- optimizers and schedules


class Adversarial(Splines):
    """A second network with an optimizer of its own, of a kind whose moments are not known here."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.nn.Linear(3, 1)
        self.automatic_optimization = False
        self.added: list[tuple[float, float]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        own, others = optimizers
        own.zero_grad(), others.zero_grad()
        loss = super().training_step(batch, batch_idx) + self.other(torch.ones(1, 3)).square().mean()
        self.manual_backward(loss)
        before = self.a.coefficients.grad.clone()
        others.step()
        between = self.a.coefficients.grad.clone()
        own.step()
        steps = (between - before, self.a.coefficients.grad - between)
        self.added.append(tuple(float(step.abs().sum()) for step in steps))  # type: ignore[arg-type]
        return loss

    def configure_optimizers(self) -> Any:
        splines = [*self.a.parameters(), *self.b.parameters()]
        return torch.optim.Adam(splines, 0.01), torch.optim.Adadelta(self.other.parameters())


def test_the_group_lasso_is_added_once_a_step_by_the_layers_own_optimizer(tmp_path: Path) -> None:
    module = Adversarial()
    callbacks = [SplinePruning([5], sparsity=1.0), GridExtension([5])]  # which leaves the other optimizer alone
    quiet(tmp_path, max_epochs=2, callbacks=callbacks).fit(module, BATCHES)
    of_others, own = zip(*module.added, strict=True)
    assert set(of_others) == {0.0}
    assert min(own[4:]) > 0
    quiet(tmp_path, max_epochs=2, callbacks=[GridExtension([1])]).fit(module := Adversarial(), BATCHES)
    assert grown_and_pruned(module)[0] == {10}


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "one cycle of three": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20, three_phase=True),
    "cyclic": partial(lr_scheduler.CyclicLR, base_lr=0.05, max_lr=0.1, step_size_up=2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, total_iters=3), lr_scheduler.LambdaLR(o, lambda k: 0.9**k)], milestones=[3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.LambdaLR(o, lambda k: 0.9**k)], optimizer=o
    ),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=6),
}


class Rates(Callback):
    """What an epoch's first step is taken with."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.rates += [trainer.optimizers[0].param_groups[0]["lr"]] if batch_idx == 0 else []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sgds_rate_stays_twice_as_large_under_every_schedule(tmp_path: Path, schedule: str) -> None:
    class Scheduled(Splines):
        def configure_optimizers(self) -> Any:
            self.rates: list[float] = []
            optimizer = torch.optim.SGD([self.a.coefficients, self.b.coefficients], 0.1)
            return [optimizer], [SCHEDULES[schedule](optimizer)]

    runs = []
    for callbacks in ([], [GridExtension([2])]):
        quiet(tmp_path, max_epochs=6, callbacks=[*callbacks, Rates()]).fit(module := Scheduled(), BATCHES)
        runs.append(module.rates)
    plain, grown = runs
    assert grown == pytest.approx([*plain[:2], *(2 * rate for rate in plain[2:])])


# ---------------------------------------------------------------------- pruning looks


class WithASpare(Splines):
    """One layer is never used, or none is."""

    def __init__(self, uses: bool = True) -> None:
        super().__init__()
        self.spare = KANLinear(4, 2)
        self.uses = uses

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        used = super().training_step(batch, batch_idx) if self.uses else 0
        return used + sum(p.square().sum() for p in self.parameters())


def test_a_layer_without_input_is_named_and_the_others_are_pruned(tmp_path: Path, capsys: Any) -> None:
    module, pruning = WithASpare(), SplinePruning([1])
    quiet(tmp_path, max_epochs=2, callbacks=[pruning]).fit(module, BATCHES)
    assert pruning.done == [1]
    assert "SplinePruning: spare had no input in epoch 0 and stay as they are" in capsys.readouterr().out
    assert bool(module.spare.live.all())
    assert [float(x.live.float().mean()) < 1 for x in (module.a, module.b)] == [True, True]
    quiet(tmp_path, max_epochs=2, callbacks=[pruning]).fit(WithASpare(uses=False), BATCHES)
    assert pruning.done == []
    assert "no spline layer had input in epoch 0; nothing is pruned" in capsys.readouterr().out


@pytest.mark.parametrize("step", [3, 6])
def test_a_checkpoint_from_the_middle_of_an_epoch_goes_on(tmp_path: Path, step: int) -> None:
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    quiet(tmp_path, max_epochs=2, callbacks=[SplinePruning([2]), kept], enable_checkpointing=True).fit(
        Splines(), BATCHES
    )
    pruning = SplinePruning([2])
    trainer = quiet(tmp_path, max_epochs=3, callbacks=[pruning])
    trainer.fit(module := Splines(), BATCHES, ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=False)
    assert pruning.done == [2]
    assert grown_and_pruned(module)[1] == 0.5


def test_the_users_compilation_stance_comes_back(tmp_path: Path) -> None:
    stances: list[str] = []

    class Looks(Splines):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            stances.append(torch._dynamo.eval_frame._stance.stance)
            return super().training_step(batch, batch_idx)

    with torch.compiler.set_stance("fail_on_recompile"):
        quiet(tmp_path, max_epochs=1, callbacks=[SplinePruning([1], calibration_batches=2)]).fit(Looks(), BATCHES)
        assert torch._dynamo.eval_frame._stance.stance == "fail_on_recompile"
    assert stances == ["force_eager"] * 2 + ["fail_on_recompile"] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridExtension([1], mode="biggest"), "mode: expected min or max, got 'biggest'"),  # type: ignore[arg-type]
        (lambda: GridExtension([1], factor=2.5), "factor: expected a whole number, at least 2, got 2.5"),  # type: ignore[arg-type]
        (lambda: GridExtension([1.5]), r"milestones: expected different epochs, 0 or more, got \[1.5\]"),  # type: ignore[list-item]
        (lambda: GridExtension([1], maximum=0), "maximum: expected a whole number, at least 1, got 0"),
        (lambda: GridExtension(monitor="x", patience=0), "patience: expected a whole number, at least 1, got 0"),
        (lambda: SplinePruning([1.5]), r"epochs: expected different epochs, 1 or more .* got \[1.5\]"),  # type: ignore[list-item]
        (lambda: SplinePruning([1], calibration_batches=2.5), "got 0.0 and 2.5"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_number_of_the_kind_is_named(make: Callable[[], Callback], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
