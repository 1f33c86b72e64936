"""Every format of the zoo and every kind of mask is trained a step, predicted, written and read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from datamodules.io import stem
from datamodules.planes import read_image
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized
from models import KMUNet, KOriginsSegmentation
from tests.datamodules.test_formats import SIZE, ZOO
from tests.datamodules.test_masks import CLASSES, KINDS
from tests.datamodules.test_predictions import QUIET


def train_and_predict(root: Path, classes: int, width: int, turn: int, **arguments: Any) -> torch.nn.Module:
    """One step on the first picture of `width` channels, the classes of both as files in `out`; methods take turns."""
    common: dict[str, Any] = {"batch_size": 1, "val_fraction": 0.5, "test_fraction": 0.0, "predict_images": "images"}
    data = SegmentationDataModule(str(root), **{**common, "normalize": "percentile", **arguments})
    model: Any
    if turn % 2:
        model = KMUNet(width=2, stages=1, in_channels=width, num_classes=classes)
    else:
        units: Any = {"origins": "random", "deep_mean": 0.5, "deep_std": 0.3, "origin_lr": 0.01}
        model = KOriginsSegmentation(width=2, rfl=8, in_channels=width, num_classes=classes, **units)
    before = model.network.head.weight.detach().clone()
    trainer = Trainer(
        **QUIET, limit_val_batches=0, callbacks=[PredictionWriter(str(root / "out"))], default_root_dir=root
    )
    trainer.fit(model, data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert not torch.equal(model.network.head.weight, before)
    trainer.predict(model, data, return_predictions=False)
    return model


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.slow
def test_a_format_is_trained_predicted_written_and_read_back(tmp_path: Path, name: str) -> None:
    write, arguments, _ = ZOO[name]
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(2):
        write(tmp_path / "images" / f"{i}_{name}")
        tifffile.imwrite(tmp_path / "masks" / f"{i}_{stem(name)}.tif", rng.integers(0, 2, SIZE, dtype=np.uint8) * 255)
    axes, slices, chosen = arguments.get("axes"), arguments.get("slices"), arguments.get("channels", 1)
    image = read_image(tmp_path / "images" / f"0_{name}", chosen, None, axes, slices)
    turn = list(ZOO).index(name)
    model = train_and_predict(tmp_path, 2, len(image), turn, channels=chosen, axes=axes, slices=slices)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(normalized(image, Reading(normalize="percentile"), 0))[None]).argmax(1)
    for i in range(2):
        written = tifffile.imread(tmp_path / "out" / f"{i}_{stem(name)}_mask.tif")
        assert written.dtype == np.uint8
        assert np.array_equal(written, expected[0].numpy() * 255)


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.slow
def test_a_kind_of_mask_is_trained_predicted_written_and_read_back(tmp_path: Path, kind: int) -> None:
    name, write, reading = KINDS[kind]
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(2):
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", CLASSES * 60)
        write(tmp_path / "masks" / f"{i}{Path(name).suffix}")
    train_and_predict(tmp_path, 4, 1, kind, **reading)
    values = [0, 1, 2, 3] if "colors" in reading else reading["labels"]
    for i in range(2):
        written = tifffile.imread(tmp_path / "out" / f"{i}_mask.tif")
        assert written.shape == CLASSES.shape
        assert set(np.unique(written)) <= set(values)
