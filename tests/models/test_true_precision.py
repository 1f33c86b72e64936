"""Every method runs with parameters of 16 and of 64 bits, Lightning's bf16-true, 16-true and 64-true."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import FigureWriter, SegmentationMaps
from datamodules import CellsDataModule, GeneratedImagesDataModule, KodakDataModule, SquaresDataModule
from framework.data import BaseDataModule
from framework.errors import ConfigError
from framework.method import BaseMethod
from models import FinolaAutoencoder, KMUNet, KOriginsSegmentation, LevelsOfExperts, MaskedFinola, MasterKeyClassifier
from tests.helpers.small import quiet

Case = tuple[Callable[[], BaseMethod], Callable[[], BaseDataModule]]


def images() -> BaseDataModule:
    return GeneratedImagesDataModule(classes=2, image_size=32, train_images=4, val_images=4, batch_size=2)


def squares() -> BaseDataModule:
    return SquaresDataModule(side=24, images=14, shapes_per_class=[1], radius_range=(3, 5), batch_size=2)


# Adam's eps of 1e-8 is 0 in float16
OPTIMIZER: dict[str, Any] = {"optimizer": functools.partial(torch.optim.SGD, lr=1e-3)}
NETWORK = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "patch_size": 4}
FINOLA: dict[str, Any] = {"channels": 8, "image_size": 32, "encoder_width": 8, "encoder_depth": 1}
CASES: dict[str, Case] = {
    "korigins": (lambda: KOriginsSegmentation(rfl=8, width=2, **OPTIMIZER), squares),
    "kmunet": (
        lambda: KMUNet(num_classes=3, width=2, stages=1, **OPTIMIZER),
        lambda: CellsDataModule(images=12, side=32, batch_size=2),
    ),
    "levels_of_experts": (
        lambda: LevelsOfExperts(experts=[8, 4, 2, "map"], width=8, **OPTIMIZER),
        lambda: KodakDataModule(images="scikit-image", scale=0.25, crop=(16, 16), steps_per_epoch=2),
    ),
    "master_key": (
        lambda: MasterKeyClassifier("convnextv2_atto", num_classes=2, model_args=NETWORK, **OPTIMIZER),
        images,
    ),
    "finola": (lambda: FinolaAutoencoder(**FINOLA, map_size=8, decoder_width=8, loss="mse", **OPTIMIZER), images),
    "masked_finola": (lambda: MaskedFinola(**FINOLA, **OPTIMIZER), images),
}


PAIRS = [(n, p) for n in CASES for p in ("bf16-true", "16-true", "64-true") if (n, p) != ("korigins", "16-true")]


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_fit_test_and_predict(tmp_path, name, precision) -> None:
    torch.manual_seed(0)
    model, data = (make() for make in CASES[name])
    extra = [SegmentationMaps()] if name == "levels_of_experts" else []
    words = {"callbacks": extra, "precision": precision, "max_epochs": 1, "num_sanity_val_steps": 0}
    trainer = quiet(tmp_path, **words, limit_train_batches=2, limit_val_batches=1, limit_predict_batches=1)
    trainer.fit(model, datamodule=data)
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}[precision]
    trained = [p for p in model.parameters() if p.is_floating_point()]
    assert all(p.dtype == dtype for p in trained)
    assert all(p.isfinite().all() for p in trained)
    assert trainer.predict(model, datamodule=data)


@pytest.mark.parametrize("name", CASES)
def test_figures_are_drawn_of_parameters_of_16_bits(tmp_path, name) -> None:
    model, data = (make() for make in CASES[name])
    callbacks = [FigureWriter(), *([SegmentationMaps()] if name == "levels_of_experts" else [])]
    logger = CSVLogger(tmp_path)
    words = {"callbacks": callbacks, "precision": "bf16-true", "max_epochs": 1, "logger": logger}
    trainer = quiet(tmp_path, **words, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1)
    trainer.fit(model, datamodule=data)
    drawn = {path.stem for path in (Path(logger.log_dir) / "figures").iterdir()}
    assert len(drawn - {"training_curves"}) > 0
    trainer.test(model, datamodule=data, verbose=False)


def test_float16_is_refused_for_raw_intensities(tmp_path) -> None:
    model, data = (make() for make in CASES["korigins"])
    with pytest.raises(ConfigError, match="float16 parameters cannot be trained on raw 16-bit"):
        quiet(tmp_path, precision="16-true", max_epochs=1, num_sanity_val_steps=0).fit(model, datamodule=data)
