"""What a network relies on and its settings leave open: the depth of raw intensities, the channels of a file."""

from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

import framework
from callbacks import PredictionWriter
from datamodules import SegmentationDataModule
from datamodules.planes import choose_channels
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


def flat(root, names):
    root.mkdir()
    for name in names:
        tifffile.imwrite(root / name, (RNG.random((24, 24)) * 255).astype(np.uint8))
    return root


def test_masks_and_predictions_in_the_folder_are_no_pictures(tmp_path, capsys) -> None:
    names = ["a.tif", "a_mask.tif", "a_mask_2.tif", "b.tif", "b_overlay.png", "b_probabilities.tif", "c_mask.tif"]
    data = SegmentationDataModule(str(flat(tmp_path / "new", names)), eval_batch_size=1)
    data.setup("predict")
    files: Any = data.datasets["predict"]
    assert [pair.name for pair in files.pairs] == ["a", "b", "c_mask"]  # the last is nobody's
    said = capsys.readouterr()
    assert "4 of the 7 pictures in" in said.out + said.err
    assert "are masks or predictions of others there, such as a_mask.tif, and are left out" in said.out + said.err


def test_masks_of_slices_and_of_named_images_are_no_pictures(tmp_path) -> None:
    names = ["s.tif", "s_slice1_mask.tif", "s_slice1_overlay.png", "p_image.tif", "p_mask.tif", "t_slice1_mask.tif"]
    data = SegmentationDataModule(str(flat(tmp_path / "new", names)), eval_batch_size=1)
    data.setup("predict")
    assert [pair.name for pair in cast(Any, data.datasets["predict"]).pairs] == ["p_image", "s", "t_slice1_mask"]


def test_the_advice_on_channels_can_be_followed() -> None:
    said = r"expected 2, but x has 5; give data\.channels: a list of the 2 to take, e\.g\. \[0, 1\], or 5 for a network"
    with pytest.raises(DataError, match=said):
        choose_channels(np.zeros((5, 4, 4)), 2, "x")


def test_predicting_the_test_split_says_so(tmp_path, capsys) -> None:
    root = folder(tmp_path / "a")
    data = SegmentationDataModule(str(root), eval_batch_size=1)
    data.setup("predict")
    assert len(cast(Any, data.datasets["predict"])) == 1
    said = capsys.readouterr()
    assert "the test split is predicted, 1 of the 4 pictures in" in said.out + said.err
    assert "give data.predict_images: images" in said.out + said.err
    data = SegmentationDataModule(str(root), eval_batch_size=1, predict_images="images")
    data.setup("predict")
    assert len(cast(Any, data.datasets["predict"])) == 4
    assert "pictures in" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_picture_that_is_too_small_is_named_before_any_is_looked_at(tmp_path, verb) -> None:
    root = folder(tmp_path / "a")
    for part in ("images", "masks"):
        tifffile.imwrite(root / part / "3.tif", np.full((5, 60), 255, np.uint8))
    data = SegmentationDataModule(str(root), batch_size=1, eval_batch_size=1, val_fraction=0, predict_images="images")
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    said = r"expected at least 8 x 8 pixels for the network's poolings, got 5 x 60 in .*[0-3]\.tif; leave it out"
    if verb == "validate":
        for file in root.rglob("*.tif"):
            tifffile.imwrite(file, np.full((5, 60), 255, np.uint8))
        data = SegmentationDataModule(str(root), eval_batch_size=1)
    if verb == "fit":
        data = SegmentationDataModule(str(root), batch_size=1, val_fraction=0, test_fraction=0)
    with pytest.raises(DataError, match=said):
        getattr(trainer, verb)(KMUNet(width=2, stages=3), data)


def test_a_crop_that_is_too_small_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"data\.crop: expected at least 8 pixels .*, got 5; give a larger crop"):
        trained(folder(tmp_path / "a"), KMUNet(width=2, stages=3), crop=5)


def test_what_the_checkpoint_leaves_open_stays_as_configured(tmp_path, capsys) -> None:
    path = trained(folder(tmp_path / "a"), KMUNet(width=2, stages=1))
    stack = tmp_path / "b"
    stack.mkdir()
    values = (RNG.random((3, 2, 24, 24)) * 1000).astype(np.uint16)
    tifffile.imwrite(stack / "s.tif", values, photometric="minisblack", metadata={"axes": "ZCYX"})
    data = SegmentationDataModule(str(stack), slices="each", channels=[1], eval_batch_size=1)
    trainer = Trainer(**QUIET, callbacks=[PredictionWriter(str(tmp_path / "out"))], default_root_dir=tmp_path)
    trainer.predict(KMUNet(width=2, stages=1), data, ckpt_path=path, weights_only=True)
    assert len(list((tmp_path / "out").glob("s_slice?_mask.tif"))) == 3
    assert data.reading.channels == [1]
    assert "from the checkpoint" not in "".join(capsys.readouterr())
    expected = framework.load(path).predict(values[2, 1])
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "s_slice2_mask.tif"), expected)
    data = SegmentationDataModule(str(stack), slices="each", channels=[0, 1], eval_batch_size=1)
    with pytest.raises(
        ConfigError, match=r"data\.channels: expected a list of 1, .* of the checkpoint .* got \[0, 1\]"
    ):
        Trainer(**QUIET).predict(KMUNet(width=2, stages=1), data, ckpt_path=path, weights_only=True)


def test_pictures_without_contrast_say_which_key_cannot_be(tmp_path) -> None:
    root = folder(tmp_path / "a")
    for path in (root / "images").iterdir():
        tifffile.imwrite(path, np.full((24, 24), 700, np.uint16))
    with pytest.raises(ConfigError, match=r"model\.origins: multi_otsu does not part the training pictures \(.*random"):
        trained(root, korigins(origins="multi_otsu"), normalize="none")


@pytest.mark.parametrize("split", ["predict", "fit"])
def test_a_file_in_place_of_the_folder(tmp_path, split) -> None:
    (file := tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a folder, got the file .*a\.tif; give the folder that it lies in"):
        SegmentationDataModule(str(file)).setup(split)
