"""From a network's classes to files that a person can use: names, label values, objects, pixel size, measurements."""

import math
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule, predictions
from datamodules.masks import instance_classes
from datamodules.overlay import overlay, step_of
from datamodules.predictions import label_image, objects_in, write_label_image
from datamodules.reading import Reading
from framework import blocks
from framework.errors import ConfigError, DataError
from framework.instances import objects_of
from models import KMUNet, KOriginsSegmentation

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1,
}  # fmt: skip


def discs(side: int = 64) -> np.ndarray:
    """Three objects that stand apart and two that touch."""
    y, x = np.mgrid[:side, :side]
    objects = np.zeros((side, side), np.int64)
    for n, (cy, cx) in enumerate(((12, 12), (12, 30), (40, 12), (40, 40), (52, 48)), 1):
        objects[((y - cy) ** 2 + (x - cx) ** 2 < 60) & (objects == 0)] = n
    return objects


def test_watershed_gives_the_objects_back() -> None:
    objects = discs()
    found = objects_of(instance_classes(objects, 1))
    assert found.max() == 5
    for n in range(1, 6):
        own = found == np.bincount(found[objects == n]).argmax()
        assert (own & (objects == n)).sum() / (own | (objects == n)).sum() > 0.9
    assert np.array_equal(found > 0, instance_classes(objects, 1) > 0)


def test_objects_of_a_large_picture_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = instance_classes(np.tile(discs(), (3, 2)), 1)
    whole = objects_in(classes, Reading(masks_are="instances"))
    assert whole.max() == 6 * 5
    monkeypatch.setattr(predictions, "LARGE", 100)
    monkeypatch.setattr(blocks, "BLOCK", 48)
    assert np.array_equal(objects_in(classes, Reading(masks_are="instances")), whole)


def test_overlays_show_every_object_and_class() -> None:
    image, objects = np.full((1, 64, 64), 7.0), discs()
    drawn = overlay(image, objects)
    assert drawn.shape == (64, 64, 3)
    assert drawn.dtype == np.uint8
    ground = drawn[objects == 0]
    assert (ground == ground[0]).all()
    assert (ground[0] == ground[0, 0]).all()  # grey
    colours = [drawn[objects == n] for n in range(1, 6)]
    assert len({tuple(map(tuple, np.unique(c, axis=0))) for c in colours}) == 5
    assert all(len(np.unique(c, axis=0)) == 2 for c in colours)  # filled, and a line along the edge
    wide = overlay(np.random.default_rng(0).random((3, 5, 9)), np.zeros((5, 9), int))
    assert wide.reshape(-1, 3).std(0).min() > 0  # in colour
    assert [step_of(size) for size in ((10, 2048), (2049, 3), (12000, 12000))] == [1, 2, 6]


def test_label_values_come_back_in_the_smallest_type_and_the_images_size() -> None:
    classes = np.array([[0, 1], [2, 1]])
    values = label_image(classes, Reading(labels=[7, 70000, 3]))
    assert values.tolist() == [[7, 70000], [3, 70000]]
    assert values.dtype == np.uint32
    assert label_image(classes, Reading(labels=[255, 0, 1])).dtype == np.uint8
    large = label_image(classes, Reading(labels=[0, 5, 9], downscale=3), (7, 6))
    assert large.shape == (7, 6)
    assert np.array_equal(large[:3, :3], np.zeros((3, 3)))
    assert large[6].tolist() == [9, 9, 9, 5, 5, 5]


def test_a_prediction_is_never_replaced(tmp_path: Path) -> None:
    write_label_image(tmp_path / "x.tif", np.zeros((4, 4), np.uint8), (0.5, 0.25))
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert int(file.pages[0].tags[259].value) == 8  # deflate
        assert file.series[0].axes == "YX"
    with pytest.raises(DataError, match=r"x\.tif is there already, and no file is replaced"):
        write_label_image(tmp_path / "x.tif", np.zeros((4, 4), np.uint8), None)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tif"]


class Threshold(KMUNet):
    """Predicts what is bright, so that what comes out is known."""

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return {"index": batch["index"], "mask": (batch["image"][:, 0] > 100).to(torch.uint8)}


def test_predictions_have_the_images_name_size_and_pixel_size(tmp_path: Path) -> None:
    objects = discs(61)
    image = np.where(objects > 0, 200 + objects, 10).astype(np.uint16)
    for name in ("scan.001", "scan.002"):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    data = SegmentationDataModule(str(tmp_path), normalize="none", batch_size=1, labels=[3, 9])
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.predict(Threshold(width=2, stages=1), data, return_predictions=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "objects.csv", "scan.001_mask.tif", "scan.002_mask.tif",
    ]  # fmt: skip
    written = tifffile.imread(tmp_path / "out" / "scan.002_mask.tif")
    assert np.array_equal(written, np.where(objects > 0, 9, 3))
    table = pd.read_csv(tmp_path / "out" / "objects.csv")
    first = table[table["image"] == "scan.001"]
    alone = first[first["y"] < 30].sort_values("x")  # the two upper discs touch nothing
    assert alone["mean_0"].tolist() == [201, 202]
    assert alone["area"].tolist() == [(objects == n).sum() for n in (1, 2)]
    assert alone["area_um2"].tolist() == pytest.approx([0.25 * (objects == n).sum() for n in (1, 2)])
    assert set(first["value"]) == {9}
    again = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    with pytest.raises(DataError, match="no file is replaced"):
        again.predict(Threshold(width=2, stages=1), data, return_predictions=False)


# ---------------------------------------------------------------------- preprocessing belongs to the checkpoint


@pytest.fixture
def nuclei(tmp_path: Path) -> Path:
    """Ten instance-labelled pictures with sides that no pooling divides."""
    objects = discs(51)
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for i in range(10):
        image = rng.normal(np.where(objects > 0, 3000, 1000), 200) * (1 + i)
        tifffile.imwrite(tmp_path / "set" / "images" / f"s{i}.tif", image.astype(np.uint16))
        tifffile.imwrite(tmp_path / "set" / "masks" / f"s{i}.tif", objects.astype(np.uint32))
    return tmp_path / "set"


@pytest.mark.parametrize("method", ["kmunet", "korigins"])
def test_instances_train_and_come_back_as_label_images(nuclei: Path, tmp_path: Path, method: str) -> None:
    raw = method == "korigins"
    data = SegmentationDataModule(
        str(nuclei), masks_are="instances", normalize="none" if raw else "zscore", batch_size=2, slices=None
    )
    made: Any = {
        "kmunet": lambda: KMUNet(num_classes=3, width=2, stages=2),
        "korigins": lambda: KOriginsSegmentation(rfl=18, num_classes=3, width=2),
    }
    model = made[method]()
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.fit(model, data)
    (figures,) = trainer.test(model, data, verbose=False)
    assert 0 <= figures["test/iou"] <= 1
    trainer.predict(model, data, return_predictions=False)
    masks = sorted((tmp_path / "out").glob("*_mask.tif"))
    assert [p.name for p in masks] == ["s8_mask.tif", "s9_mask.tif"]
    assert tifffile.imread(masks[0]).shape == (51, 51)


def test_evaluation_reads_files_as_the_network_was_trained_to(
    nuclei: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"batch_size": 2, "masks_are": "instances"}
    data = SegmentationDataModule(str(nuclei), normalize="dataset", channels=None, **common)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    model = KMUNet(num_classes=3, width=2, stages=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    (right,) = trainer.test(model, data, verbose=False)
    capsys.readouterr()
    path = str(tmp_path / "x.ckpt")
    for given in ("path", "loaded"):
        other = SegmentationDataModule(str(nuclei), normalize="none", **common)
        fresh = Trainer(**QUIET, default_root_dir=tmp_path)
        if given == "path":
            (figures,) = fresh.test(KMUNet(num_classes=3, width=2, stages=1), other, ckpt_path=path, verbose=False)
        else:
            loaded = KMUNet.load_from_checkpoint(path, weights_only=True)
            (figures,) = fresh.test(loaded, other, verbose=False)
        assert figures == pytest.approx(right), given
        said = capsys.readouterr().out
        assert "data.normalize: 'dataset' from the checkpoint in place of 'none'" in said
        assert other.reading == data.reading
    torch.load(path, weights_only=True)


def test_origins_in_raw_intensities_do_not_meet_normalised_pictures(nuclei: Path, tmp_path: Path) -> None:
    data = SegmentationDataModule(str(nuclei), masks_are="instances", batch_size=2)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"model\.deep_mean, model\.origin_lr: .*data\.normalize: zscore"):
        trainer.fit(KOriginsSegmentation(rfl=8, num_classes=3, width=2), data)
    fitting = KOriginsSegmentation(rfl=8, num_classes=3, width=2, deep_mean=0.0, deep_std=1.0, origin_lr=0.01)
    trainer.fit(fitting, data)
    assert float(fitting.network.origin_parameters()[0].abs().max()) < 20


@pytest.mark.parametrize("model", [KMUNet(width=2, stages=1), KOriginsSegmentation(width=2, origins="random")])
def test_pictures_that_a_network_cannot_take_are_named(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.in_channels: expected pictures \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"expected torch\.float32, got torch\.float64; convert it"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.float64))


# ---------------------------------------------------------------------- any size


@pytest.mark.parametrize("size", [(37, 50), (16, 24), (9, 15)])
def test_pictures_of_any_size_are_reflected_and_cut_back(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for model, stride in (
        (KOriginsSegmentation(rfl=38, width=2, origins="random"), 8),
        (KMUNet(width=2, stages=2), 4),
    ):
        model.eval()
        image = torch.rand(2, 1, *size) * 20000
        padded = np.pad(image.numpy(), [(0, 0), (0, 0), *((0, -side % stride) for side in size)], mode="reflect")
        with torch.no_grad():
            expected = model(torch.from_numpy(padded))[..., : size[0], : size[1]]
            assert torch.equal(model(image), expected)
            with pytest.raises(ConfigError, match=rf"poolings need images of at least {stride} x {stride}, got 3 x 9"):
                model(image[..., :3, :9])


def test_an_eight_bit_picture_of_one_kind_is_written_with_its_own_name(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 7), 200, np.uint8)).save(tmp_path / "a b ä.png")
    data = SegmentationDataModule(str(tmp_path), normalize="none", batch_size=1)
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.predict(Threshold(width=2, stages=1), data, return_predictions=False)
    assert tifffile.imread(tmp_path / "out" / "a b ä_mask.tif").tolist() == [[255] * 7] * 9


class Says(LightningModule):
    """Predicts what it is given."""

    def __init__(self, prediction: Any) -> None:
        super().__init__()
        self.prediction = prediction

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.prediction


def said(prediction: Any, folder: Path) -> None:
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(folder))])
    trainer.predict(Says(prediction), DataLoader(torch.zeros(1)))


@pytest.mark.parametrize(
    ("shape", "dtype", "ending"),
    [
        ((4, 6), torch.uint8, "png"), ((4, 6), torch.uint16, "png"), ((3, 4, 6), torch.uint8, "png"),
        ((3, 4, 6), torch.uint16, "png"), ((4, 3, 6), torch.uint8, "npy"), ((3, 2, 4, 6), torch.uint8, "npy"),
        ((6,), torch.uint8, "npy"), ((4, 6), torch.int64, "npy"), ((3, 4, 6), torch.float32, "npy"),
    ],
)  # fmt: skip
def test_what_is_a_picture_becomes_one_and_all_else_an_array(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, ending: str
) -> None:
    values = (torch.arange(2 * math.prod(shape)).reshape(2, *shape) % 251).to(dtype)
    for _ in range(2):  # the second time it meets its own files
        said({"index": torch.tensor([3, 5]), "x": values}, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"00000{i}_x.{ending}" for i in (3, 5)]
    for i, value in zip((3, 5), values.numpy(), strict=True):
        path = tmp_path / "out" / f"00000{i}_x.{ending}"
        read = (
            np.load(path) if ending == "npy" else imagecodecs.imread(path)
        )  # scikit-image reads deep colour as 8 bits
        assert read.dtype == value.dtype
        assert np.array_equal(read, value.transpose(1, 2, 0) if ending == "png" and value.ndim == 3 else value)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (torch.zeros(2), "expected a mapping with the key 'index' from predict_step of Says, got Tensor"),
        ({"x": torch.zeros(2)}, "with the key 'index' from predict_step of Says, got the keys x"),
        ({"index": [0, 1], "x": torch.zeros(2)}, r"an integer tensor \(B,\) as 'index' .* got list"),
        ({"index": torch.tensor(0), "x": torch.zeros(1)}, r"an integer tensor .* got torch.int64 \(\)"),
        ({"index": torch.zeros(2, 1).long(), "x": torch.zeros(2)}, r"an integer tensor .* got torch.int64 \(2, 1\)"),
        ({"index": torch.zeros(2), "x": torch.zeros(2)}, r"an integer tensor .* got torch.float32 \(2,\)"),
        ({"index": torch.arange(2), "x": torch.zeros(3, 4)}, "a value for each of 2 samples as 'x' .* got 3"),
        ({"index": torch.arange(2), "x": [torch.zeros(4)]}, "a value for each of 2 samples as 'x' .* got 1"),
        ({"index": torch.arange(2), "x": torch.zeros(())}, "a tensor, or a list of tensors, .* as 'x' .* got Tensor"),
        ({"index": torch.arange(2), "x": "no"}, "a tensor, or a list of tensors, .* as 'x' .* got str"),
        ({"index": torch.arange(2), "x": ["a", "b"]}, "a tensor, or a list of tensors, .* as 'x' .* got list"),
    ],
)
def test_predictions_that_cannot_be_told_apart_are_refused(tmp_path: Path, prediction: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"PredictionWriter: .*{message}"):
        said(prediction, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_samples_of_several_sizes_and_of_16_bits_are_written(tmp_path: Path) -> None:
    sizes = [torch.zeros(3, 4, 6, dtype=torch.uint8), torch.ones(2, 5, dtype=torch.uint8)]
    said({"index": torch.arange(2), "x": sizes, "y": torch.full((2, 3), 1.5, dtype=torch.bfloat16)}, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"00000{i}_{k}" for i in "01" for k in ("x.png", "y.npy")]
    assert np.array_equal(np.load(tmp_path / "000001_y.npy"), np.full(3, 1.5, np.float32))
    assert imagecodecs.imread(tmp_path / "000001_x.png").shape == (2, 5)


def test_a_second_loader_is_refused_before_it_takes_the_names_of_the_first(tmp_path: Path) -> None:
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path))])
    with pytest.raises(ConfigError, match="expected one loader to predict, .* got a second"):
        trainer.predict(Says({"index": torch.arange(1), "x": torch.zeros(1, 3)}), [DataLoader(torch.zeros(1))] * 2)


class Stops(KMUNet):
    """Is stopped in its first step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise KeyboardInterrupt


def test_a_stopped_fit_says_nothing_of_predictions(nuclei: Path, tmp_path: Path, capsys: Any) -> None:
    data = SegmentationDataModule(str(nuclei), batch_size=1, masks_are="instances")
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(Stops(width=2, stages=1, num_classes=3), data)
    assert "what is done is kept" not in "".join(capsys.readouterr())
