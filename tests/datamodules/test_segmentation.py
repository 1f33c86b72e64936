"""Folders of images and masks: pairing, depths, augmentation that treats both alike, and every broken file."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from skimage import io

from datamodules import CellsDataModule, SegmentationDataModule
from datamodules.augmentation import Augmentation, changed, cut, draw
from datamodules.cells import draw_cells
from datamodules.planes import read_image
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized, shrink
from framework.distributed import EpochIndex
from framework.errors import ConfigError, DataError
from models import KMUNet
from tests.png import write_png16


@pytest.fixture
def folder(tmp_path):
    """Ten pairs, 8-bit PNG, 20 x 24 pixels, mask = bright pixels."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(10):
        image = rng.integers(0, 256, (20, 24), dtype=np.uint8)
        io.imsave(tmp_path / "images" / f"{i:02d}.png", image, check_contrast=False)
        io.imsave(tmp_path / "masks" / f"{i:02d}.png", (image > 128).astype(np.uint8) * 255, check_contrast=False)
    return tmp_path


def dataset(folder, split="train", **kwargs):
    return SegmentationDataModule(str(folder), **kwargs).configure_dataset(split)


def test_samples_are_the_files(folder) -> None:
    data = dataset(folder, "test", normalize="none")
    assert [int(data[i]["index"]) for i in range(len(data))] == [8, 9]
    expected = io.imread(folder / "images" / "08.png")
    assert np.array_equal(data[0]["image"][0].numpy(), expected.astype(np.float32))
    assert np.array_equal(data[0]["mask"].numpy(), expected > 128)
    assert data[0]["mask"].dtype == torch.int64


def test_blocks_and_split_files_assign_every_sample_once(folder) -> None:
    parts = [
        {int(d[i]["index"]) for i in range(len(d))} for d in (dataset(folder, s) for s in ("train", "val", "test"))
    ]
    assert parts == [set(range(6)), {6, 7}, {8, 9}]
    rows = "\n".join(
        f"{i:02d},{'val' if i < 2 else 'extra' if i < 4 else 'test' if i < 6 else 'train'}" for i in range(10)
    )
    (folder / "split.csv").write_text(f"id,split\n{rows}\n")
    lengths = [len(dataset(folder, s, split_file="split.csv")) for s in ("train", "val", "test")]
    assert lengths == [4, 2, 2]


def test_training_without_validation(folder) -> None:
    data = SegmentationDataModule(str(folder), val_fraction=0)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(KMUNet(width=2, stages=1), data)
    assert trainer.global_step == 2
    assert "val/dice" not in trainer.callback_metrics
    assert len(data.datasets["train"]) == 8  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the val split is empty"):
        SegmentationDataModule(str(folder), val_fraction=0).setup("validate")
    (folder / "split.csv").write_text("id,split\n" + "\n".join(f"{i:02d},train" for i in range(10)))
    with pytest.raises(DataError, match="the val split is empty"):
        dataset(folder, "val", split_file="split.csv")


def test_sixteen_bits_rgba_and_tiff_are_read_as_they_are(tmp_path) -> None:
    deep = (np.arange(35, dtype=np.uint16) * 1800).reshape(5, 7)
    io.imsave(tmp_path / "deep.tif", deep, check_contrast=False)
    assert np.array_equal(read_image(tmp_path / "deep.tif", 1, 16)[0], deep)
    io.imsave(tmp_path / "deep.png", deep, check_contrast=False)
    assert np.array_equal(read_image(tmp_path / "deep.png", 3, 16)[2], deep)
    colour = write_png16(tmp_path / "colour.png", np.dstack([deep, deep + 1, deep + 2]))
    assert np.array_equal(read_image(tmp_path / "colour.png", 3, 16), colour.transpose(2, 0, 1))
    rgba = np.dstack([np.full((3, 4), v, np.uint8) for v in (10, 20, 30, 255)])
    io.imsave(tmp_path / "rgba.png", rgba, check_contrast=False)
    assert read_image(tmp_path / "rgba.png", 3, 8).max() == 30
    assert read_image(tmp_path / "rgba.png", 1, 8)[0, 0, 0] == pytest.approx(0.299 * 10 + 0.587 * 20 + 0.114 * 30)


def augment(image, mask, settings, crop, rng):
    change = draw(mask.shape, settings, crop, rng)
    return changed(cut(image, change.box), cut(mask, change.box), change)


def test_augmentation_treats_image_and_mask_alike_and_follows_seed_epoch_and_index(folder) -> None:
    y, x = np.mgrid[:48, :48]
    disc = (np.hypot(y - 20, x - 27) < 11).astype(np.uint8)
    settings = Augmentation(True, 40, 0.3, 3)
    for seed in range(6):
        image, mask = augment(disc[None].astype(np.float32), disc, settings, 40, np.random.default_rng(seed))
        assert image.shape == (1, 40, 40)
        # linear interpolation crosses one half where the nearest pixel changes
        assert ((image[0] > 0.5) != (mask == 1)).mean() < 0.02
        assert 100 < mask.sum() < 900
    data = dataset(folder, rotate=30, scale=0.2, elastic=1, intensity=0.3, seed=5)
    first, again, later = data[EpochIndex(1, 0)], data[EpochIndex(1, 0)], data[EpochIndex(1, 1)]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], later["image"])
    assert torch.equal(dataset(folder, "val")[0]["image"], dataset(folder, "val", rotate=30)[0]["image"])


def test_no_strength_changes_nothing() -> None:
    image, mask = np.random.default_rng(0).random((1, 9, 7), np.float32), np.zeros((9, 7), np.uint8)
    same, _ = augment(image, mask, Augmentation(False), None, np.random.default_rng(1))
    assert np.array_equal(same, image)


def test_normalisations_do_what_they_say() -> None:
    image = np.random.default_rng(0).integers(200, 5000, (1, 64, 64)).astype(np.float32)
    z = normalized(image, Reading(normalize="zscore"), 65535)
    assert (abs(z.mean()) < 1e-5, abs(z.std() - 1) < 1e-5) == (True, True)
    assert np.quantile(normalized(image, Reading(normalize="percentile"), 65535), 0.999) == pytest.approx(1, abs=1e-3)
    assert np.array_equal(normalized(image, Reading(normalize="depth"), 65535), image / np.float32(65535))
    assert normalized(image, Reading(normalize="none"), 65535) is image


@pytest.mark.parametrize(("dtype", "highest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_depth_without_a_promise_is_that_of_the_file(tmp_path, dtype, highest) -> None:
    image, mask = np.array([[0, highest // 3], [highest, 0]], dtype), np.zeros((2, 2), np.uint8)
    for part, values in (("images", image), ("masks", mask)):
        (tmp_path / part).mkdir()
        io.imsave(tmp_path / part / "a.tif", values, check_contrast=False)
    data = dataset(tmp_path, normalize="depth", val_fraction=0, test_fraction=0, flip=False)
    assert data[0]["image"].flatten().tolist() == pytest.approx([0, 1 / 3, 1, 0])
    assert data[0]["image"].max() == 1  # also from the cache
    io.imsave(tmp_path / "images" / "a.tif", np.ones((2, 2), np.float32), check_contrast=False)
    with pytest.raises(DataError, match=r"data.normalize: depth .*a.tif holds float32"):
        dataset(tmp_path, normalize="depth", val_fraction=0, test_fraction=0)[0]


@pytest.mark.parametrize("normalize", ["zscore", "percentile", "depth", "none"])
def test_class_statistics_are_in_the_units_of_the_batches(folder, normalize) -> None:
    module = SegmentationDataModule(str(folder), normalize=normalize, flip=False)
    mean, std = module.class_statistics()
    data = module.configure_dataset("train")
    samples = [data[i] for i in range(len(data))]
    for c in (0, 1):
        values = torch.cat([s["image"][0][s["mask"] == c] for s in samples]).double()
        assert (mean[c, 0], std[c, 0]) == pytest.approx((float(values.mean()), float(values.std(unbiased=False))))


def test_shrinking_takes_means_and_majorities() -> None:
    image = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    mask = np.array([[0, 1, 2, 2, 0], [1, 1, 2, 0, 0], [0, 0, 1, 1, 0], [0, 2, 0, 1, 0]], np.uint8)
    small, classes = shrink(image, mask, 2)
    assert small[0].tolist() == [[3, 5], [13, 15]]
    assert classes.tolist() == [[1, 2], [0, 1]]


def test_generated_cells_are_a_function_of_seed_and_index() -> None:
    data = CellsDataModule(images=8, side=32)
    sets = {s: data.configure_dataset(s) for s in ("train", "val", "test")}
    indices = [int(d[i]["index"]) for d in sets.values() for i in range(len(d))]
    assert len(set(indices)) == len(indices) == 12
    assert torch.equal(sets["val"][1]["image"], CellsDataModule(images=8, side=32).configure_dataset("val")[1]["image"])
    image, classes = draw_cells(64, np.random.default_rng([0, 3]))
    assert set(np.unique(classes)) == {0, 1, 2}
    assert abs(image.mean()) < 1e-5


# ---------------------------------------------------------------------- broken data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "data.channels: expected 1 or more"),
        ({"channels": [0, 0]}, "data.channels: .* different positions"),
        ({"axes": "CZ"}, "data.axes: expected a letter per axis"),
        ({"slices": "mean"}, "data.slices: expected each, max or a number"),
        ({"masks_are": "objects"}, "data.masks_are: expected classes or instances"),
        ({"colors": [[0, 0]]}, "data.colors: expected 2 to 255 different colours"),
        ({"ignore_label": 255}, "data.ignore_label: 255 is also one of"),
        ({"fold": 5}, "data.fold, data.folds: expected at least 3 folds"),
        ({"fold": 0, "split_file": "x"}, "data.fold, data.split_file: give one"),
        ({"bit_depth": 12}, "data.bit_depth"),
        ({"normalize": "minmax"}, "data.normalize: expected one of zscore"),
        ({"labels": [0, 0]}, "data.labels"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "data.val_fraction, data.test_fraction"),
        ({"crop": 0}, "data.crop: expected at least 1"),
        ({"cache": -1}, "data.cache: expected true, false or megabytes from 0 on, got -1"),
        ({"elastic": -1.0}, "data.elastic"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationDataModule(str(tmp_path), **arguments)


def test_missing_folders_and_counterparts_are_named(folder) -> None:
    with pytest.raises(DataError, match="data.images: there is no folder .*nowhere"):
        dataset(folder / "nowhere")
    (folder / "masks" / "03.png").unlink()
    with pytest.raises(DataError, match=r"data.masks: 1 of the files .* have no counterpart .*first 03.png"):
        dataset(folder)


def test_unknown_labels_are_listed(folder) -> None:
    io.imsave(folder / "masks" / "00.png", np.full((20, 24), 77, np.uint8), check_contrast=False)
    with pytest.raises(
        DataError, match=r"data.labels: .*00.png holds \[77\], which are not among the labels \[0, 255\]"
    ):
        dataset(folder)[0]


def test_a_mask_of_another_size_is_named(folder) -> None:
    io.imsave(folder / "masks" / "00.png", np.zeros((20, 23), np.uint8), check_contrast=False)
    with pytest.raises(DataError, match=r"00.png: expected its image's size \(20, 24\), got \(20, 23\)"):
        dataset(folder)[0]


def test_an_image_of_another_size_is_named_with_the_way_out(folder) -> None:
    for part in ("images", "masks"):
        io.imsave(folder / part / "04.png", np.zeros((8, 24), np.uint8), check_contrast=False)
    with pytest.raises(DataError, match=r"04.png is \(8, 24\), 00.png is \(20, 24\).*data.crop"):
        dataset(folder)
    with pytest.raises(DataError, match="smaller than the crop of 16"):
        dataset(folder, crop=16)[4]
    assert len(dataset(folder, batch_size=1)) == 6


def test_truncated_files_are_named(folder) -> None:
    for message in ("images/01.png", "masks/00.png"):
        path = folder / message
        path.write_bytes(path.read_bytes()[:60])
        data = dataset(folder, batch_size=1)
        with pytest.raises(DataError, match=f"{message} cannot be read .*it may be truncated"):
            data[int(path.stem)]


def test_another_depth_than_promised_is_named(folder) -> None:
    with pytest.raises(DataError, match="data.bit_depth: 16 bits were promised, but .*00.png holds uint8"):
        dataset(folder, bit_depth=16)[0]


def test_values_that_are_not_finite_are_named(tmp_path) -> None:
    io.imsave(tmp_path / "bad.tif", np.array([[1.0, np.nan]], np.float32), check_contrast=False)
    with pytest.raises(DataError, match="bad.tif holds NaN"):
        read_image(tmp_path / "bad.tif", 1, None)


def test_a_split_file_without_a_row_is_named(folder) -> None:
    (folder / "split.csv").write_text("id,split\n00,train\n")
    with pytest.raises(DataError, match="has no row for 9 images, first 01"):
        dataset(folder, split_file="split.csv")
    (folder / "split.csv").write_text("name,part\n00,train\n")
    with pytest.raises(DataError, match="cannot be read as a CSV with columns id and split"):
        dataset(folder, split_file="split.csv")


# ---------------------------------------------------------------------- the real sets


SETS = {
    "isbi2012_em": {"images": "train/images", "masks": "train/masks", "labels": [255, 0], "bit_depth": 8},
    "dsb2018_nuclei": {"split_file": "split.csv", "bit_depth": 8},
    "bitdepth_nucseg_16bit": {
        "images": "images_16bit", "masks": "masks_binary", "split_file": "index.csv", "bit_depth": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_real_sets_train_and_test(name, shared_data, tmp_path) -> None:
    root = shared_data / name
    if not root.is_dir():
        pytest.skip(f"no {name} beside the project")
    deep = name == "bitdepth_nucseg_16bit"
    extra = {"normalize": "none"} if deep else {}
    data = SegmentationDataModule(
        str(root), downscale=8, crop=24, elastic=1, rotate=10, batch_size=2, eval_batch_size=2, train_images=4,
        **SETS[name], **extra,
    )  # fmt: skip
    origins = {}
    if deep:
        mean, std = data.class_statistics()
        origins = {"korigins": [float(m + s * d) for m, d in zip(mean[:, 0], std[:, 0], strict=True) for s in (-2, 2)]}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=1, limit_test_batches=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    model = KMUNet(width=2, stages=2, **origins)
    trainer.fit(model, data)
    (figures,) = trainer.test(model, data, verbose=False)
    assert 0 <= figures["test/dice"] <= 1
    assert np.isfinite(figures["test/loss"])
