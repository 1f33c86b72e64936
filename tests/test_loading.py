"""A trained network without its configuration: `framework.load`, and `framework predict` from the checkpoint alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import framework
from framework.errors import CheckpointError, DataError

SIDE = 61  # no pooling divides it


def picture(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a dark ground, as 16-bit intensities, and which disc every pixel belongs to."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    objects = np.zeros(shape, np.uint16)
    for n, (cy, cx) in enumerate(rng.uniform(8, np.array(shape) - 8, (6, 2)), 1):
        objects[((y - cy) ** 2 + (x - cx) ** 2 < 40) & (objects == 0)] = n
    return rng.normal(np.where(objects > 0, 3000, 1000), 100).astype(np.uint16), objects


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KM-UNet of five epochs on twelve pictures, its checkpoint, and a folder of new pictures."""
    from framework.main import main

    root = tmp_path_factory.mktemp("trained")
    for i in range(12):
        image, objects = picture(i)
        for part, values in (("images", image), ("masks", objects)):
            (root / "set" / part).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / "set" / part / f"s{i}.tif", values)
    (root / "new").mkdir()
    for i, shape in enumerate(((SIDE, SIDE), (40, 90))):
        image, _ = picture(100 + i, shape)
        tifffile.imwrite(
            root / "new" / f"cells.{i:03d}.tif", image, resolution=(20000, 20000), resolutionunit="CENTIMETER"
        )
    main([
        "fit", "--model=KMUNet", "--model.num_classes=3", "--model.width=2", "--model.stages=2",
        "--model.optimizer=Adam", "--model.optimizer.lr=0.02", "--data=SegmentationDataModule",
        f"--data.root={root / 'set'}", "--data.masks_are=instances", "--data.normalize=dataset",
        "--trainer.max_epochs=5", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={root / 'runs'}", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    (checkpoint,) = root.glob("runs/*/version_0/checkpoints/last.ckpt")
    (root / "x.ckpt").write_bytes(checkpoint.read_bytes())
    return root


def test_predict_needs_nothing_but_a_checkpoint_and_a_folder(trained: Path, run: Any) -> None:
    out = trained / "out"
    run(
        "predict", "--ckpt_path", str(trained / "x.ckpt"), "--data.root", str(trained / "new"),
        "--trainer.callbacks=PredictionWriter", f"--trainer.callbacks.output_dir={out}", "--trainer.logger=false",
        "--trainer.accelerator=cpu",
    )  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == ["cells.000_mask.tif", "cells.001_mask.tif", "objects.csv"]
    module = framework.load(trained / "x.ckpt")
    for i, shape in enumerate(((SIDE, SIDE), (40, 90))):
        written = tifffile.imread(out / f"cells.{i:03d}_mask.tif")
        assert written.shape == shape
        path = trained / "new" / f"cells.{i:03d}.tif"
        assert np.array_equal(module.predict(path), written)  # type: ignore[operator]
        assert np.array_equal(module.predict(tifffile.imread(path)), written)  # type: ignore[operator]
        assert np.array_equal(module.predict(path, tile=16), written)  # type: ignore[operator]
        assert 1 <= len(np.unique(written)) - 1 <= 12


def test_a_large_file_is_read_by_windows(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = picture(7, (300, 260))
    module = framework.load(trained / "x.ckpt")
    whole = module.predict(image)  # type: ignore[operator]
    for name, options in (("plain", {}), ("tiled", {"tile": (64, 64), "compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, **options)
        with monkeypatch.context() as patched:
            patched.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("read as a whole"))
            assert np.array_equal(module.predict(tmp_path / f"{name}.tif", tile=64), whole)  # type: ignore[operator]


def test_predict_writes_into_its_run_folder_by_default(trained: Path, run: Any, capsys: Any) -> None:
    run(
        "predict", "--ckpt_path", str(trained / "x.ckpt"), "--data.root", str(trained / "new"),
        "--trainer.accelerator=cpu",
    )  # fmt: skip
    (folder,) = Path("runs").glob("*/version_0/predictions")
    assert len(list(folder.glob("*_mask.tif"))) == 2
    assert f"predictions: {folder}" in capsys.readouterr().out


def test_a_loaded_module_is_in_evaluation_and_can_be_copied(trained: Path) -> None:
    import copy

    module = framework.load(trained / "x.ckpt")
    assert not module.training
    array = picture(5)[0]
    other = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.data.zero_()
    assert not np.array_equal(other.predict(array), module.predict(array))  # type: ignore[operator]


def test_what_does_not_meet_the_training_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    module = framework.load(trained / "x.ckpt")
    tifffile.imwrite(tmp_path / "two.tif", np.zeros((2, 40, 40), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(DataError, match=r"data\.channels: expected 1, but .*two\.tif has 2"):
        module.predict(tmp_path / "two.tif")  # type: ignore[operator]
    with pytest.raises(DataError, match="expected 1, but the array has 3"):
        module.predict(np.zeros((3, 40, 40)))  # type: ignore[operator]
    with pytest.raises(DataError, match="the array holds NaN"):
        module.predict(np.full((40, 40), np.nan))  # type: ignore[operator]


def test_only_known_classes_are_loaded(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "x.ckpt", weights_only=True)
    for stored in ("os.system", "my_module.Evil"):
        torch.save({**checkpoint, "class_path": stored}, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=f"expected one of .*, got a {stored}"):
            framework.load(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="there is no file"):
        framework.load(tmp_path / "gone.ckpt")
