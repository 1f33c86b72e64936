"""Every block of docs/recipes.md is run as it is written."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from framework.nn import spline_layers
from framework.schedules import WarmupCosine

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```yaml\n(.*?)```", PAGE, re.S))
BASE = """
model:
  class_path: KMUNet
  init_args: {width: 2, stages: 1, num_classes: 3}
data:
  class_path: CellsDataModule
  init_args: {images: 8, side: 16, batch_size: 2}
trainer: {accelerator: cpu, max_epochs: 4, enable_progress_bar: false, enable_model_summary: false,
          num_sanity_val_steps: 0}
"""
FILES = BASE.replace("CellsDataModule", "SegmentationDataModule").replace("images: 8, side: 16", "root: pairs")


def checkpoints(cli: Any) -> set[str]:
    return {path.name for path in Path(cli.trainer.log_dir, "checkpoints").glob("*.ckpt")}


def loggers(cli: Any) -> set[str]:
    assert any(isinstance(logger, CSVLogger) for logger in cli.trainer.loggers)
    return {type(logger).__name__ for logger in cli.trainer.loggers}


def pairs(folder: Path) -> None:
    """Seven pictures and their masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for i in range(7):
            values = rng.integers(0, 2, (16, 16), dtype=np.uint8) * 255
            tifffile.imwrite(folder / part / f"{i}.tif", values)


#: what a block changes
SHOWS: dict[str, Callable[[Any], bool]] = {
    "Warm-up": lambda cli: isinstance(cli.trainer.lr_scheduler_configs[0].scheduler, WarmupCosine)
    and cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 17 / 101),
    "Early stopping": lambda cli: any(type(c) is EarlyStopping and c.patience == 20 for c in cli.trainer.callbacks),
    "A checkpoint every few epochs": lambda cli: checkpoints(cli)
    == {"best.ckpt", "last.ckpt", "epoch=001.ckpt", "epoch=003.ckpt"},
    "Larger batches than the memory holds": lambda cli: cli.trainer.global_step == 4,
    "Mixed precision": lambda cli: cli.trainer.precision == "bf16-mixed"
    and cli.model.network.head.weight.dtype == torch.float32,
    "MLflow": lambda cli: loggers(cli) >= {"MLFlowLogger"} and Path("mlflow.db").is_file(),
    "Weights and Biases": lambda cli: loggers(cli) >= {"WandbLogger"} and any(Path("wandb").glob("offline-run-*")),
    "Losses": lambda cli: cli.model.loss == ["focal", "dice"],
    "Weights of rare classes": lambda cli: cli.model.class_weights.argmin() == 0
    and "class_weights" in cli.model.state_dict(),
    "Fine-tuning": lambda cli: cli.model.num_classes == 3 and cli.trainer.optimizers[0].param_groups[0]["lr"] == 1e-4,
    "Splines that begin at a trained U-Net": lambda cli: bool(spline_layers(cli.model)),
    "Cross-validation": lambda cli: [len(cli.datamodule.datasets[split]) for split in ("train", "val")] == [3, 2],
}  # fmt: skip
NEEDS = {"MLflow": "mlflow", "Weights and Biases": "wandb"}
#: words of the run that a block begins at
BEFORE = {
    "Fine-tuning": ["--name=first", "--model.num_classes=4"],
    "Splines that begin at a trained U-Net": ["--name=plain", "--model.baseline=4"],
}


def test_every_recipe_is_run() -> None:
    assert set(RECIPES) == set(SHOWS)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_as_it_is_written(title: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if (package := NEEDS.get(title)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    for name, content in {"base": FILES if title == "Cross-validation" else BASE, "mine": RECIPES[title]}.items():
        Path(f"{name}.yaml").write_text(content)
    pairs(Path("pairs"))
    if title in BEFORE:
        run("fit", "-c", "base.yaml", *BEFORE[title], "--trainer.max_epochs=1")
    capsys.readouterr()
    cli = run("fit", "-c", "base.yaml", "-c", "mine.yaml")
    assert SHOWS[title](cli)
    if title in BEFORE:
        said = capsys.readouterr().out
        assert "initial weights of runs/" in said
        assert ("new: network.head.weight" in said) == (title == "Fine-tuning")
