"""Two processes own the images between them; tables and checkpoints are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.multiprocessing import ProcessRaisedException

from callbacks import SegmentationMaps
from tests.models.loe_tools import fit, make_model, write_pictures

TWO = ["--trainer.strategy=ddp_fork", "--trainer.devices=2"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Three pictures, so that one rank owns two and the other one; 50 steps at the paper's learning rate."""
    folder = write_pictures(tmp_path / "pictures", ["one", "two", "three"])
    return [
        *("-c", "levels_of_experts/quickstart"),
        *("--model.experts=[4,2,1,map]", "--model.width=8", "--model.optimizer.init_args.lr=1e-4"),
        *("--model.plateau_patience=0", f"--data.root={folder}", "--data.images=*.png", "--data.scale=1"),
        *("--data.crop=null", "--data.steps_per_epoch=25", "--trainer.max_epochs=2"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(f"runs/levels_of_experts/{name}/version_0/images.csv")


def checkpoint(name: str) -> dict[str, Any]:
    return torch.load(
        f"runs/levels_of_experts/{name}/version_0/checkpoints/last.ckpt", weights_only=True, map_location="cpu"
    )


def assert_same_checkpoint(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=0, atol=1e-6)
    moments, others = (c["optimizer_states"][0]["state"] for c in (a, b))
    assert moments.keys() == others.keys()
    for key, values in moments.items():
        for name, value in values.items():
            torch.testing.assert_close(value, others[key][name], rtol=0, atol=1e-6)
    for name, value in a["images"]["progress"].items():
        torch.testing.assert_close(value, b["images"]["progress"][name], rtol=0, atol=1e-6)
    assert a["images"]["names"] == b["images"]["names"]


def test_a_fit_on_two_processes_leaves_the_table_and_checkpoint_of_one(
    run: Callable[..., Any], words: list[str]
) -> None:
    run("fit", *words, "--name=levels_of_experts/one")
    run("fit", *words, "--name=levels_of_experts/two", *TWO)
    pd.testing.assert_frame_equal(table("one"), table("two"), rtol=0, atol=1e-6)
    assert_same_checkpoint(checkpoint("one"), checkpoint("two"))
    assert len(checkpoint("two")["state_dict"]["network.last.weight"]) == 3

    ckpt = "runs/levels_of_experts/two/version_0/checkpoints/last.ckpt"
    one = run("test", *words, "--name=levels_of_experts/test_one", f"--ckpt_path={ckpt}")
    two = run("test", *words, "--name=levels_of_experts/test_two", f"--ckpt_path={ckpt}", *TWO)
    pd.testing.assert_frame_equal(table("test_one"), table("test_two"), rtol=0, atol=1e-6)
    for name in ("test/psnr", "test/psnr_lowest", "test/psnr_highest"):
        assert one.trainer.callback_metrics[name] == two.trainer.callback_metrics[name]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["two_then_one", "one_then_two"])
def test_a_checkpoint_resumes_on_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    folder = write_pictures(tmp_path / "pictures", ["one", "two", "three"])

    def last_of(name: str, devices: int, epochs: int, **options: Any) -> Path:
        keep = ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=True)
        options |= {"callbacks": [SegmentationMaps(), keep], "enable_checkpointing": True, "devices": devices}
        strategy = "ddp_fork" if devices > 1 else "auto"
        fit(make_model(lr=1e-4), folder, steps=25, epochs=epochs, strategy=strategy, **options)
        return tmp_path / name / "last.ckpt"

    half = last_of("half", before, 1)
    resumed, whole = last_of("resumed", after, 2, ckpt_path=str(half)), last_of("whole", 1, 2)
    assert_same_checkpoint(*(torch.load(path, weights_only=True) for path in (resumed, whole)))


def test_more_processes_than_images_are_refused(run: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(ProcessRaisedException, match="ConfigError: trainer.devices: 2 processes for 1 images"):
        run("fit", *words, "--data.images=one.png", *TWO)
