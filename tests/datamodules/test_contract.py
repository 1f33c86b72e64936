"""What a network relies on and its settings leave open: the depth of raw intensities, the channels of a file."""

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

import framework
from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from framework.errors import ConfigError, DataError
from models import KMUNet, KOriginsSegmentation
from tests.datamodules.test_predictions import QUIET

RNG = np.random.default_rng(0)


def folder(root, shape=(24, 24), dtype=np.uint16, scale=1000, **save):
    """Four pairs; the mask is a square."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(4):
        image = (RNG.random(shape) * scale).astype(dtype)
        mask = np.zeros(shape[-2:], np.uint8)
        mask[6:16, 6:16] = 255
        tifffile.imwrite(root / "images" / f"{i}.tif", image, **save)
        tifffile.imwrite(root / "masks" / f"{i}.tif", mask)
    return root


def trained(root, model, **words):
    """The checkpoint of one epoch."""
    data = SegmentationDataModule(str(root), batch_size=2, eval_batch_size=1, **words)
    trainer = Trainer(**QUIET, default_root_dir=root, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(root / "a.ckpt")
    return root / "a.ckpt"


def korigins(**words):
    units = {"origins": "random", "deep_mean": 500.0, "deep_std": 100.0, "origin_lr": 1.0}
    return KOriginsSegmentation(**{"width": 2, "rfl": 8, "num_classes": 2, **units, **words})


def test_raw_intensities_are_of_the_trainings_depth(tmp_path) -> None:
    module = framework.load(trained(folder(tmp_path / "a"), korigins(), normalize="none"))
    assert module.preprocessing["bit_depth"] == 16
    image = tifffile.imread(tmp_path / "a" / "images" / "0.tif")
    labels = module.predict(image)
    assert np.array_equal(labels, module.predict(image.astype(np.float32)))  # the same numbers
    assert np.array_equal(labels, module.predict(torch.from_numpy(image.astype(np.int32))))
    for other in ((image >> 4).astype(np.uint8), (image / 65535).astype(np.float32)):
        with pytest.raises(DataError, match=r"raw intensities of 16 bits, .* trained on, got (uint8|fl)"):
            module.predict(other)
        tifffile.imwrite(tmp_path / "other.tif", other)
        with pytest.raises(DataError, match=r"data\.bit_depth: 16 bits .*other\.tif holds (uint8|float32)"):
            module.predict(tmp_path / "other.tif")


def test_the_command_refuses_another_depth_by_name(tmp_path) -> None:
    path = trained(folder(tmp_path / "a"), korigins(), normalize="none")
    dark = folder(tmp_path / "b", dtype=np.uint8, scale=200)
    data = SegmentationDataModule(str(dark), predict_images="images", normalize="none", eval_batch_size=1)
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    with pytest.raises(DataError, match=r"data\.bit_depth: 16 bits .*0\.tif holds uint8"):
        trainer.predict(korigins(), data, ckpt_path=path, weights_only=True)


def test_a_depth_is_no_part_where_it_does_not_matter(tmp_path) -> None:
    module = framework.load(trained(folder(tmp_path / "a"), KMUNet(width=2, stages=1), normalize="zscore"))
    assert module.preprocessing["bit_depth"] is None
    mixed = folder(tmp_path / "b")
    tifffile.imwrite(mixed / "images" / "0.tif", tifffile.imread(mixed / "images" / "0.tif").astype(np.uint8))
    module = framework.load(trained(mixed, korigins(), normalize="none"))
    assert module.preprocessing["bit_depth"] is None


def test_a_list_of_channels_is_of_files_of_one_number(tmp_path) -> None:
    root = folder(tmp_path / "a", (5, 24, 24), photometric="minisblack", metadata={"axes": "CYX"})
    model = KMUNet(width=2, stages=1, in_channels=2)
    module = framework.load(trained(root, model, channels=[4, 1]))
    assert module.preprocessing["file_channels"] == 5
    image = tifffile.imread(root / "images" / "0.tif")
    assert module.predict(image).shape == (24, 24)
    for wrong in (image.transpose(1, 2, 0), np.concatenate([image, image[:2]])):
        with pytest.raises(DataError, match=rf"of 5 channels, of which .* \[4, 1\], got {len(wrong)} in the arr"):
            module.predict(wrong)
    tifffile.imwrite(
        tmp_path / "seven.tif", np.concatenate([image, image[:2]]), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(DataError, match=r"pictures of 5 channels, .*, got 7 in .*seven\.tif"):
        module.predict(tmp_path / "seven.tif")


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ([[1.0, 2.0]], "an array or the path of a picture, got list"),
        (None, "an array or the path of a picture, got NoneType"),
        (np.zeros((0, 4), np.uint16), r"numbers \(H, W\) or \(N, H, W\), got uint16 of shape \(0, 4\)"),
        (np.ma.masked_array(np.ones((24, 24)), np.eye(24)), "every pixel, got a masked array"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, picture, said) -> None:
    module = KMUNet(width=2, stages=1)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, limit_val_batches=0)
    trainer.fit(module, SegmentationDataModule(str(folder(tmp_path / "a")), batch_size=2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=said):
        framework.load(tmp_path / "a.ckpt").predict(picture)


def test_origins_of_a_camera_do_not_meet_shares_of_one(tmp_path) -> None:
    root = folder(tmp_path / "a", dtype=np.float32, scale=1)
    model = korigins(deep_mean=20000.0, origin_lr=100.0)
    with pytest.raises(ConfigError, match=r"begin at 20000.* pictures hold values up to (1|0\.\d+); give the camera"):
        trained(root, model, normalize="none")
    trained(root, korigins(deep_mean=0.0, deep_std=1.0, origin_lr=0.01), normalize="none")


def test_a_table_without_objects_has_its_columns(tmp_path) -> None:
    root = folder(tmp_path / "a")
    path = trained(root, KMUNet(width=2, stages=1, num_classes=3), masks_are="instances")
    content = torch.load(path, weights_only=True)
    head = next(key for key in content["state_dict"] if key.endswith("head.bias"))
    content["state_dict"][head] += torch.tensor([1e6, 0, 0])  # everything is background
    torch.save({k: v for k, v in content.items() if k != "checksum"}, tmp_path / "b.ckpt")
    data = SegmentationDataModule(str(root), masks_are="instances", predict_images="images", eval_batch_size=1)
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.predict(KMUNet(width=2, stages=1, num_classes=3), data, ckpt_path=tmp_path / "b.ckpt", weights_only=True)
    lines = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("image,object,area,")
