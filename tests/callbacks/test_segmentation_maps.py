from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import SegmentationMaps
from framework.errors import ConfigError, DataError
from framework.nn import equal_bins, kmeans_colours, luminance, map_bits, multi_otsu
from models import KOriginsSegmentation
from tests.models.loe_tools import fit, make_model, write_pictures


def stripes(rgb: np.ndarray, classes: int) -> np.ndarray:
    """A segmentation of a user's own: columns in turn."""
    return np.broadcast_to(np.arange(rgb.shape[1]) % classes, rgb.shape[:2])


def too_many(rgb: np.ndarray, classes: int) -> np.ndarray:
    return np.full(rgb.shape[:2], classes)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", ["one", "two"])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("multi_otsu", lambda rgb: multi_otsu(luminance(rgb))[0]),
        ("equal_bins", lambda rgb: equal_bins(luminance(rgb))[0]),
        ("kmeans", lambda rgb: kmeans_colours(rgb)),
        (f"{__name__}.stripes", None),
    ],
)
def test_every_method_reaches_the_model(pictures: Path, method: str, expected) -> None:
    model = make_model()
    trainer = fit(model, pictures, steps=1, epochs=1, callbacks=[SegmentationMaps(method)])
    assert model.segmentation_maps.dtype == torch.uint8
    for i, (rgb, (height, width)) in enumerate(
        zip(trainer.datamodule.datasets["train"].pixels, model.sizes, strict=True)  # type: ignore[attr-defined]
    ):
        labels = model.segmentation_maps[i].numpy()
        if expected is None:
            assert np.array_equal(labels, np.broadcast_to(np.arange(24) % 4, (16, 24)))
        else:
            assert np.array_equal(labels.T if height > width else labels, expected(rgb))


def test_figure_and_table_state_the_cost_in_bits(pictures: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    model = make_model()
    fit(model, pictures, steps=1, epochs=1, logger=CSVLogger(tmp_path / "run", name="", version=""))
    table = pd.read_csv(tmp_path / "run" / "segmentation_maps.csv")
    sizes = zip(model.segmentation_maps.numpy(), model.sizes, strict=True)
    upright = [m.T if h > w else m for m, (h, w) in sizes]
    for key in ("entropy", "png", "context"):
        assert table[key].tolist() == pytest.approx([map_bits(m, 4)[key] for m in upright], abs=1e-4)
    images = pd.read_csv(tmp_path / "run" / "images.csv")
    assert images["map_bits_per_pixel_context"].tolist() == table["context"].tolist()
    assert (tmp_path / "run" / "figures" / "segmentation_maps.png").stat().st_size > 10_000


def test_a_model_without_a_map_layer_is_left_alone(pictures: Path) -> None:
    model = make_model(experts=[4, 2, 1])
    fit(model, pictures, steps=1, epochs=1)
    assert model.segmentation_maps is None


def test_classes_as_input_ask_for_a_map(pictures: Path) -> None:
    model = make_model(experts=[None, None], class_input=True, classes=3)
    fit(model, pictures, steps=1, epochs=1)
    assert int(model.segmentation_maps.max()) == 2
    assert model.network.layers[0].linear.in_features == 5


def test_bad_use_is_named(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="SegmentationMaps.method: expected multi_otsu, equal_bins, kmeans"):
        SegmentationMaps("otsu")
    with pytest.raises(ConfigError, match="SegmentationMaps.method: cannot import"):
        SegmentationMaps("no.such.function")
    with pytest.raises(ConfigError, match="KOriginsSegmentation does not ask for class maps"):
        SegmentationMaps().setup(Trainer(barebones=True, accelerator="cpu"), KOriginsSegmentation(), "fit")
    with pytest.raises(DataError, match=r"expected \(16, 24\) integers in 0\.\.3 of .*, got \(16, 24\) in 4\.\.4"):
        fit(make_model(), pictures, "one.png", callbacks=[SegmentationMaps(f"{__name__}.too_many")])


def test_maps_are_computed_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = SegmentationMaps.segment

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(SegmentationMaps, "segment", counted)
    fit(make_model(), pictures, steps=2, epochs=3)
    assert len(calls) == 2
