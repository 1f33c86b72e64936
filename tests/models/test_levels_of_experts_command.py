"""What the commands leave behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage import io

from tests.models.loe_tools import write_pictures


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    folder = write_pictures(tmp_path / "pictures", ["one", "two"])
    return [
        *("-c", "levels_of_experts/quickstart", "--model.experts=[4,2,1,map]", "--model.width=8"),
        *(f"--data.root={folder}", "--data.images=*.png", "--data.scale=1", "--data.crop=null"),
        *("--data.steps_per_epoch=5", "--trainer.max_epochs=2"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]


def test_fit_then_predict_leave_exactly_these_files(run: Callable[..., Any], words: list[str]) -> None:
    run("fit", *words)
    folder = Path("runs/levels_of_experts/quickstart/version_0")
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name}
    figures = ("error", "psnr_over_time", "reconstruction", "segmentation_maps", "training_curves")
    assert left == {
        *("config.yaml", "hparams.yaml", "metrics.csv", "images.csv", "segmentation_maps.csv"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *(f"figures/{name}.png" for name in figures),
    }
    table = pd.read_csv(folder / "images.csv")
    assert table["image"].tolist() == ["one", "two"]
    assert table["parameters"].unique().tolist() == [4 * (2 * 8 + 3 * 8 * 8) + 4 * 8 + 3 * 8 + 3]

    ckpt = f"--ckpt_path={folder}/checkpoints/last.ckpt"
    run("predict", *words, ckpt, "--name=same")
    predictions = Path("runs/same/version_0/predictions")
    assert sorted(p.name for p in predictions.iterdir()) == [
        *("one_error.png", "one_reconstruction.png", "two_error.png", "two_reconstruction.png")
    ]
    for name, psnr in zip(table["image"], table["psnr"], strict=True):
        truth = io.imread(f"pictures/{name}.png").astype(float)
        said = io.imread(predictions / f"{name}_reconstruction.png").astype(float)
        assert 10 * np.log10(255**2 / np.mean((truth - said) ** 2)) == pytest.approx(psnr, abs=1e-3)
        assert np.array_equal(io.imread(predictions / f"{name}_error.png"), np.abs(truth - said).max(2))

    run("predict", *words, ckpt, "--name=large", "--model.scale=4")
    large = Path("runs/large/version_0/predictions")
    assert sorted(p.name for p in large.iterdir()) == ["one_reconstruction.png", "two_reconstruction.png"]
    assert io.imread(large / "one_reconstruction.png").shape == (64, 96, 3)
    assert io.imread(large / "two_reconstruction.png").shape == (96, 64, 3)
