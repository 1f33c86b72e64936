import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import SegmentationMaps
from datamodules import KodakDataModule
from framework.errors import CheckpointError, ConfigError, DataError, DivergenceError
from models import LevelsOfExperts
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from tests.models.loe_tools import EXPERTS, fit, make_model, write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", ["one", "two", "three"])


def own_weights(model: LevelsOfExperts, row: int) -> list[torch.Tensor]:
    return [p[row].detach() for p in model.network.parameters()]


@pytest.mark.parametrize(
    ("experts", "width", "count"),
    [
        ([1] * 4, 256, 198_915),
        ([4] * 4, 256, 790_275),
        ([1] * 4, 512, 791_043),
        ([1] * 4, 32, 3363),
        ([4] * 4, 32, 12_771),
    ],
)
def test_parameter_counts_as_by_hand(experts: list[int], width: int, count: int) -> None:
    network = LevelsOfExpertsNetwork(experts, ["one"], width=width)
    assert sum(p.numel() for p in network.parameters()) == count


def test_fifty_steps_side_by_side_equal_two_separate_fits(pictures: Path) -> None:
    together = make_model()
    fit(together, pictures, "t*.png", steps=25)
    for row, name in enumerate(together.names):
        alone = make_model()
        fit(alone, pictures, f"{name}.png", steps=25)
        for a, b in zip(own_weights(together, row), own_weights(alone, 0), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        ours = [values[row] for _, values in together.history]
        assert ours == pytest.approx([values[0] for _, values in alone.history], abs=1e-6)


def test_rows_at_once_changes_nothing_but_memory(pictures: Path) -> None:
    whole, parts = make_model(), make_model(rows_at_once=100)
    fit(whole, pictures, steps=10)
    fit(parts, pictures, steps=10)
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_loss_and_psnr_are_those_of_the_written_out_formula(pictures: Path) -> None:
    model = make_model()
    trainer = fit(model, pictures)
    data = trainer.datamodule  # type: ignore[attr-defined]
    batch = next(iter(data.val_dataloader()))
    made = model.predict_step(batch, 0)
    expected = []
    for pixels, said in zip(data.datasets["val"].pixels, made["reconstruction"], strict=True):
        error = np.mean((pixels.astype(float) - said.permute(1, 2, 0).numpy().astype(float)) ** 2)
        expected.append(10 * math.log10(255**2 / error))
    assert model.history[-1][1] == pytest.approx(expected, abs=1e-6)
    assert trainer.callback_metrics["val/psnr"].item() == pytest.approx(np.mean(expected), abs=1e-4)
    assert trainer.callback_metrics["val/psnr_lowest"].item() == pytest.approx(min(expected), abs=1e-4)
    assert trainer.callback_metrics["val/psnr_highest"].item() == pytest.approx(max(expected), abs=1e-4)


def test_every_network_starts_from_its_name_and_the_seed_alone() -> None:
    many = LevelsOfExpertsNetwork([4, 4], ["a", "b"], width=8, seed=3)
    torch.manual_seed(99)
    one = LevelsOfExpertsNetwork([4, 4], ["b"], width=8, seed=3)
    for p, q in zip(many.parameters(), one.parameters(), strict=True):
        assert torch.equal(p[1], q[0])
        assert not torch.equal(p[0], p[1])
    other = LevelsOfExpertsNetwork([4, 4], ["b"], width=8, seed=4)
    assert not torch.equal(other.last.weight, one.last.weight)


def test_one_diverging_image_is_frozen_and_the_others_go_on(pictures: Path) -> None:
    class Poisoned(LevelsOfExperts):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            if self.global_step == 12:
                with torch.no_grad():
                    self.network.last.weight[1] = torch.nan
            super().optimizer_step(*args, **kwargs)

    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    model = Poisoned(experts=EXPERTS, width=8, optimizer=optimizer)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="three diverged at step"):
        fit(model, pictures, epochs=3)
    healthy = make_model()
    fit(healthy, pictures, epochs=3)
    for row in (0, 2):
        for a, b in zip(own_weights(model, row), own_weights(healthy, row), strict=True):
            assert torch.equal(a, b)
    assert model.progress["diverged_step"].tolist()[1] == 12
    assert model.progress["diverged_step"].tolist()[0] == -1
    for p, best in zip(model.network.parameters(), model.best.parameters(), strict=True):
        assert torch.equal(p[1], best[1])
        assert p.isfinite().all()


def test_a_much_too_large_learning_rate_stops_and_keeps_the_best(pictures: Path) -> None:
    model = make_model(lr=1e3)
    with pytest.warns(UserWarning, match="diverged"), pytest.raises(DivergenceError, match="all 3 images diverged"):
        fit(model, pictures)
    assert all(p.isfinite().all() for p in model.network.parameters())


def test_best_weights_are_those_of_the_best_evaluation(pictures: Path) -> None:
    model = make_model(lr=3e-2, weights="best")
    trainer = fit(model, pictures, steps=3, epochs=12)
    curves = np.array([values for _, values in model.history])
    assert model.progress["best_psnr"].tolist() == pytest.approx(curves.max(0))
    assert (curves.argmax(0) != len(curves) - 1).any(), "choose a learning rate at which the last is not always best"
    figures = trainer.validate(model, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    assert figures[0]["val/psnr"] == pytest.approx(curves.max(0).mean(), abs=1e-4)


def test_plateau_slows_each_image_by_its_own_loss(pictures: Path) -> None:
    options = {"lr": 2e-2, "plateau_patience": 0, "plateau_factor": 0.25}
    together = make_model(**options)
    fit(together, pictures, steps=3, epochs=10)
    factors = together.progress["learning_rate_factor"].tolist()
    assert len(set(factors)) > 1, "the images are to differ"
    for row, name in enumerate(together.names):
        alone = make_model(**options)
        fit(alone, pictures, f"{name}.png", steps=3, epochs=10)
        assert alone.progress["learning_rate_factor"].tolist() == [factors[row]]
        for a, b in zip(own_weights(together, row), own_weights(alone, 0), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradient_norms_are_clipped_image_by_image(pictures: Path) -> None:
    together = make_model()
    fit(together, pictures, steps=5, gradient_clip_val=0.05)
    alone = make_model()
    fit(alone, pictures, "two.png", steps=5, gradient_clip_val=0.05)
    free = make_model()
    fit(free, pictures, "two.png", steps=5)
    row = together.names.index("two")
    for a, b in zip(own_weights(together, row), own_weights(alone, 0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.equal(alone.network.last.weight, free.network.last.weight)


def test_resumed_fit_equals_the_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    whole = make_model()
    fit(whole, pictures, epochs=4)
    first = make_model()
    fit(first, pictures, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    second = make_model()
    fit(second, pictures, epochs=4, ckpt_path=str(tmp_path / "half.ckpt"))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.history == whole.history


def test_checkpoint_loads_without_callback_and_data(pictures: Path, tmp_path: Path) -> None:
    model = make_model()
    trainer = fit(model, pictures)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LevelsOfExperts.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.names == ["one", "three", "two"]
    assert torch.equal(loaded.segmentation_maps, model.segmentation_maps)
    batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    for a, b in zip(loaded.predict_step(batch, 0)["error"], model.predict_step(batch, 0)["error"], strict=True):
        assert torch.equal(a, b)


def test_the_checkpoints_map_wins_over_a_recomputed_one(pictures: Path, tmp_path: Path) -> None:
    model = make_model()
    trainer = fit(model, pictures)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = trainer.callback_metrics["val/psnr"].item()
    again = make_model()
    tester = Trainer(accelerator="cpu", logger=False, callbacks=[SegmentationMaps("equal_bins")], barebones=False)
    figures = tester.test(
        again,
        datamodule=KodakDataModule(root=str(pictures), images="*.png"),
        ckpt_path=str(tmp_path / "a.ckpt"),
        verbose=False,
        weights_only=True,
    )
    assert figures[0]["test/psnr"] == pytest.approx(before, abs=1e-5)
    assert torch.equal(again.segmentation_maps, model.segmentation_maps)


def test_a_checkpoint_of_other_images_is_refused(pictures: Path, tmp_path: Path) -> None:
    fit(make_model(), pictures, "one.png").save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(CheckpointError, match="holds the networks of one, but the data are two"):
        fit(make_model(), pictures, "two.png", ckpt_path=str(tmp_path / "one.ckpt"))
    with pytest.raises(CheckpointError, match=r"fitted to images of \[16, 24\] pixels, but the data have \[8, 12\]"):
        fit(
            make_model(exact_tiles=False),
            pictures,
            "one.png",
            data={"scale": 0.5},
            ckpt_path=str(tmp_path / "one.ckpt"),
        )


def test_tiles_that_do_not_divide_an_image_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "odd", ["one"], size=(17, 25))
    with pytest.raises(
        ConfigError, match=r"4 makes 8 tiles .* do not divide 17 x 25 pixels; crop with data.crop: \[16, 24\]"
    ):
        fit(make_model(), folder)
    fit(make_model(exact_tiles=False), folder, steps=1, epochs=1)
    fit(make_model(), folder, steps=1, epochs=1, data={"crop": [16, 24]})


def test_inclusive_coordinates_are_refused_where_tiles_are_to_be_exact(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="inclusive coordinates make tiles of unequal size"):
        fit(make_model(), pictures, data={"grid": "inclusive"})
    fit(make_model(exact_tiles=False), pictures, steps=1, epochs=1, data={"grid": "inclusive"})
    fit(make_model(experts=[None] * 4), pictures, steps=1, epochs=1, data={"grid": "inclusive"})


def test_a_missing_map_is_named(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="there is none; add SegmentationMaps to trainer.callbacks"):
        fit(make_model(), pictures, callbacks=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": []}, "model.experts: expected for every layer"),
        ({"experts": [4, -1]}, "model.experts: expected for every layer"),
        ({"offsets": [0.0]}, "model.offsets: expected 4"),
        ({"classes": 1}, "model.classes: expected 2 to 256, got 1"),
        ({"plateau_patience": 1, "plateau_factor": 1.5}, "a factor between 0 and 1"),
        ({"rows_at_once": 0}, "model.rows_at_once: expected at least 1"),
        ({"scale": 0.0}, "model.scale: expected a factor above 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**arguments)


def test_a_scheduler_that_decides_for_all_images_is_refused(pictures: Path) -> None:
    from lightning.pytorch.cli import ReduceLROnPlateau

    scheduler = functools.partial(ReduceLROnPlateau, monitor="val/psnr")
    with pytest.raises(ConfigError, match="model.lr_scheduler: ReduceLROnPlateau decides for all images"):
        fit(make_model(lr_scheduler=scheduler), pictures)


def test_a_map_of_more_classes_than_experts_is_refused() -> None:
    with pytest.raises(DataError, match=r"classes 0\.\.3.* up to 5; set model.classes"):
        make_model().set_segmentation_maps(torch.full((1, 4, 4), 5, dtype=torch.uint8))


@pytest.mark.parametrize("grid", ["pixel_center", "inclusive"])
def test_prediction_at_scale_one_is_the_fitted_picture_and_larger_scales_refine_it(pictures: Path, grid: str) -> None:
    model = make_model(exact_tiles=False)
    trainer = fit(model, pictures, epochs=3, data={"grid": grid})
    batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    same, larger = model.predict_step(batch, 0), model.predict_step(batch, 0, scale=3.0)
    assert "error" in same
    assert "error" not in larger
    for small, large, (height, width) in zip(
        same["reconstruction"], larger["reconstruction"], model.sizes, strict=True
    ):
        assert small.shape == (3, height, width)
        assert large.shape == (3, 3 * height, 3 * width)
    if grid == "pixel_center":  # the centre of every 3 x 3 block has the coordinates of the small picture's pixel
        for small, large in zip(same["reconstruction"], larger["reconstruction"], strict=True):
            difference = (large[:, 1::3, 1::3].int() - small.int()).abs()
            assert int(difference.max()) <= 1  # another rounding of the same coordinate


def test_bfloat16_reconstructs_what_float32_does(pictures: Path) -> None:
    model = make_model()
    trainer = fit(model, pictures, epochs=3)
    batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    exact = model.step(batch, "val")
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.step(batch, "val")
    assert rough["loss"].dtype == torch.float32
    assert rough["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)
    short = make_model()
    fit(short, pictures, epochs=3, precision="bf16-mixed")
    assert [v for _, v in short.history][-1] == pytest.approx(model.history[-1][1], abs=0.5)


@pytest.mark.slow
def test_all_of_kodak_in_one_fit(shared_data: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    model = make_model(experts=[16, 8, 4, "map"])
    options = {"images": "kodim*.png", "data": {"scale": 0.125}, "logger": CSVLogger(tmp_path, name="", version="")}
    fit(model, shared_data / "kodak", steps=5, epochs=2, default_root_dir=tmp_path, **options)
    table = pd.read_csv(tmp_path / "images.csv")
    assert table["image"].tolist() == [f"kodim{i:02d}" for i in range(1, 25)]
    assert table["psnr"].between(5, 40).all()
    alone = make_model(experts=[16, 8, 4, "map"])
    fit(alone, shared_data / "kodak", "kodim19.png", steps=5, data={"scale": 0.125}, default_root_dir=tmp_path)
    assert alone.history[-1][1][0] == pytest.approx(model.history[-1][1][18], abs=1e-6)
