"""KOriginsSegmentation: initialisation from data, controls, bad input, predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from skimage import io

from datamodules import SegmentationDataModule, SquaresDataModule
from framework.errors import ConfigError
from framework.nn import KOrigins
from models import KOriginsSegmentation


class StandInTrainer:
    """What `setup` and saving ask of a trainer."""

    world_size = 1
    lr_scheduler_configs = ()
    strategy = None

    def __init__(self, datamodule) -> None:
        self.datamodule = datamodule


def set_up(data: SquaresDataModule, **kwargs) -> KOriginsSegmentation:
    data.setup("fit")
    model = KOriginsSegmentation(num_classes=data.preset.num_classes, in_channels=data.preset.channels, **kwargs)
    model._trainer = StandInTrainer(data)
    model.initialise_once()
    return model


def squares(**kwargs) -> SquaresDataModule:
    return SquaresDataModule(
        "mixed",
        **{"images": 20, "side": 64, "mean": [20000, 26000], "std": [500, 800], "shapes_per_class": [6], **kwargs},
    )


def first_origins(model: KOriginsSegmentation) -> torch.Tensor:
    return next(m for m in model.modules() if isinstance(m, KOrigins)).weight.detach()


def test_origins_start_at_two_standard_deviations_around_every_class() -> None:
    model = set_up(squares(), width=2)
    assert first_origins(model).flatten().tolist() == [19000, 21000, 24400, 27600]


def test_rgb_origins_keep_class_order_and_channels() -> None:
    model = set_up(SquaresDataModule("int_layer_rgb", images=10, side=64), width=2)
    mean, _ = SquaresDataModule("int_layer_rgb").class_statistics()
    assert first_origins(model).shape == (12, 3)
    np.testing.assert_array_equal(first_origins(model)[::2], mean)  # noise-free: low and high bound coincide
    np.testing.assert_array_equal(first_origins(model)[1::2], mean)


@pytest.mark.parametrize("origins", ["multi_otsu", "gaussian_mixture"])
def test_origins_without_class_statistics_come_near_those_with(origins) -> None:
    model = set_up(squares(), width=2, origins=origins)
    expected = torch.tensor([19000.0, 21000.0, 24400.0, 27600.0])
    assert (first_origins(model).flatten() - expected).abs().max() < 150


def test_origins_from_files_lie_among_the_normalised_values(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        mask = rng.random((16, 16)) > 0.5
        image = rng.normal(np.where(mask, 26000, 20000), 500).astype(np.uint16)
        io.imsave(tmp_path / "images" / f"{i}.png", image, check_contrast=False)
        io.imsave(tmp_path / "masks" / f"{i}.png", mask.astype(np.uint8) * 255, check_contrast=False)
    data = SegmentationDataModule(str(tmp_path))
    data.setup("fit")
    model = KOriginsSegmentation(width=2)
    model._trainer = StandInTrainer(data)
    model.initialise_once()
    values = data.datasets["train"][0]["image"]
    assert values.min() - 1 < first_origins(model).min() < first_origins(model).max() < values.max() + 1


def test_given_statistics_win_over_the_data_modules() -> None:
    model = set_up(squares(), width=2, class_mean=[1000, 2000], class_std=[10, 20])
    assert first_origins(model).flatten().tolist() == [980, 1020, 1960, 2040]


def test_fine_tuning_a_loaded_model_begins_at_its_learned_origins(tmp_path) -> None:
    data = squares()
    model = set_up(data, width=2, standardize_input=True)
    with torch.no_grad():
        model.network.origin_parameters()[0].add_(137)
        model.input_mean.add_(5)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "learned.ckpt")
    loaded = KOriginsSegmentation.load_from_checkpoint(tmp_path / "learned.ckpt")
    loaded._trainer = StandInTrainer(data)
    loaded.initialise_once()
    assert first_origins(loaded).flatten().tolist() == [19137, 21137, 24537, 27737]
    assert torch.equal(loaded.input_mean, model.input_mean)


def test_standardised_input_has_zero_mean_and_unit_deviation() -> None:
    data = squares()
    model = set_up(data, width=2, origins="none", standardize_input=True)
    pixels = torch.cat([data.datasets["train"][i]["image"].flatten() for i in range(14)])
    normal = (pixels - model.input_mean.flatten()) / model.input_std.flatten()
    assert abs(float(normal.double().mean())) < 1e-3
    assert abs(float(normal.double().std()) - 1) < 1e-3


def test_biases_from_data_put_every_filters_threshold_at_a_class_bound() -> None:
    model = set_up(squares(), width=8, origins="none", data_bias=True)
    conv = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    bounds = [19000.0, 21000.0, 24400.0, 27600.0]
    for i in range(8):
        flat = torch.full((1, 1, 5, 5), bounds[i % 4])
        assert abs(float(conv(flat)[0, i, 2, 2])) < 1e-2 * float(conv.weight[i].abs().sum())


def test_frozen_origins_do_not_move_and_trainable_ones_do(run, tiny) -> None:
    moved = {}
    for trainable in ("true", "false"):
        cli = run("fit", *tiny, "--trainer.max_epochs=1", f"--model.trainable_origins={trainable}")
        start = torch.tensor([19400.0, 20600.0, 24400.0, 25600.0, 25400.0, 26600.0])
        moved[trainable] = not torch.equal(first_origins(cli.model).flatten(), start)
    assert moved == {"true": True, "false": False}


def test_predictions_are_files_named_by_sample(run, tiny) -> None:
    words = [*tiny, "--data.test_images=3", "--trainer.callbacks+=PredictionWriter"]
    cli = run("predict", *words)
    files = sorted(Path(cli.trainer.log_dir, "predictions").glob("*.png"))
    assert [f.name for f in files] == [f"{i:06d}_mask.png" for i in (14, 15, 16)]
    mask = io.imread(files[0])
    assert mask.shape == (24, 24)
    assert mask.max() < 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"class_mean": [1.0, 2.0]}, "class_mean and model.class_std: give both or neither"),
        ({"class_mean": [1.0], "class_std": [1.0]}, "class_mean: expected 2 classes, got 1"),
        ({"first_origins": 3}, "first_origins: only with origins: random"),
        ({"origin_lr": -1.0}, "origin_lr"),
        ({"origins": "none", "widen": [2]}, "widen: expected two factors"),
        ({"rfl": 9}, "model.rfl: expected one of 8, 14, 18, .*, got 9"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(kwargs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        KOriginsSegmentation(**kwargs)


def test_a_data_module_without_statistics_is_an_error_with_a_way_out() -> None:
    model = KOriginsSegmentation(width=2)
    model._trainer = StandInTrainer(None)
    with pytest.raises(ConfigError, match="needs model.class_mean and model.class_std, or a data module"):
        model.initialise_once()


def test_classes_that_differ_from_the_datas_are_an_error() -> None:
    data = squares()
    data.setup("fit")
    model = KOriginsSegmentation(num_classes=4, width=2)
    model._trainer = StandInTrainer(data)
    with pytest.raises(ConfigError, match="expected the data's 2 classes and 1 channels, got 4 and 1"):
        model.initialise_once()


def test_a_mask_with_an_unknown_class_is_named() -> None:
    model = KOriginsSegmentation(width=2)
    batch = {"image": torch.zeros(1, 1, 8, 8), "mask": torch.full((1, 8, 8), 5)}
    with pytest.raises(ConfigError, match=r"expected classes 0\.\.1, but a mask holds 5 to 5"):
        model.step(batch, "train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.mean=[20000,25000]"], "std"),
        (["--data.mean=[20000,25000,70000]"], "65535"),
        (["--data.std=[1,-2,3]"], "std"),
        (["--data.radius_range=[5,5]"], "radius_range"),
    ],
)
def test_impossible_data_stops_before_training_with_the_arguments_name(run, tiny, words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run("fit", *tiny, *words, "--trainer.max_epochs=1")
