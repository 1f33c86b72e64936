"""Lines whose loss no other test would notice: each of these fails without its line."""

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import callbacks.filter_replacement as replacement
from callbacks import FilterReplacement, GridExtension
from framework.commands.precedence import layer_arguments
from framework.distributed import EpochSampler, ranks
from framework.nn import KANConv2d, KANConvTranspose2d, KANLinear, coordinate_grid, spline_layers, tile_index
from tests.callbacks.test_filter_replacement import Plain, data
from tests.helpers.small import Line, PointsData, quiet

# ---------------------------------------------------------------------- loaders


class Notes(Callback):
    """The samples of every epoch in their order."""

    def __init__(self) -> None:
        self.seen: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.setdefault(trainer.current_epoch, []).extend(batch["index"].tolist())


def test_a_resumed_loader_with_workers_begins_with_the_epochs_own_order(tmp_path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    quiet(tmp_path, max_epochs=2, callbacks=[keep]).fit(Line(), PointsData(batch_size=2, num_workers=1))
    notes = Notes()
    trainer = quiet(tmp_path, max_epochs=4, callbacks=[notes], enable_checkpointing=False)
    points = PointsData(batch_size=2, num_workers=1)
    trainer.fit(Line(), points, ckpt_path=tmp_path / "last.ckpt")
    sampler = EpochSampler(range(10), 1, 0, seed=points.seed)
    for epoch in (2, 3):
        sampler.set_epoch(epoch)
        assert notes.seen[epoch] == [int(i) for i in sampler]


# ---------------------------------------------------------------------- grids and tiles


def test_an_extension_leaves_no_gradient_of_the_old_grid() -> None:
    module = torch.nn.Sequential(KANConv2d(1, 2, 3, max_grid_size=10), torch.nn.Flatten(), torch.nn.Linear(2, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(2):
        module(torch.randn(4, 1, 3, 3)).sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in module.parameters())
    trainer = SimpleNamespace(optimizers=[optimizer], callbacks=[], loggers=[], lr_scheduler_configs=[],
                              current_epoch=1, global_step=2)  # fmt: skip
    GridExtension(milestones=[1]).extend(trainer, module)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "multiplier", "offset"), [(600, 24, 0.0), (500, 5, 0.25), (1000, 100, 0.5)])
def test_tiles_are_those_of_exact_numbers_where_a_pixel_lies_on_an_edge(size, multiplier, offset) -> None:
    line = coordinate_grid(size, 1)[:, 0, 0]
    index = tile_index(coordinate_grid(size, 1)[:, 0], multiplier, offset) // 2
    exact = [math.floor(Fraction(float(c)) * multiplier + Fraction(offset)) % 2 for c in line]
    assert index.tolist() == exact


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (KANLinear(200, 500), 200),
        (KANConv2d(16, 400, 5, groups=2), 8 * 25),
        (KANConvTranspose2d(16, 250, 5, groups=1), None),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_a_new_spline_layer_has_the_variance_of_its_fan_in(layer, fan_in) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    # phi(x) = V x, so what the edges give at 1 are the weights of a plain layer
    edges = layer.edge_coefficients()[: layer.basis]
    strength = layer.edge_strength() / math.sqrt(3)  # of x spread evenly over (-3, 3), whose deviation is sqrt(3)
    fan_in = fan_in or edges[0, 0].numel()
    assert strength.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.02)
    assert {len(spline_layers(torch.nn.Sequential(layer)))} == {1}


# ---------------------------------------------------------------------- ranks


def test_replaced_filters_are_rank_zeros_also_where_the_ranks_compute_otherwise(tmp_path, monkeypatch) -> None:
    def off(values: torch.Tensor) -> torch.Tensor:
        return values + 0.125 * ranks()[1]

    approximate, recalibrated = replacement.approximate, replacement.recalibrated
    monkeypatch.setattr(replacement, "approximate", lambda *args: off(approximate(*args)))
    monkeypatch.setattr(
        replacement, "recalibrated", lambda *args: [(target, off(value)) for target, value in recalibrated(*args)]
    )

    class Compares(Callback):
        def on_test_start(self, trainer, pl_module) -> None:
            pass

    callback = FilterReplacement(banks=["B"], recalibrate="affine")
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", default_root_dir=tmp_path, callbacks=[callback],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(Plain(), data(calibration_images=8), verbose=False)  # raises where the ranks hold different banks
    assert trainer.state.finished


# ---------------------------------------------------------------------- configurations


@dataclasses.dataclass
class Stored:
    """A checkpoint of a K-network."""

    optimizer: dict

    def save(self, path: Path) -> None:
        hparams = {"width": 2, "optimizer": self.optimizer}
        torch.save({"state_dict": {}, "class_path": "models.KOriginsSegmentation", "hyper_parameters": hparams}, path)


def test_nested_arguments_of_several_files_are_put_together_before_they_are_compared(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Stored({"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "eps": 1e-8}}).save(Path("x.ckpt"))

    def model(**arguments) -> dict:
        return {"model": {"class_path": "KOriginsSegmentation", "init_args": {"optimizer": arguments}}}

    low = model(class_path="torch.optim.Adam", init_args={"lr": 0.1, "eps": 1e-3})
    Path("low.yaml").write_text(yaml.safe_dump(low))
    Path("high.yaml").write_text(yaml.safe_dump(model(init_args={"lr": 0.5})))
    layers = layer_arguments(["test", "-c", "low.yaml", "-c", "high.yaml", "--ckpt_path=x.ckpt"], ["test"], tmp_path)
    said = {note for note in layers.notes if "optimizer" in note}
    assert said == {
        "model.optimizer.init_args.lr: 0.1 from the checkpoint (the config file had 0.5)",
        "model.optimizer.init_args.eps: 1e-08 from the checkpoint (the config file had 0.001)",
    }
