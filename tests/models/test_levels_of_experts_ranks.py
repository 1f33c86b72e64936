"""Two processes own the images between them; tables and checkpoints are those of one process."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.multiprocessing import ProcessRaisedException

from callbacks import SegmentationMaps
from models import LevelsOfExperts
from tests.models.loe_tools import EXPERTS, fit, make_model, write_pictures

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


class WithAPoisonedImage(LevelsOfExperts):
    """One image, wherever it is trained, gets a NaN weight or far too large a learning rate in its second epoch."""

    def poison(self, name: str, kind: str) -> "WithAPoisonedImage":
        self.victim, self.kind = name, kind
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        own = self.images.own(self.names)
        if self.global_step == 12 and self.victim in own:
            row = own.index(self.victim)
            if self.kind == "nan":
                with torch.no_grad():
                    self.network.last.weight[row] = torch.nan
            else:
                self.progress["learning_rate_factor"][row] = 1e6


@pytest.mark.parametrize(
    ("kind", "victim", "index", "step"),
    [("nan", "two", 2, 12), ("learning rate", "three", 1, 13)],
    ids=["one of a rank's two", "all that a rank owns"],
)
def test_an_image_that_diverges_on_one_rank_stops_alone(
    tmp_path: Path, kind: str, victim: str, index: int, step: int
) -> None:
    folder = write_pictures(tmp_path / "pictures", ["one", "two", "three"])

    def fitted(name: str, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
        model = WithAPoisonedImage(
            experts=EXPERTS, width=8, optimizer=functools.partial(torch.optim.Adam, lr=1e-4)
        ).poison("" if name == "healthy" else victim, kind)
        keep = ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=True)
        options |= {"callbacks": [SegmentationMaps(), keep], "enable_checkpointing": True}
        fit(model, folder, epochs=3, logger=CSVLogger(tmp_path, name, version=""), **options)
        table = pd.read_csv(tmp_path / name / "images.csv")
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True), table

    healthy = fitted("healthy")[0]["state_dict"]
    with pytest.warns(UserWarning, match=f"^{victim} diverged at step"):
        one = fitted("one")
    two = fitted("two", strategy="ddp_fork", devices=2)
    pd.testing.assert_frame_equal(one[1], two[1], rtol=0, atol=1e-6)
    assert_same_checkpoint(one[0], two[0])

    state, diverged = two[0]["state_dict"], two[0]["images"]["progress"]["diverged_step"]
    assert (diverged >= 0).tolist() == [i == index for i in range(3)]
    assert diverged[index] == step
    assert two[1]["diverged_step"].notna().tolist() == [i == index for i in range(3)]
    for name in [n for n in state if n.startswith("network.")]:
        assert state[name].isfinite().all()
        assert torch.equal(state[name][index], state[name.replace("network.", "best.", 1)][index])
        others = [i for i in range(3) if i != index]
        torch.testing.assert_close(state[name][others], healthy[name][others], rtol=0, atol=1e-6)


def test_two_processes_stop_when_every_image_has_diverged(run: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(ProcessRaisedException, match="DivergenceError: all 3 images diverged"):
        run("fit", *words, "--model.optimizer.init_args.lr=1e3", *TWO)


def test_more_processes_than_images_are_refused(run: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(ProcessRaisedException, match="ConfigError: trainer.devices.*2 processes for 1 samples"):
        run("fit", *words, "--data.images=one.png", *TWO)
