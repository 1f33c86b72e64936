"""What a run has by default, what turns it off, and what it does where there is nothing to monitor."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks import GridExtension, LinearProbe
from callbacks.checkpoints import BestCheckpoint
from framework.data import spread
from framework.errors import ConfigError
from tests.helpers.small import Line, PointsData, quiet
from tests.kmunet_words import TINY_KMUNET

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"


def kept(cli) -> set[str]:
    return {p.name for p in Path(cli.trainer.log_dir, "checkpoints").glob("*.ckpt")}


def test_checkpoints_can_be_turned_off(run, tiny, capsys) -> None:
    run("fit", *tiny, "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false")
    assert not list(Path().rglob("*.ckpt"))
    assert "best checkpoint" not in capsys.readouterr().out


def test_barebones_runs(run, tiny) -> None:
    words = [w for w in tiny if "progress_bar" not in w and "model_summary" not in w and "sanity" not in w]
    cli = run("fit", *words, "--trainer.max_epochs=1", "--trainer.barebones=true")
    assert cli.trainer.state.finished
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize("nothing", ["--trainer.limit_val_batches=0", "--data.val_fraction=0"])
def test_without_validation_best_is_chosen_in_training(run, tiny, nothing, capsys) -> None:
    cli = run("fit", *tiny, "--trainer.max_epochs=2", nothing)
    assert {"best.ckpt", "last.ckpt"} <= kept(cli)
    assert "best.ckpt (train/loss" in capsys.readouterr().out


def test_a_users_checkpoint_stands_beside_best_and_last(run, tiny, capsys) -> None:
    mine = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine"]
    cli = run("fit", *tiny, "--trainer.max_epochs=1", *mine)
    assert kept(cli) == {"best.ckpt", "last.ckpt", "mine.ckpt"}
    printed = capsys.readouterr().out
    assert printed.count("best checkpoint:") == 1
    assert "best.ckpt (val/iou" in printed


def test_the_summary_has_no_column_of_zeros(run, tiny, capsys) -> None:
    words = [w for w in tiny if "model_summary" not in w]
    run("fit", *words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    printed = capsys.readouterr().out
    assert "trainable parameters" in printed
    assert "FLOPs" not in printed


# ---------------------------------------------------------------------- sparse validation


class Rates(Callback):
    """The learning rate of every epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_bare_plateau_scheduler_waits_for_fresh_figures(tmp_path) -> None:
    never = {"threshold": 1e9, "threshold_mode": "abs", "patience": 0, "factor": 0.5}
    rates = Rates()
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1.0}}
    module = Line(optimizer=adam, lr_scheduler={"class_path": PLATEAU, "init_args": never})
    trainer = quiet(tmp_path, max_epochs=8, check_val_every_n_epoch=3, num_sanity_val_steps=0, callbacks=[rates])
    trainer.fit(module, PointsData(batch_size=5))
    # the figures of epochs 2 and 5: the first sets the mark, the second does not beat it
    assert rates.seen == [1.0] * 6 + [0.5] * 2


def test_a_plateau_scheduler_without_validation_is_refused(tmp_path) -> None:
    module = Line(lr_scheduler={"class_path": PLATEAU})
    with pytest.raises(ConfigError, match=r"watches val/loss, but nothing is validated"):
        quiet(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, PointsData(batch_size=5))


def test_grid_extension_waits_for_fresh_figures(run) -> None:
    grow = ["--trainer.callbacks=GridExtension", "--trainer.callbacks.monitor=val/loss",
            "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1e9"]  # fmt: skip
    cli = run("fit", *TINY_KMUNET, "--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=3", *grow)
    (extension,) = [c for c in cli.trainer.callbacks if isinstance(c, GridExtension)]
    assert extension.done == [6]  # epochs 2 and 5 are validated; the second figure is no better
    with pytest.raises(ConfigError, match=r"GridExtension.monitor: 'val/los' is not logged"):
        run("fit", *TINY_KMUNET, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3",
            "--trainer.callbacks=GridExtension", "--trainer.callbacks.monitor=val/los")  # fmt: skip


# ---------------------------------------------------------------------- samples


def test_a_last_batch_of_one_sample_is_left_out_where_batch_norm_cannot_train_on_it(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(Line(), PointsData(batch_size=3))
    assert trainer.global_step == 3
    trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        trainer.fit(Line(), PointsData(batch_size=3, drop_last=False))

    class Plain(Line):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.Identity()

    for drop, steps in ((None, 4), (True, 3), (False, 4)):
        trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
        trainer.fit(Plain(), PointsData(batch_size=3, drop_last=drop))
        assert trainer.global_step == steps
    with pytest.raises(ConfigError, match=r"data\.drop_last: leaves nothing of 10 training samples"):
        quiet(tmp_path, max_epochs=1).fit(Plain(), PointsData(batch_size=11, drop_last=True))


def test_samples_are_spread_over_a_sorted_dataset() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 2
    chosen = spread(82, 12, labels)
    assert pd.Series([labels[i] for i in chosen]).value_counts().to_dict() == {0: 5, 1: 5, 2: 2}
    assert spread(82, 12, labels) == chosen
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert len({i // 25 for i in spread(100, 16)}) == 4


class Sorted(torch.utils.data.Dataset):
    """Three classes, one after the other."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index):
        label = index // 10
        return {"image": torch.full((3, 2, 2), float(label)), "label": torch.tensor(label)}


class Features(torch.nn.Module):
    device = torch.device("cpu")

    def features(self, image):
        return image.mean((2, 3))


def test_a_probe_of_few_images_sees_every_class() -> None:
    _, labels = LinearProbe()._features(Features(), Sorted(), 9)
    assert sorted(set(labels.tolist())) == [0, 1, 2]


def test_the_best_checkpoint_is_a_class_of_its_own() -> None:
    assert BestCheckpoint("val/iou", "max").state_key != ModelCheckpoint(monitor="val/iou", mode="max").state_key


# ---------------------------------------------------------------------- names


def test_a_hook_called_as_what_lightning_sets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Mine\.batch_size: .* call the hook samples_in"):
        type("Mine", (Line,), {"batch_size": lambda self, batch: 1})
