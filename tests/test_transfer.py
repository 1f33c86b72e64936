"""Fine-tuning: what fits of a checkpoint is taken over and said; a plain U-Net becomes splines of its function."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from framework.errors import CheckpointError, ConfigError
from framework.nn import KOrigins, spline_layers
from framework.transfer import take_over
from models import KMUNet, KOriginsSegmentation, MasterKeyClassifier
from tests.helpers.methods import ATTO, NoiseData
from tests.helpers.small import quiet

STILL: Any = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}


def trained(model: LightningModule, folder: Path, channels: int = 1, side: int = 16) -> Path:
    """A checkpoint after an epoch."""
    trainer = quiet(folder, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, NoiseData(channels, side))
    trainer.save_checkpoint(folder / "first.ckpt")
    return folder / "first.ckpt"


def logits(model: LightningModule, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(image)


def test_another_number_of_classes_leaves_the_head_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = KMUNet(width=2, stages=1)
    path = trained(first, tmp_path)
    capsys.readouterr()
    tuned = KMUNet(width=2, stages=1, num_classes=3, optimizer=STILL)
    head = tuned.network.head.weight.clone()
    tuned.initial_weights = str(path)
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False, limit_train_batches=1).fit(tuned, NoiseData(1, 16))
    said = next(line for line in capsys.readouterr().out.splitlines() if "initial weights" in line)
    assert "new: network.head.weight ((3, 2, 1, 1) instead of (2, 2, 1, 1)), network.head.bias ((3,) instead" in said
    before, after = dict(first.named_parameters()), dict(tuned.named_parameters())
    for name in before:
        assert torch.equal(after[name], before[name]) != name.startswith("network.head"), name
    assert torch.equal(tuned.network.head.weight, head)


def test_another_number_of_channels_leaves_the_first_layer_new(tmp_path: Path) -> None:
    first, tuned = KMUNet(width=2, stages=1), KMUNet(width=2, stages=1, in_channels=3)
    done = take_over(tuned, trained(first, tmp_path))
    beginnings = {name.rsplit(".", 2 if "conv" in name or "norm" in name else 1)[0] for name in done.new}
    assert beginnings == {"network.units.down_0_a"}
    assert len(done.taken) + len(done.new) == len(tuned.state_dict())
    assert torch.equal(tuned.network.head.weight, first.network.head.weight)
    tuned.eval()(torch.zeros(1, 3, 16, 16))


def test_a_finer_grid_takes_the_function_over(tmp_path: Path) -> None:
    first, tuned = KMUNet(width=2, stages=1, grid_size=3), KMUNet(width=2, stages=1, grid_size=6, max_grid_size=12)
    take_over(tuned, trained(first, tmp_path))
    image = torch.randn(2, 1, 16, 16)
    assert torch.allclose(logits(tuned, image), logits(first, image), atol=1e-5)
    assert {layer.grid_size for layer in spline_layers(tuned).values()} == {6}


def test_origins_are_taken_over_where_they_fit_and_come_from_the_data_where_not(tmp_path: Path) -> None:
    def made(classes: int, **kwargs: Any) -> KOriginsSegmentation:
        given: Any = {"class_mean": [0.1 * c for c in range(1, classes + 1)], "class_std": [0.01] * classes}
        return KOriginsSegmentation(width=2, rfl=8, num_classes=classes, **given, **kwargs)

    path = trained(made(2, origin_lr=0.1), tmp_path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    for classes in (2, 3):
        tuned = made(classes, optimizer=STILL, origin_lr=0.0)
        tuned.initial_weights = str(path)
        quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(tuned, NoiseData(1, 16))
        layers = {name: m for name, m in tuned.named_modules() if isinstance(m, KOrigins)}
        first = next(iter(layers))
        for name, layer in layers.items():
            same = layer.weight.shape == stored[f"{name}.weight"].shape
            assert same == (classes == 2 or name != first)
            assert not same or torch.equal(layer.weight, stored[f"{name}.weight"])
        if classes == 3:  # mean - 2 std, mean + 2 std
            assert sorted(layers[first].weight.flatten().tolist()) == pytest.approx(
                [0.08, 0.12, 0.18, 0.22, 0.28, 0.32]
            )


# ---------------------------------------------------------------------- a plain U-Net


@pytest.mark.parametrize(
    "arguments",
    [{}, {"up": "transposed", "spline_order": 1}, {"grid_size": 8, "max_grid_size": 16, "spline_order": 2},
     {"base": "silu", "stages": 2, "korigins": [0.3, 0.7]}, {"spline_stages": [1]}],
    ids=str,
)  # fmt: skip
def test_a_plain_network_becomes_splines_of_the_same_function(tmp_path: Path, arguments: dict[str, Any]) -> None:
    common = {"stages": 1, **{k: v for k, v in arguments.items() if k in ("up", "stages", "korigins")}}
    plain = KMUNet(baseline=3, **common)
    path = trained(plain, tmp_path)
    splines = KMUNet(width=3, activation="relu", **{**common, **arguments})
    done = take_over(splines, path)
    assert not done.new
    assert not done.left
    assert len(spline_layers(splines)) >= 2
    image = torch.randn(2, 1, 20, 13)
    assert torch.allclose(logits(splines, image), logits(plain, image), atol=1e-5)
    assert torch.allclose(splines.train()(image), plain.train()(image), atol=1e-5)
    splines(image).square().mean().backward()
    gradients = [layer.coefficients.grad for layer in spline_layers(splines).values()]
    assert all(g is not None and bool(g.any()) for g in gradients)


def test_the_smaller_network_after_pruning_is_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    splines = KMUNet(width=3, stages=1, activation="relu").eval()
    image = torch.randn(2, 1, 16, 16)
    splines.train()(image)
    for name, layer in spline_layers(splines).items():
        keep = torch.ones_like(layer.mask, dtype=torch.bool)
        if name.endswith(("down_1_a.conv", "decode_0_a.conv")):
            keep[:, 1] = False  # a channel of down_0_b, twice
        layer.prune_edges(keep)
    smaller = splines.shrunk()
    assert smaller.network.shape[1][0] == 2
    assert torch.allclose(logits(smaller, image), logits(splines, image), atol=1e-5)


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_taken_over_is_named(tmp_path: Path) -> None:
    path = trained(KMUNet(baseline=3, stages=1), tmp_path)
    with pytest.raises(ConfigError, match=r"the checkpoint holds a plain U-Net.*give model\.activation: relu"):
        take_over(KMUNet(width=3, stages=1), path)
    with pytest.raises(ConfigError, match=r"model\.width: the first stage of initial_weights has 3 channels, got 4"):
        take_over(KMUNet(width=4, stages=1, activation="relu"), path)
    with pytest.raises(CheckpointError, match=r"initial_weights: .*holds a .*KMUNet, but the model is a .*KOrigins"):
        take_over(KOriginsSegmentation(origins="none"), path)
    with pytest.raises(CheckpointError, match="initial_weights: there is no file .*nowhere"):
        take_over(KMUNet(), tmp_path / "nowhere.ckpt")
    other = tmp_path / "other"
    other.mkdir()
    path = trained(KMUNet(width=2, stages=1), other)
    with pytest.raises(CheckpointError, match="initial_weights: nothing of .* fits this model"):
        take_over(KMUNet(width=5, stages=1), path)


class Wider(KMUNet):
    """A user's own."""


def test_a_users_own_class_takes_its_bases_weights(tmp_path: Path) -> None:
    first = KMUNet(width=2, stages=1)
    assert not take_over(Wider(width=2, stages=1), trained(first, tmp_path)).new


# ---------------------------------------------------------------------- on the command line


def test_fit_begins_at_the_weights_and_goes_on_from_its_own_checkpoint(run: Any, tmp_path: Path, capsys: Any) -> None:
    path = trained(KMUNet(width=2, stages=1), tmp_path)
    words = ["--model=KMUNet", "--model.width=2", "--model.stages=1", "--model.num_classes=3", "--data=CellsDataModule",
             "--data.images=8", "--data.side=16", "--name=tuned", "--trainer.accelerator=cpu",
             "--trainer.enable_progress_bar=false", f"--initial_weights={path}"]  # fmt: skip
    run("fit", *words, "--trainer.max_epochs=1")
    assert f"initial weights of {path}: " in capsys.readouterr().out
    path.rename(tmp_path / "gone.ckpt")
    run("fit", *words, "--trainer.max_epochs=2", "--ckpt_path=last")
    said = capsys.readouterr().out
    assert f"initial_weights: {path} is not looked at, the weights come from" in said
    run("test", "--name=tuned", "--ckpt_path=best", *[w for w in words if w.startswith(("--data", "--trainer"))])
    with pytest.raises(CheckpointError, match="initial_weights: there is no file"):
        run("fit", *words, "--trainer.max_epochs=1")


def test_a_module_that_is_no_method_is_named(run: Any) -> None:
    with pytest.raises(ConfigError, match="initial_weights: expected a model that is a BaseMethod, got BoringModel"):
        run("fit", "--model=lightning.pytorch.demos.boring_classes.BoringModel",
            "--data=lightning.pytorch.demos.boring_classes.BoringDataModule", "--initial_weights=x.ckpt")  # fmt: skip


def test_a_trainer_without_the_command_line_takes_them_too(tmp_path: Path) -> None:
    path = trained(KMUNet(width=2, stages=1), tmp_path)
    model = KMUNet(width=2, stages=1, optimizer=STILL)
    model.initial_weights = str(path)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(model, NoiseData(1, 16))
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())


def test_an_evaluation_before_the_fit_takes_nothing_away(tmp_path: Path) -> None:
    make = functools.partial(MasterKeyClassifier, **ATTO, optimizer=STILL)
    path = trained(make(), tmp_path, 3, 32)
    stored = torch.load(path, weights_only=True)["state_dict"]
    for verbs in (["fit"], ["validate", "fit"], ["test", "predict", "fit"]):
        model, data = make(), NoiseData(3, 32)
        model.initial_weights = str(path)
        for verb in verbs:
            getattr(quiet(tmp_path, max_epochs=1, enable_checkpointing=False), verb)(model, data)
        assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
    # what has been trained or loaded since then stays
    for value, restored in ((1.0, False), (2.0, True)):
        with torch.no_grad():
            [p.fill_(value) for p in model.parameters()]
        if restored:
            model, state = make(), model.state_dict()
            model.initial_weights = str(path)
            model.load_state_dict(state)
        quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(model, data)
        assert all((p == value).all() for p in model.parameters())
