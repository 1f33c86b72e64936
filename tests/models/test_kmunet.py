"""KM-UNet: baselines, losses, precision, checkpoints of other grids, and what stops it with a clear word."""

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import GridExtension, SplinePruning
from datamodules import CellsDataModule
from framework.errors import CheckpointError, ConfigError, DataError, DivergenceError
from framework.figures import edge_strength_maps, outside_fractions, spline_curves
from framework.nn import KANConv2d, KANConvTranspose2d, KOrigins, spline_layers
from models import KMUNet
from models.kmunet.method import segmentation_loss


def trained_like(model: KMUNet) -> KMUNet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in spline_layers(model).values():
            live = layer.coefficients[: layer.basis]
            live += 0.2 * live.std() * torch.randn(live.shape, generator=generator)
        model(torch.randn(4, 1, 32, 32, generator=generator))
    return model.eval()


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@pytest.mark.parametrize("size", [(16, 16), (19, 21), (4, 4)])
def test_logits_have_the_images_size(up, size) -> None:
    model = KMUNet(num_classes=3, width=2, stages=2, up=up).eval()
    assert model(torch.randn(2, 1, *size)).shape == (2, 3, *size)


def test_the_slides_network_has_splines_everywhere_and_no_activation() -> None:
    model = KMUNet(width=2, stages=2, up="transposed")
    kinds = [type(m) for m in model.network.modules()]
    assert kinds.count(KANConv2d) == 10
    assert kinds.count(KANConvTranspose2d) == 2
    assert not any("ReLU" in kind.__name__ for kind in kinds)


def test_one_key_gives_the_plain_network_of_equal_parameters() -> None:
    spline = KMUNet(width=8, stages=3, max_grid_size=40)
    plain = KMUNet(width=8, stages=3, max_grid_size=40, baseline="equal_parameters")
    assert not spline_layers(plain)
    assert plain.network.live_parameters() == pytest.approx(spline.network.live_parameters(), rel=0.05)
    assert KMUNet(width=8, baseline=3).network.shape[0] == [3, 3, 3]


def test_stages_choose_their_kind_and_grid() -> None:
    model = KMUNet(width=2, stages=2, spline_stages=[1, 2], grid_size=[3, 4, 8], max_grid_size=16)
    grids = {name: layer.grid_size for name, layer in spline_layers(model.network).items()}
    assert grids == {
        "units.down_1_a.conv": 4, "units.down_1_b.conv": 4, "units.down_2_a.conv": 8, "units.down_2_b.conv": 8,
        "units.up_1.conv": 4, "units.decode_1_a.conv": 4, "units.decode_1_b.conv": 4,
    }  # fmt: skip


def test_korigins_stand_in_front_of_raw_intensities() -> None:
    model = KMUNet(width=2, stages=1, korigins=[1000.0, 20000.0])
    assert isinstance(model.korigins, KOrigins)
    assert model.network.units["down_0_a"].conv.in_channels == 3
    assert model(torch.full((2, 1, 8, 8), 3000.0)).isfinite().all()


# ---------------------------------------------------------------------- losses and metrics


def test_losses_equal_the_written_out_formulas() -> None:
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    p = logits.softmax(1)
    weights = torch.tensor([0.5, 1.0, 1.5])
    ce, weighted, dice = 0.0, 0.0, 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                nll = -p[b, target[b, y, x], y, x].log()
                ce, weighted = ce + nll / 40, weighted + weights[target[b, y, x]] * nll / 40
        for c in range(3):
            t = (target[b] == c).float()
            dice += (2 * (p[b, c] * t).sum() + 1) / (p[b, c].sum() + t.sum() + 1) / 6
    ones = torch.ones(3)
    assert segmentation_loss(logits, target, "cross_entropy", ones) == pytest.approx(float(ce), abs=1e-6)
    assert segmentation_loss(logits, target, "weighted_cross_entropy", weights) == pytest.approx(
        float(weighted), abs=1e-6
    )
    assert segmentation_loss(logits, target, "dice", ones) == pytest.approx(1 - float(dice), abs=1e-6)
    both = segmentation_loss(logits, target, "cross_entropy+dice", ones)
    assert both == pytest.approx(1 + float(ce - dice), abs=1e-6)


def test_a_perfect_prediction_has_no_loss() -> None:
    target = torch.randint(3, (2, 8, 8))
    logits = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert segmentation_loss(logits, target, "cross_entropy+dice", torch.ones(3)) < 1e-6


@pytest.mark.parametrize("kind", ["cross_entropy", "weighted_cross_entropy", "dice"])
def test_pixels_without_a_label_are_in_no_loss(kind) -> None:
    logits, target, weights = torch.randn(1, 3, 1, 20), torch.randint(3, (1, 1, 20)), torch.tensor([0.5, 1.0, 1.5])
    kept = torch.arange(20) % 3 > 0
    marked = torch.where(kept, target, 255)
    expected = segmentation_loss(logits[..., kept], target[..., kept], kind, weights)
    assert segmentation_loss(logits, marked, kind, weights, 255) == pytest.approx(float(expected), abs=1e-6)
    nothing = segmentation_loss(logits, torch.full_like(target, 255), "cross_entropy+dice", weights, 255)
    assert nothing.isfinite()


# ---------------------------------------------------------------------- precision and compilation


def test_bfloat16_logits_are_within_three_percent() -> None:
    torch.manual_seed(0)
    model = trained_like(KMUNet(width=8, stages=3, grid_size=10))
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    assert (rough.float() - exact).abs().max() <= 0.03 * exact.abs().max()


@pytest.mark.slow
def test_the_compiled_network_agrees_with_the_eager_one() -> None:
    torch.manual_seed(0)
    eager = trained_like(KMUNet(width=2, stages=1, max_grid_size=10))
    compiled = KMUNet(width=2, stages=1, max_grid_size=10, compile=True).eval()
    compiled.load_state_dict(eager.state_dict())
    x = torch.randn(1, 1, 16, 16)
    for size in (5, 10):
        expected, got = eager(x), compiled(x)
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
        gradients = []
        for model, y in ((eager, expected), (compiled, got)):
            model.zero_grad()
            y.square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert (gradients[1] - gradients[0]).abs().max() < 1e-4 * gradients[0].abs().max()
        for layer in (*spline_layers(eager).values(), *spline_layers(compiled).values()):
            assert layer.grid_size == size
            if size == 5:
                layer.extend_grid()


# ---------------------------------------------------------------------- checkpoints


def quiet(tmp_path, **kwargs) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**defaults, "default_root_dir": tmp_path, "num_sanity_val_steps": 0, **kwargs})


def test_a_checkpoint_of_less_room_resumes_with_its_moments(tmp_path) -> None:
    data = CellsDataModule(images=8, side=16, batch_size=4)
    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(KMUNet(num_classes=3, width=2, stages=1), data)
    path = tmp_path / "coarse.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    old = stored["optimizer_states"][0]["state"][0]["exp_avg"]
    model = KMUNet(num_classes=3, width=2, stages=1, grid_size=10, max_grid_size=20)
    model.on_load_checkpoint(stored)
    new = stored["optimizer_states"][0]["state"][0]["exp_avg"]
    assert (len(old), len(new)) == (8, 23)
    assert new[13:].abs().sum() == 0
    # knot insertion preserves the sum of a gradient in the interior: M's columns sum to 2, and moments are halved
    assert new.sum() == pytest.approx(float(old.sum()), rel=0.3)
    resumed = quiet(tmp_path, max_epochs=2)
    resumed.fit(model, data, ckpt_path=path)
    assert resumed.current_epoch == 2
    assert {layer.grid_size for layer in spline_layers(model).values()} == {10}


def test_a_checkpoint_of_a_finer_grid_warns_and_resumes(tmp_path) -> None:
    data = CellsDataModule(images=8, side=16, batch_size=4)
    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(KMUNet(num_classes=3, width=2, stages=1, grid_size=20), data)
    path = tmp_path / "fine.ckpt"
    trainer.save_checkpoint(path)
    with pytest.warns(UserWarning, match="20 grid cells do not fit into 5"):
        quiet(tmp_path, max_epochs=2).fit(KMUNet(num_classes=3, width=2, stages=1), data, ckpt_path=path)


def test_a_network_of_a_low_rank_trains_and_becomes_a_whole_one(tmp_path) -> None:
    torch.manual_seed(0)
    model, whole = (KMUNet(num_classes=3, width=2, stages=1, rank=rank) for rank in (2, None))
    assert model.network.live_parameters() < 0.5 * whole.network.live_parameters()
    assert len(model.parameter_groups()) == 1  # no coefficients whose decay would follow a grid
    trainer = quiet(tmp_path, max_epochs=1)
    data = CellsDataModule(images=16, side=16, batch_size=4)
    before = [layer.shapes.clone() for layer in spline_layers(model).values()]
    trainer.fit(model, data)
    assert all(not torch.equal(a, b.shapes) for a, b in zip(before, spline_layers(model).values(), strict=True))
    trainer.save_checkpoint(tmp_path / "low.ckpt")
    x = torch.randn(1, 1, 16, 16)
    again = KMUNet.load_from_checkpoint(tmp_path / "low.ckpt").eval()
    torch.testing.assert_close(again(x), model.eval()(x))
    whole.load_state_dict(model.state_dict())
    torch.testing.assert_close(whole.eval()(x), model(x), rtol=1e-3, atol=1e-4)
    for callback in (GridExtension(milestones=[0]), SplinePruning(epochs=[1], fraction=0.5)):
        with pytest.raises(ConfigError, match="rank: the edges of an input channel share 2 shapes"):
            quiet(tmp_path, max_epochs=2, callbacks=[callback]).fit(again, data)


def test_a_checkpoint_of_another_method_names_both(run, tmp_path) -> None:
    trainer = quiet(tmp_path, max_steps=1)
    trainer.fit(KMUNet(num_classes=3, width=2, stages=1), CellsDataModule(images=4, side=16, batch_size=4))
    trainer.save_checkpoint(tmp_path / "kmunet.ckpt")
    with pytest.raises(CheckpointError, match=r"holds a models\.kmunet\.method\.KMUNet.*KOriginsSegmentation"):
        run("test", "-c", "korigins/quickstart", "--ckpt_path", "kmunet.ckpt")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "model.num_classes"),
        ({"loss": "tversky"}, "model.loss: expected some of cross_entropy"),
        ({"loss": "weighted_cross_entropy"}, "model.class_weights: expected 2 weights"),
        ({"class_weights": [1.0, 2.0]}, "model.class_weights"),
        ({"spline_stages": [4]}, "model.spline_stages: expected stages from 0 to 3"),
        ({"grid_size": [5, 5]}, r"model.grid_size: expected one number or 4"),
        ({"grid_size": 0}, "grid_size: expected a whole number"),
        ({"max_grid_size": 2}, "max_grid_size: expected at least"),
        ({"stages": 0}, "model.stages: expected at least 1"),
        ({"width": 0}, "model.width: expected at least 1"),
        ({"baseline": "unet"}, "model.baseline: expected null, equal_parameters or a width"),
        ({"shape": [[1, 3, 3]]}, "model.shape: expected 17 entries"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        KMUNet(**arguments)


def test_images_smaller_than_the_stride_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 poolings need images of at least 8 x 8, got 4 x 9"):
        KMUNet(width=2)(torch.zeros(1, 1, 4, 9))


def batch(**changes) -> dict[str, torch.Tensor]:
    sample = {"image": torch.randn(2, 1, 16, 16), "mask": torch.zeros(2, 16, 16, dtype=torch.int64)}
    return {**sample, **changes}


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected classes 0\.\.1, but a mask holds 3 to 3"):
        KMUNet(width=2, stages=1).step(batch(mask=torch.full((2, 16, 16), 3)), "test")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop_with_the_place_named(value) -> None:
    model = KMUNet(width=2, stages=1)
    with pytest.raises(DivergenceError, match="the image itself holds NaN or infinite values"):
        model.step(batch(image=torch.full((2, 1, 16, 16), value)), "val")
    with torch.no_grad():
        model.network.units["down_1_b"].conv.coefficients[0, 1] = value
    with pytest.raises(DivergenceError, match=r"layer network\.units\.down_1_b\.conv gives the first NaN"):
        model.step(batch(), "train")


def test_inputs_far_outside_the_grid_stay_finite_and_are_counted() -> None:
    model = trained_like(KMUNet(width=2, stages=1))
    figures = model.figures(batch(image=1e4 * torch.randn(2, 1, 16, 16)))
    assert set(figures) == {"segmentation", "splines", "edge_strength", "outside"}
    assert model(1e6 * torch.ones(1, 1, 16, 16)).isfinite().all()


@pytest.mark.parametrize("draw", [spline_curves, edge_strength_maps, outside_fractions])
def test_figures_of_nothing_are_refused(draw) -> None:
    with pytest.raises(DataError, match="no (spline )?layers to draw"):
        draw({})
