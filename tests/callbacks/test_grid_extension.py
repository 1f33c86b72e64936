"""Grids grow exactly, with their optimizer's moments, their averaged copies and any interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from callbacks import GridExtension
from datamodules import CellsDataModule
from framework.compat import averaged_models
from framework.distributed import checksum
from framework.errors import ConfigError
from framework.nn import KANConv2d, KANLinear, spline_layers
from framework.nn.splines.bspline import refinement_matrix
from framework.nn.splines.optimizer import DEGREES, carry_moments, check_optimizers, map_moments, rescale_groups
from models import KMUNet
from tests.kmunet_words import TINY_KMUNET

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}}


def small(**kwargs) -> KMUNet:
    return KMUNet(**{"num_classes": 3, "width": 2, "stages": 1, "max_grid_size": 20, "optimizer": ADAM, **kwargs})


def quiet(tmp_path, **kwargs) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
    }
    return Trainer(**{**defaults, "default_root_dir": tmp_path, **kwargs})


def cells() -> CellsDataModule:
    return CellsDataModule(images=8, side=16, batch_size=4)


def test_every_doubling_from_5_to_40_leaves_the_logits() -> None:
    torch.manual_seed(0)
    model = KMUNet(width=4, stages=2, max_grid_size=40)
    with torch.no_grad():
        for layer in spline_layers(model).values():
            layer.coefficients[: layer.basis] += 0.1 * torch.randn_like(layer.coefficients[: layer.basis])
    x = torch.randn(2, 1, 32, 32)
    model(x)  # running statistics
    model.eval()
    with torch.no_grad():
        first = model(x)
        for size in (10, 20, 40):
            for layer in spline_layers(model).values():
                layer.extend_grid()
                assert layer.grid_size == size
            assert (model(x) - first).abs().max() <= 1e-5 * first.abs().max()


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}}
HALVING = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


def resumed(tmp_path: Path, make: Callable[[], KMUNet], callback: Callable[[], Callback]) -> tuple[Any, Any, Any, Any]:
    """Models and optimizers of a run of four epochs and of one that was stopped after two and taken up again."""
    found: list[Any] = []
    for stops in ((4,), (2, 4)):
        for epochs in stops:
            checkpoint = ModelCheckpoint(tmp_path / str(len(stops)), save_last=True, save_on_train_epoch_end=True)
            trainer = quiet(tmp_path, max_epochs=epochs, callbacks=[callback(), checkpoint], enable_checkpointing=True)
            model = make()
            kept = tmp_path / "2" / "last.ckpt"
            trainer.fit(model, cells(), ckpt_path=kept if len(stops) == 2 and epochs == 4 else None)
        found += [model, trainer.optimizers[0]]
    return found[0], found[2], found[1], found[3]


@pytest.mark.parametrize("recipe", ["adam", "sgd with momentum, decay and schedule"])
@pytest.mark.parametrize("milestone", [1, 2, 3], ids=["after", "at", "before"])
def test_resume_after_at_and_before_an_extension_equals_the_uninterrupted_run(tmp_path, milestone, recipe) -> None:
    def make() -> KMUNet:
        torch.manual_seed(0)
        return small() if recipe == "adam" else small(optimizer=SGD, lr_scheduler=HALVING)

    whole, rest, first, second = resumed(tmp_path, make, lambda: GridExtension(milestones=[milestone]))
    assert {layer.grid_size for layer in spline_layers(rest).values()} == {10}
    assert checksum(whole.state_dict()) == checksum(rest.state_dict())
    groups = [[(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] for optimizer in (first, second)]
    assert groups[0] == groups[1]
    if recipe != "adam":
        # 0.02 / 2^4 after four epochs; twice the rate and half the decay for coefficients on twice the cells
        assert groups[0] == [(0.0025, 0.005), (0.00125, 0.01)]


def test_the_event_is_logged(run) -> None:
    words = [*TINY_KMUNET, "--trainer.max_epochs=2", "--trainer.callbacks"]
    cli = run("fit", *words, "[{class_path: GridExtension, init_args: {milestones: [1]}}]")
    log = pd.read_csv(Path(cli.trainer.log_dir) / "metrics.csv")
    assert log["grid/size"].dropna().tolist() == [10]
    assert log["grid/function_change"].dropna().item() < 1e-5
    spent = sum(layer.live_parameters() for layer in spline_layers(cli.model).values())
    assert log["grid/live_parameters"].dropna().item() == spent
    names = {path.stem for path in Path(cli.trainer.log_dir, "figures").glob("*.png")}
    assert names == {"segmentation", "splines", "edge_strength", "outside", "training_curves"}


class PressCtrlC(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "middle.ckpt")
            raise KeyboardInterrupt


def test_an_epoch_that_starts_again_does_not_extend_twice(tmp_path) -> None:
    with pytest.raises(SystemExit):
        quiet(tmp_path, max_epochs=3, callbacks=[GridExtension(milestones=[1]), PressCtrlC()]).fit(small(), cells())
    model = small()
    trainer = quiet(tmp_path, max_epochs=3, callbacks=[GridExtension(milestones=[1])])
    trainer.fit(model, cells(), ckpt_path=tmp_path / "middle.ckpt")
    assert trainer.current_epoch == 3
    assert {layer.grid_size for layer in spline_layers(model).values()} == {10}


def test_training_goes_on_without_a_bump(tmp_path) -> None:
    def losses(milestones):
        torch.manual_seed(0)
        seen = []

        model = small(width=4)
        step = model.training_step

        def recorded(batch, batch_idx):
            loss = step(batch, batch_idx)
            seen.append(float(loss.detach()))
            return loss

        model.training_step = recorded
        callbacks = [GridExtension(milestones=milestones)] if milestones else []
        quiet(tmp_path, max_epochs=4, callbacks=callbacks).fit(model, CellsDataModule(images=32, side=32, batch_size=8))
        return seen

    extended, plain = losses([2]), losses(None)
    at = len(plain) // 2
    assert extended[:at] == plain[:at]
    assert abs(extended[at] - plain[at]) < 1e-4 * plain[at]
    # the steps after move with the run that was not extended, not up
    assert max(extended[at + 1 : at + 4]) < max(plain[at - 3 : at + 4]) * 1.05


@pytest.mark.parametrize("layer", [KANConv2d(2, 3, 3, max_grid_size=10), KANLinear(4, 2, max_grid_size=10)])
def test_moments_follow_the_derivation(layer) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), amsgrad=True)
    x = torch.randn(2, 2, 5, 5) if isinstance(layer, KANConv2d) else torch.randn(5, 4)
    layer(x).square().mean().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[layer.coefficients].items()}
    matrix = refinement_matrix(layer.grid, 2)
    carry_moments(optimizer, layer, layer.extend_grid(), 2)
    after = optimizer.state[layer.coefficients]
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2)):
        expected = torch.tensordot(matrix, before[key][:8].double(), 1) / 2**power
        assert torch.allclose(after[key].double(), expected, atol=1e-9, rtol=1e-6)
    assert after["step"] == before["step"]


def test_a_projection_keeps_magnitudes_positive_and_signed_moments_linear() -> None:
    layer = KANLinear(2, 3, grid_size=8)
    matrix = layer.refit_grid(5)
    assert (matrix < 0).any()
    state = {key: torch.eye(11)[:, :6].reshape(11, 3, 2) for key in DEGREES}
    mapped = map_moments(state, layer, matrix, 5 / 8)
    assert {key for key, value in mapped.items() if (value < 0).any()} == {"exp_avg", "momentum_buffer", "grad_avg"}
    assert torch.allclose(mapped["exp_inf"][:8].flatten(1), matrix[:, :6].abs().float() * 8 / 5)
    assert torch.allclose(mapped["exp_avg"][:8].flatten(1), matrix[:, :6].float() * 8 / 5)


def test_weight_decay_and_sgd_rates_follow_the_grid() -> None:
    layer = KANLinear(2, 2, bias=True)
    groups = [{"params": [layer.coefficients]}, {"params": [layer.bias]}]
    sgd = torch.optim.SGD(groups, lr=0.1, weight_decay=0.2)
    assert rescale_groups(sgd, [layer], 2) == []
    assert [(g["lr"], g["weight_decay"]) for g in sgd.param_groups] == [(0.2, 0.1), (0.1, 0.2)]
    adam = torch.optim.AdamW([{"params": [layer.coefficients]}], lr=0.1, weight_decay=0.2)
    rescale_groups(adam, [layer], 2)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.1, 0.1)
    mixed = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert "holds coefficients and other parameters" in rescale_groups(mixed, [layer], 2)[0]


class ComparesCopies(GridExtension):
    """Evaluates the splines of the averaged copy beside those of the model, before and after the event."""

    def extend(self, trainer, pl_module) -> None:
        points = torch.linspace(-4, 4, 33)
        (copy,) = averaged_models(trainer)
        self.seen = []
        for _ in range(2):
            pairs = [spline_layers(module) for module in (copy, pl_module)]
            assert list(pairs[0]) == list(pairs[1])
            self.seen.append([[layer.edge_values(points).detach() for layer in pair.values()] for pair in pairs])
            if len(self.seen) == 1:
                super().extend(trainer, pl_module)


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_copies_grow_too_and_keep_their_own_function(tmp_path, average) -> None:
    callback, average = ComparesCopies(milestones=[2]), AVERAGES[average]()
    model = small()
    quiet(tmp_path, max_epochs=3, callbacks=[callback, average]).fit(model, cells())
    (copies, models), (copies_after, _) = callback.seen
    for copy, after, own in zip(copies, copies_after, models, strict=True):
        assert (after - copy).abs().max() < 1e-6 * copy.abs().max()
        assert (own - copy).abs().max() > 1e-4 * copy.abs().max()  # an average, not the model itself
    assert {layer.grid_size for layer in spline_layers(average._average_model).values()} == {10}
    assert {layer.grid_size for layer in spline_layers(model).values()} == {10}


def test_a_plateau_extends_up_to_the_maximum(tmp_path) -> None:
    model = small(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # nothing moves at all, whatever the weights are
    callback = GridExtension(monitor="val/dice", mode="max", patience=1, min_delta=0.01, maximum=20)
    quiet(tmp_path, max_epochs=6, callbacks=[callback]).fit(model, cells())
    assert callback.done == [2, 3]
    assert {layer.grid_size for layer in spline_layers(model).values()} == {20}


class Foreign(LightningModule):
    """Somebody's own module with one of our layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(KANConv2d(1, 3, 3, padding=1, max_grid_size=10))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.inner(batch["image"]), batch["mask"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_it_acts_on_any_module(tmp_path) -> None:
    model = Foreign()
    quiet(tmp_path, max_epochs=2, callbacks=[GridExtension(milestones=[1])]).fit(model, cells())
    assert model.inner[0].grid_size == 10


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either milestones"),
        ({"milestones": [1], "monitor": "val/loss"}, "give either milestones"),
        ({"milestones": [1, 1]}, "different epochs"),
        ({"milestones": [1], "factor": 1}, "factor: expected a whole number, at least 2"),
        ({"monitor": "val/loss", "patience": 0}, "patience"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        GridExtension(**arguments)


def test_a_module_without_spline_layers_is_told(tmp_path) -> None:
    with pytest.raises(ConfigError, match="has no framework.nn spline layer"):
        quiet(tmp_path, max_epochs=1, callbacks=[GridExtension(milestones=[0])]).fit(small(baseline=2), cells())


def test_layers_without_room_are_listed_with_the_line_to_add(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[GridExtension(milestones=[0, 1])])
    with pytest.raises(ConfigError, match=r"down_0_a.conv \(room for 5, needs 20\).*add `max_grid_size: 20`"):
        trainer.fit(small(max_grid_size=None), cells())


def test_a_maximum_that_cannot_be_reached_lists_the_sizes(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[GridExtension(monitor="val/loss", maximum=30)])
    with pytest.raises(ConfigError, match="30 cannot be reached from 5 cells by factors of 2; .* 5, 10, 20, 40"):
        trainer.fit(small(max_grid_size=40), cells())


def test_unknown_optimizers_are_refused() -> None:
    layer = KANLinear(2, 2)
    with pytest.raises(ConfigError, match="the moments of LBFGS cannot be carried over.*Adam"):
        check_optimizers([torch.optim.LBFGS(layer.parameters())], [layer])
    check_optimizers([torch.optim.LBFGS(KANLinear(2, 2).parameters())], [layer])  # of another network


def test_an_unknown_figure_lists_the_known_ones(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[GridExtension(monitor="val/nothing")])
    with pytest.raises(ConfigError, match="'val/nothing' is not logged; there are .*val/dice"):
        trainer.fit(small(), cells())
