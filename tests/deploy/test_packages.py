"""bioimage.io packages, and int8: what the libraries that read them say."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import framework
from datamodules import SegmentationDataModule
from datamodules.io import open_picture
from datamodules.segmentation_data import normalized
from framework.commands.export import data_for, inputs_of
from framework.commands.loading import predict
from framework.deploy import forms_of
from framework.errors import ConfigError
from models import KMUNet
from tests.deploy.test_export import OLD
from tests.helpers.methods import BUILD

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_a_package_passes_its_own_test_and_predicts_an_odd_sized_picture(tmp_path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="the extra `export` is not installed")
    torch.manual_seed(0)
    module = framework.load(OLD / "korigins" / "last.ckpt")
    module.preprocessing = {"normalize": "zscore", "labels": [0, 7, 9]}
    report = framework.export(module, tmp_path, "bioimageio")
    package = tmp_path / "segmenter.zip"
    assert report["files"][0]["status"] == "passed"
    assert core.test_model(package).status == "passed"
    description = core.load_model_description(package)
    assert description.outputs[0].axes[1].channel_names == ["class_0", "class_7", "class_9"]
    picture = 20000 + 3000 * torch.randn(1, 1, 37, 53)
    (found,) = core.predict(model=package, inputs=picture.numpy()).members.values()
    normal = (picture - picture.mean()) / picture.std(correction=0)
    truth = module(normal).detach().numpy()
    np.testing.assert_allclose(np.asarray(found.data), truth, rtol=0, atol=1e-4 * np.abs(truth).max())


def two_channels(root: Path, bits: int) -> Path:
    """Four pictures of two channels of so many bits, brighter to the right, with masks; the first one's path."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 2**bits, (2, 40, 32))
        pixels = (noise * np.linspace(0.1, 1, 32)).astype(np.uint8 if bits == 8 else np.uint16)
        options = {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}
        tifffile.imwrite(root / "images" / f"{i}.tif", pixels, bitspersample=bits, **options)
        Image.fromarray((np.arange(1280).reshape(40, 32) % 2 * 255).astype(np.uint8)).save(root / f"masks/{i}.png")
    return root / "images" / "0.tif"


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ("depth", 12),
        ("dataset", 16),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("zscore", 16), ("percentile", 8), ("depth", 8)]),
    ],
)
def test_a_package_is_given_the_pixels_of_a_file_and_predicts_as_the_method_does(how, bits, tmp_path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="the extra `export` is not installed")
    path = two_channels(tmp_path, bits)
    data = SegmentationDataModule(str(tmp_path), channels=2, normalize=how)
    data.setup("fit")
    torch.manual_seed(1)
    module = KMUNet(num_classes=2, in_channels=2, width=4, stages=1, baseline=4).eval()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    module.preprocessing = data.preprocessing()
    raw = open_picture(path).pixels().astype(np.float32)
    seen = torch.from_numpy(normalized(raw, data.reading, 2**bits - 1))[None]
    with torch.no_grad():
        truth = module(seen)
        module.network.head.bias[1] += (truth[:, 0] - truth[:, 1]).median()  # half of the pixels are of each class
        truth = module(seen).numpy()
    framework.export(module, tmp_path / "out", "bioimageio")
    package = tmp_path / "out" / "segmenter.zip"
    (found,) = core.predict(model=package, inputs=raw[None]).members.values()
    logits = np.asarray(found.data)
    np.testing.assert_allclose(logits, truth, rtol=0, atol=1e-4 * np.abs(truth).max())
    labels = np.where(logits[0].argmax(0) == 1, 255, 0)
    assert 0.4 < (labels == 255).mean() < 0.6
    assert (labels == predict(module, path)).mean() > 0.99


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"normalize": "zscore", "downscale": 2}, "cannot make pictures smaller, got 2"),
        ({"normalize": "depth"}, "training files of one known depth"),
        ({"normalize": "depth", "bit_depth": None}, "training files of one known depth"),
        ({"normalize": "dataset"}, "mean and deviation of 1 channels .* got 0 and 0"),
        ({"normalize": "dataset", "mean": [1, 2], "std": [1, 2]}, "mean and deviation of 1 channels .* got 2 and 2"),
        ({"normalize": "mine"}, "a data.normalize of ours .* got 'mine'"),
    ],
)
def test_a_package_that_would_not_read_as_the_method_does_is_refused(stored, said, tmp_path) -> None:
    module = framework.load(OLD / "korigins" / "last.ckpt")
    module.preprocessing = stored
    with pytest.raises(ConfigError, match=rf"^format: expected .*{said}"):
        framework.export(module, tmp_path / "out", "bioimageio")
    assert not list(tmp_path.iterdir())


def test_a_package_is_for_segmenters(tmp_path) -> None:
    with pytest.raises(ConfigError, match="segmenters"):
        framework.export(framework.load(OLD / "finola" / "last.ckpt"), tmp_path / "out", "bioimageio")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["korigins", pytest.param("master_key", marks=pytest.mark.slow)])
def test_int8_decides_as_the_method_does(name, tmp_path) -> None:
    torch.manual_seed(0)
    module = framework.load(OLD / name / "last.ckpt")
    (form,) = forms_of(module)
    pictures = [[form.draw({"batch": 4, "height": 64, "width": 64}, seed)[0].numpy()] for seed in range(4)]
    whole = framework.export(module, tmp_path / "fp32", "onnx")["files"][0]
    small = framework.export(module, tmp_path / "int8", "onnx", precision="int8", calibration=pictures)["files"][0]
    assert all(row["agreement"] > 0.85 for row in small["compared"])
    assert all(row["share"] > 0 for row in small["compared"])
    assert Path(tmp_path, "int8", small["file"]).stat().st_size != whole["bytes"]


def test_int8_of_numbers_is_refused(tmp_path) -> None:
    module = BUILD["finola"]().eval()
    with pytest.raises(ConfigError, match="segmenters and classifiers"):
        framework.export(module, tmp_path / "out", "onnx", precision="int8", calibration=[[np.zeros((1, 3, 16, 16))]])


def test_ranges_come_from_pictures_of_all_classes(tmp_path) -> None:
    """Folders are sorted by class: the first pictures of eight batches are of two classes here."""
    for label in range(10):
        (tmp_path / "pictures" / f"{label}").mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (20 * label, 0, 0)).save(tmp_path / "pictures" / f"{label}" / f"{i}.png")
    root = tmp_path / "pictures"
    words = f"root: {root}, val_fraction: 1.0, image_size: 8, batch_size: 2, mean: [0, 0, 0], std: [1, 1, 1]"
    (tmp_path / "data.yaml").write_text(f"data: {{class_path: ImageFolderDataModule, init_args: {{{words}}}}}")
    batches = [batch for (batch,) in inputs_of(data_for(str(tmp_path / "data.yaml")))]
    assert [batch.shape for batch in batches] == [(2, 3, 8, 8)] * 8
    reds = {round(float(picture[0, 0, 0]) * 255) for batch in batches for picture in batch}
    assert len(reds) >= 7
