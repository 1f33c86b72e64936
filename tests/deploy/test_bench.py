"""`framework bench`: a row for every form, measured in a process of its own, and the picture of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

import framework
from datamodules import SegmentationDataModule
from framework.commands.bench import COLUMNS, kinds_of, measure
from framework.commands.export import data_for, inputs_of
from framework.errors import CheckpointError, ConfigError
from framework.figures import deployment
from framework.main import main, shown
from models import KMUNet
from tests.deploy.test_export import OLD

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_every_form_is_measured_or_left_out_with_its_reason() -> None:
    said: list[str] = []
    module = framework.load(OLD / "korigins" / "last.ckpt")
    kinds = (("onnx", "fp32"), ("onnx", "fp16"))
    rows = list(measure(module, None, kinds=kinds, batch=2, size=(24, 24), seconds=0.05, say=said.append))
    assert [(row["format"], row["precision"]) for row in rows] == [("eager", "fp32"), ("onnx", "fp32")]
    assert "65504" in said[0]
    eager, file = rows
    assert set(COLUMNS) <= set(file)
    assert all(float(row[key]) > 0 for row in rows for key in ("latency_ms", "cpu_ms", "per_second"))
    assert 0 < float(file["memory_mib"]) < 1000
    assert float(file["bytes"]) > 1000
    assert float(file["share"]) < 1e-5
    assert eager["score"] == ""
    figure = deployment(rows)
    assert [axis.get_xlabel() for axis in figure.axes] == ["one sample, processors' ms", "bytes of the file"]


def test_a_form_that_there_is_not_is_named() -> None:
    assert kinds_of(["onnx:fp32"]) == [("onnx", "fp32")]
    with pytest.raises(ConfigError, match="there are pt2:fp32"):
        kinds_of(["onnx:fp64"])


def pictures(root: Path) -> Path:
    """Bright squares in noise; the first rows of the masks have no label."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(10):
        mask = np.zeros((32, 32), np.uint8)
        mask[8 : 20 + i, 10:25] = 255
        noise = np.random.default_rng(i).integers(0, 60 + 10 * i, mask.shape)
        Image.fromarray((mask // 3 + noise).astype(np.uint8)).save(root / "images" / f"{i}.png")
        mask[:3] = 128
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


def network(root: Path) -> KMUNet:
    """A segmenter that was trained on pictures read with `normalize: dataset`."""
    data = SegmentationDataModule(str(root), normalize="dataset", ignore_label=128)
    data.setup("fit")
    torch.manual_seed(0)
    module = KMUNet(num_classes=2, width=4, stages=1, baseline=4, ignore_index=255).eval()
    module.preprocessing = data.preprocessing()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        logits = module(batch["image"])
        module.network.head.bias[1] += (logits[:, 0] - logits[:, 1]).median()
    return module


@pytest.mark.parametrize("on_device", ["false", "true"])
def test_pictures_are_read_as_the_checkpoint_says_and_the_score_is_that_of_test(on_device, tmp_path) -> None:
    root = pictures(tmp_path / "data")
    words = f"root: {root}, ignore_label: 128, normalize: depth, test_fraction: 0.4, on_device: {on_device}"
    config = tmp_path / "data.yaml"
    config.write_text(f"data: {{class_path: SegmentationDataModule, init_args: {{{words}}}}}")
    module = network(root)
    (row,) = measure(module, str(config), kinds=(), batch=1, size=(32, 32), seconds=0.01)
    inputs = [batch for (batch,) in inputs_of(data_for(str(config), module.preprocessing))]

    data = data_for(str(config))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    (figures,) = trainer.test(module, data, verbose=False)
    assert 0.05 < figures["test/dice"] < 0.95
    assert float(row["score"]) == pytest.approx(figures["test/dice"], abs=1e-4)
    (mean,), (std,) = module.preprocessing["mean"], module.preprocessing["std"]
    data.setup("validate")
    paths = [pair.image for pair in data.datasets["val"].pairs]
    raw = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])[:, None]
    np.testing.assert_allclose(np.concatenate(inputs), (raw - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_best_and_last_are_a_configurations_and_the_message_names_the_newest(verb, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"got best, .* give the path, such as runs/NAME/version_0/checkpoints/b"):
        main([verb, "--ckpt_path", "best"])
    newest = Path("runs/mine/version_3/checkpoints/best.ckpt")
    newest.parent.mkdir(parents=True)
    newest.touch()
    with pytest.raises(CheckpointError, match=re.escape(f"give the path, such as {newest}")):
        main([verb, "--ckpt_path", "best"])


@pytest.mark.parametrize("place", ["there/bench.png", "there"])
def test_nothing_is_measured_for_files_that_are_there(place, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("precious")
    assert shown(["bench", "--ckpt_path", "nowhere.ckpt", "--out", "there"]) == 2
    assert "error: out: " in capsys.readouterr().err
    assert Path(place).read_text() == "precious"
