"""Exposure: a factor on raw intensities, the same on any number of workers, and no part of a checkpoint."""

import math

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Callback, Trainer
from skimage import measure

from datamodules import SegmentationDataModule
from datamodules.exposure import Exposure
from framework.distributed import EpochIndex
from framework.errors import ConfigError
from models import KMUNet

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def folder(tmp_path):
    """Ten pairs of 16 bits, 32 x 32, the mask a square that is brighter than its ground."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(10):
        image = rng.integers(200, 2000, (32, 32), dtype=np.uint16)
        image[8:20, 6:20] += 20000
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 6:20] = 255
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", image)
        tifffile.imwrite(tmp_path / "masks" / f"{i}.tif", mask)
    return tmp_path


def raw(folder, **kwargs):
    return SegmentationDataModule(str(folder), normalize="none", flip=False, **kwargs)


def pixels(folder, index):
    return tifffile.imread(folder / "images" / f"{index}.tif").astype(np.float32)


def written_out(seed, epoch, index, low, high):
    """exp of a uniform draw between the logarithms, from a generator of the four numbers."""
    share = np.random.default_rng([seed, epoch, index, 14]).random()
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def test_a_training_picture_is_exposed_by_its_seed_epoch_and_index(folder) -> None:
    data = raw(folder, exposure=[0.5, 8.0], seed=3).configure_dataset("train")
    seen = set()
    for epoch in (0, 2):
        for index in range(6):
            factor = written_out(3, epoch, index, 0.5, 8.0)
            expected = np.minimum(pixels(folder, index) * np.float32(factor), 65535)
            assert np.allclose(data[EpochIndex(index, epoch)]["image"][0].numpy(), expected, rtol=1e-6)
            seen.add(factor)
    assert len(seen) == 12
    assert min(seen) >= 0.5
    assert max(seen) <= 8


def test_factors_are_log_uniform() -> None:
    logs = np.log([written_out(0, e, i, 0.1, 10) for e in range(20) for i in range(50)])
    ours = np.log([Exposure(0.1, 10).factor(0, e, i) for e in range(20) for i in range(50)])
    assert np.allclose(ours, logs)
    counts, _ = np.histogram(ours, 4, (math.log(0.1), math.log(10)))
    assert counts.min() > 200  # of 1000 in four bins


def test_evaluation_has_one_factor_and_predictions_none(folder) -> None:
    data = raw(folder, exposure=[0.5, 2.0], eval_exposure=0.25, predict_images="images")
    for split, index in (("val", 6), ("test", 8), ("predict", 0)):
        sample = data.configure_dataset(split)[0]
        factor = 1.0 if split == "predict" else 0.25
        assert int(sample["index"]) == index
        assert np.array_equal(sample["image"][0].numpy(), pixels(folder, index) * np.float32(factor))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_camera_has_a_largest_number(tmp_path, dtype) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    image = np.arange(64, dtype=dtype).reshape(8, 8)
    tifffile.imwrite(tmp_path / "images" / "a.tif", image)
    tifffile.imwrite(tmp_path / "masks" / "a.tif", (image > 9).astype(np.uint8) * 255)
    (tmp_path / "split.csv").write_text("id,split\na,test\n")
    data = raw(tmp_path, split_file="split.csv", eval_exposure=2000.0).configure_dataset("test")
    top = {np.uint8: 255, np.uint16: 65535, np.float32: math.inf}[dtype]
    assert np.array_equal(data[0]["image"][0].numpy(), np.minimum(image.astype(np.float32) * 2000, top))


def test_the_camera_comes_before_augmentation_and_normalisation(folder) -> None:
    words = {"crop": 16, "rotate": 30, "intensity": 0.2, "seed": 1}
    plain = SegmentationDataModule(str(folder), normalize="zscore", **words).configure_dataset("train")
    exposed = SegmentationDataModule(str(folder), normalize="zscore", exposure=[0.2, 1.5], **words)
    for index in range(6):
        a, b = plain[EpochIndex(index, 4)], exposed.configure_dataset("train")[EpochIndex(index, 4)]
        # the same crop, turn and contrast; a factor is gone after the normalisation, for nothing is cut off
        assert torch.equal(a["mask"], b["mask"])
        assert torch.allclose(a["image"], b["image"], atol=1e-4)


def test_windows_and_caches_give_the_same_samples(folder) -> None:
    words = {"crop": 16, "exposure": [0.1, 10.0]}
    sets = [raw(folder, cache=cache, **words).configure_dataset("train") for cache in (True, False)]
    for epoch in (0, 1):
        for index in range(6):
            first, second = (s[EpochIndex(index, epoch)]["image"] for s in sets)
            assert torch.equal(first, second)


def test_a_device_that_augments_gets_exposed_pictures(folder) -> None:
    words = {"crop": 16, "exposure": [0.1, 10.0], "batch_size": 6}
    here, there = raw(folder, **words), raw(folder, on_device=True, **words)
    for data in (here, there):
        data.setup("fit")
    batches = [data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0) for data in (here, there)]
    assert torch.equal(batches[0]["index"], batches[1]["index"])
    assert torch.equal(batches[0]["image"], batches[1]["image"])


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_pictures(folder, workers) -> None:
    def epochs(count):
        data = raw(folder, crop=16, exposure=[0.1, 10.0], batch_size=2, num_workers=count)
        data.setup("fit")
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            yield from (batch["image"] for batch in loader)

    alone, shared = list(epochs(0)), list(epochs(workers))
    assert len(alone) == len(shared) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_exposure_is_no_part_of_the_input_contract(folder) -> None:
    plain, exposed = raw(folder), raw(folder, exposure=[0.5, 2.0], eval_exposure=3.0)
    assert plain.preprocessing() == exposed.preprocessing()
    trained = SegmentationDataModule(str(folder), batch_size=6, eval_exposure=1.0)
    model = KMUNet(width=2, stages=1)
    Trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=folder, **QUIET).fit(model, trained)
    other = SegmentationDataModule(str(folder), eval_exposure=0.25)
    other.use_preprocessing(trained.preprocessing())
    assert other.eval_exposure.low == 0.25


def test_origins_begin_where_the_exposed_pictures_are(folder) -> None:
    """Mean of every class over the exposed training pictures, written out."""
    data = raw(folder, exposure=[2.0, 3.0], seed=5)
    means, _ = data.class_statistics()
    values = [[], []]
    for index in range(6):
        image = np.minimum(pixels(folder, index) * np.float32(written_out(5, 0, index, 2.0, 3.0)), 65535)
        inside = tifffile.imread(folder / "masks" / f"{index}.tif") > 0
        values[0].append(image[~inside])
        values[1].append(image[inside])
    assert np.allclose(means[:, 0], [np.concatenate(v).mean(dtype=np.float64) for v in values], rtol=1e-5)


@pytest.mark.parametrize("bounds", [[1.0], [0.0, 2.0], [-1.0, 1.0], [2.0, 1.0], [1.0, math.inf], [math.nan, 1.0], []])
def test_bounds_that_cannot_be_are_refused(folder, bounds) -> None:
    with pytest.raises(ConfigError, match=r"data\.exposure: expected \[lowest, highest\] .*, got .*; give "):
        raw(folder, exposure=bounds)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_factors_that_cannot_be_are_refused(folder, factor) -> None:
    with pytest.raises(ConfigError, match=r"data\.eval_exposure: expected a factor above 0, got .*; give "):
        raw(folder, eval_exposure=factor)


# ------------------------------------------------------------------------------------------- merged masks


def test_connected_regions_of_a_merged_mask_are_objects(tmp_path) -> None:
    rng = np.random.default_rng(2)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    mask = (rng.random((40, 40)) < 0.35).astype(np.uint8) * 255
    tifffile.imwrite(tmp_path / "images" / "a.tif", rng.integers(0, 9999, (40, 40), dtype=np.uint16))
    tifffile.imwrite(tmp_path / "masks" / "a.tif", mask)
    (tmp_path / "split.csv").write_text("id,split\na,test\n")
    words = {"masks_are": "instances", "split_file": "split.csv"}
    sample = raw(tmp_path, connected=True, **words).configure_dataset("test")[0]
    expected = measure.label(mask > 0, connectivity=2)
    assert expected.max() > 5
    assert np.array_equal(sample["objects"].numpy(), expected)
    merged = raw(tmp_path, **words).configure_dataset("test")[0]
    assert int(merged["objects"].max()) == 1


def test_a_window_of_a_merged_mask_has_the_objects_of_the_whole(tmp_path) -> None:
    """Two arms of one object that meet outside of the window are no two objects, so that nothing between is border."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    mask = np.zeros((32, 32), np.uint8)
    mask[2:30, 10], mask[2:30, 12], mask[2, 10:13] = 255, 255, 255
    for i in range(2):
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", np.full((32, 32), 7, np.uint16))
        tifffile.imwrite(tmp_path / "masks" / f"{i}.tif", mask)
    words = {"masks_are": "instances", "connected": True, "crop": 12, "val_fraction": 0, "test_fraction": 0}
    for cache in (True, False):
        data = raw(tmp_path, cache=cache, **words).configure_dataset("train")
        assert all(int(data[EpochIndex(i, e)]["mask"].max()) < 2 for i in range(2) for e in range(20))


def test_connected_needs_instances(folder) -> None:
    with pytest.raises(ConfigError, match=r"data\.connected: expected data\.masks_are: instances .*, got classes"):
        raw(folder, connected=True)


class Seen(Callback):
    """Writes the picture of every sample that a rank trains on: epoch, index, sum of its intensities."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        with (self.folder / f"seen{trainer.global_rank}.txt").open("a") as file:
            for index, image in zip(batch["index"], batch["image"], strict=True):
                file.write(f"{trainer.current_epoch} {int(index)} {float(image.double().sum())}\n")


def test_two_processes_expose_as_one_does(folder, tmp_path) -> None:
    """Every picture of every epoch has the same factor, whichever rank it falls to."""
    lines = []
    for name, words in (("alone", {}), ("pair", {"strategy": "ddp_fork"})):
        (out := tmp_path / name).mkdir()
        data = raw(folder, exposure=[0.1, 10.0], batch_size=1, seed=2)
        trainer = Trainer(
            accelerator="cpu",
            devices=len(words) + 1,
            max_epochs=2,
            default_root_dir=out,
            callbacks=[Seen(out)],
            **words,
        )
        trainer.fit(KMUNet(width=2, stages=1), data)
        ranks = [path.read_text().splitlines() for path in sorted(out.glob("seen*.txt"))]
        assert len(ranks) == len(words) + 1
        lines.append(sorted(line for rank in ranks for line in rank))
    assert len(lines[0]) == 12
    assert lines[0] == lines[1]
