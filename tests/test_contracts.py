"""What every method inherits: exact resume, plain hyper-parameters, the same figures on any number of ranks."""

import functools
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from datamodules import SquaresDataModule
from framework.data import BaseDataModule
from framework.distributed import EpochIndex, EpochSampler, UnpaddedDistributedSampler, checksum
from framework.errors import CheckpointError, ConfigError, DivergenceError
from framework.method import BaseMethod
from framework.resume import apply_changed_settings
from models import KOriginsSegmentation


class Points(Dataset):
    """A line with noise: 10 samples."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([float(index) / 10])
        return {"image": x, "label": 3 * x + 1, "index": torch.tensor(int(index))}


class PointsData(BaseDataModule):
    def configure_dataset(self, split: str) -> Dataset:
        return Points()


class Line(BaseMethod):
    """The smallest method."""

    def __init__(self, width: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.layer = torch.nn.Linear(1, width)

    def step(self, batch, split):
        prediction = self.layer(batch["image"])
        return {"loss": torch.nn.functional.mse_loss(prediction, batch["label"])}

    def update_metrics(self, metrics, outputs, batch) -> None:
        pass


def quiet(tmp_path: Path, **kwargs) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**defaults, "default_root_dir": tmp_path, **kwargs})


# ---------------------------------------------------------------------- resume


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


SCHEDULER = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=0.5"]


# a figure that has improved by less than 1e9 is a plateau: the rate falls after every other epoch
PLATEAU = ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss",
           "--model.lr_scheduler.patience=1", "--model.lr_scheduler.threshold_mode=abs",
           "--model.lr_scheduler.threshold=1e9"]  # fmt: skip


@pytest.mark.parametrize("extra", [[], SCHEDULER, PLATEAU], ids=["constant", "scheduler", "plateau"])
def test_resuming_at_an_epoch_end_equals_the_uninterrupted_run(run, tiny, extra) -> None:
    words = [*tiny, *extra, "--trainer.log_every_n_steps=1"]
    whole = run("fit", *words, "--trainer.max_epochs=4", "--name=whole")
    half = run("fit", *words, "--trainer.max_epochs=2", "--name=half")
    rest = run(
        "fit",
        *words,
        "--trainer.max_epochs=4",
        "--name=rest",
        "--ckpt_path",
        f"{half.trainer.log_dir}/checkpoints/last.ckpt",
    )
    a, b = last_weights(Path(whole.trainer.log_dir)), last_weights(Path(rest.trainer.log_dir))
    assert checksum(a) == checksum(b)
    assert whole.trainer.optimizers[0].param_groups[0]["lr"] == rest.trainer.optimizers[0].param_groups[0]["lr"]
    assert whole.trainer.global_step == rest.trainer.global_step
    curves = [pd.read_csv(Path(c.trainer.log_dir) / "metrics.csv") for c in (whole, rest)]
    ends = [c[["epoch", "val/iou", "val/loss"]].dropna().set_index("epoch") for c in curves]
    assert list(ends[1].index) == [2, 3]
    pd.testing.assert_frame_equal(ends[0].loc[[2, 3]], ends[1])


def test_resuming_in_the_middle_of_an_epoch_starts_it_again_and_says_so(run, tiny, capsys) -> None:
    words = [*tiny, "--trainer.max_epochs=2"]
    middle = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
              "--trainer.callbacks.every_n_train_steps=3",
              "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}"]  # fmt: skip
    run("fit", *words, *middle, "--name=first")
    checkpoints = sorted(Path("runs/first/version_0/checkpoints").glob("step=*.ckpt"))
    assert [p.stem for p in checkpoints] == ["step=3", "step=6"]
    capsys.readouterr()
    cli = run("fit", *words, "--name=second", "--ckpt_path", str(checkpoints[1]))
    assert "middle of epoch 1: epoch 1 starts again" in capsys.readouterr().out
    # 4 steps an epoch: 6 steps taken, then the whole second epoch
    assert cli.trainer.global_step == 10


def test_ctrl_c_leaves_a_checkpoint_that_resumes(run, tiny, tmp_path, capsys) -> None:
    (tmp_path / "interrupting.py").write_text(
        "from lightning.pytorch import Callback\n\n"
        "class PressCtrlC(Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        "        if trainer.current_epoch == 1 and batch_idx == 1:\n"
        "            raise KeyboardInterrupt\n"
    )
    listening = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run("fit", *tiny, "--trainer.max_epochs=3", "--trainer.callbacks+=interrupting.PressCtrlC")
    printed = capsys.readouterr().out
    path = Path("runs/korigins/quickstart/version_0/checkpoints/interrupted.ckpt")
    assert path.is_file()
    assert f"--ckpt_path {path}" in printed
    assert signal.getsignal(signal.SIGINT) is listening
    cli = run("fit", *tiny, "--trainer.max_epochs=3", "--ckpt_path", str(path))
    assert cli.trainer.current_epoch == 3
    assert cli.trainer.global_step == 6 + 8


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good_checkpoint(run, tiny) -> None:
    words = [*tiny, "--trainer.max_epochs=3", "--model.optimizer.lr=1e30"]
    with pytest.raises(
        DivergenceError, match=r"the loss is \w+ at step [12] \(epoch 0\); no checkpoint had been written"
    ):
        run("fit", *words)


class BreaksInEpochOne(Line):
    def step(self, batch, split):
        outputs = super().step(batch, split)
        return {"loss": outputs["loss"] * (float("nan") if self.current_epoch == 1 else 1.0)}


def test_divergence_names_the_best_checkpoint_and_leaves_it(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=3)
    with pytest.raises(DivergenceError, match=r"at step 3 \(epoch 1\); the last good checkpoint is .*ckpt"):
        trainer.fit(BreaksInEpochOne(), PointsData(batch_size=4))
    kept = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


# ---------------------------------------------------------------------- resume with other settings


def test_the_command_line_wins_over_the_checkpoint_in_fit_too(run, tiny) -> None:
    first = ["--model.optimizer.lr=1e-3", "--model.origin_lr=7", *SCHEDULER]
    cli = run("fit", *tiny, *first, "--trainer.max_epochs=2")
    last = f"{cli.trainer.log_dir}/checkpoints/last.ckpt"
    new = ["--model.optimizer.lr=1e-5", "--model.origin_lr=3", "--model.lr_scheduler.gamma=1.0"]
    cli = run("fit", *tiny, *new, "--trainer.max_epochs=3", "--ckpt_path", last)
    rates = {g["name"]: g["lr"] for g in cli.trainer.optimizers[0].param_groups}
    assert rates == {"convolutions": 1e-5, "origins": 3.0}
    scheduler = cli.trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.gamma, scheduler.base_lrs, scheduler.last_epoch) == (1.0, [1e-5, 3.0], 3)
    # the next resume has nothing to change
    last = f"{cli.trainer.log_dir}/checkpoints/last.ckpt"
    cli = run("fit", *tiny, "--trainer.max_epochs=4", "--ckpt_path", last)
    assert {g["name"]: g["lr"] for g in cli.trainer.optimizers[0].param_groups} == rates


def spec(name: str, **init_args) -> dict:
    return {"class_path": name if "." in name else f"torch.optim.lr_scheduler.{name}", "init_args": init_args}


def fit_line(tmp_path: Path, epochs: int, ckpt_path: str | None = None, **kwargs) -> Trainer:
    """A fit of 3 steps an epoch; `ckpt_path` is taken up where it ended."""
    trainer = quiet(tmp_path, max_epochs=epochs, callbacks=[ModelCheckpoint(save_on_train_epoch_end=True)])
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": kwargs.pop("lr", 0.1), **kwargs.pop("adam", {})}}
    trainer.fit(Line(**{"optimizer": adam, **kwargs}), PointsData(batch_size=4), ckpt_path=ckpt_path)
    return trainer


WARMUP = "framework.schedules.WarmupCosine"
PER_STEP = {"lr_interval": "step"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"lr": 0.02, "adam": {"betas": (0.7, 0.8), "weight_decay": 0.1}}),
        ({"lr_scheduler": spec("StepLR", step_size=1, gamma=0.5)}, {"lr_scheduler": spec("StepLR", step_size=2)}),
        ({"lr_scheduler": spec("CosineAnnealingLR", T_max=9)}, {"lr_scheduler": spec("CosineAnnealingLR", T_max=20)}),
        ({"lr_scheduler": spec("MultiStepLR", milestones=[1, 3])},
         {"lr": 0.3, "lr_scheduler": spec("MultiStepLR", milestones=[2, 5])}),
        ({"lr_scheduler": spec(WARMUP, total=8, warmup=2)}, {"lr_scheduler": spec(WARMUP, total=30, warmup=5)}),
        ({"lr_scheduler": spec("OneCycleLR", max_lr=0.1, total_steps=20), **PER_STEP},
         {"lr_scheduler": spec("OneCycleLR", max_lr=0.3, total_steps=40), **PER_STEP}),
        ({"lr_scheduler": spec("ExponentialLR", gamma=0.9)},
         {"lr_scheduler": spec("ExponentialLR", gamma=0.9), **PER_STEP}),
        ({}, {"lr_scheduler": spec("ExponentialLR", gamma=0.9)}),
        ({"lr_scheduler": spec("ExponentialLR", gamma=0.9)}, {}),
        ({"lr_scheduler": spec("ExponentialLR", gamma=0.9)}, {"lr_scheduler": spec(WARMUP, total=30, warmup=5)}),
    ],
    ids=["constant", "step", "cosine", "multi", "lambda", "one_cycle", "interval", "added", "removed", "another"],
)  # fmt: skip
def test_changed_settings_hold_at_the_checkpoints_position(tmp_path, old, new) -> None:
    half = fit_line(tmp_path, 2, **old)
    path = half.checkpoint_callback.best_model_path
    resumed, whole = fit_line(tmp_path, 4, path, **new), fit_line(tmp_path, 4, **new)
    group, expected = (dict(t.optimizers[0].param_groups[0]) for t in (resumed, whole))
    del group["params"], expected["params"]
    assert group == expected
    assert resumed.optimizers[0].state_dict()["state"][0]["step"] == 3 * 4


def test_changed_rates_keep_what_a_plateau_has_taken_off(tmp_path) -> None:
    plateau = {"monitor": "val/loss", "threshold": 1e9, "threshold_mode": "abs", "patience": 0, "factor": 0.5}
    name = "lightning.pytorch.cli.ReduceLROnPlateau"
    half = fit_line(tmp_path, 3, lr_scheduler=spec(name, **plateau))
    assert half.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**2
    changed = spec(name, **{**plateau, "factor": 0.1})
    rest = fit_line(tmp_path, 4, half.checkpoint_callback.best_model_path, lr=0.01, lr_scheduler=changed)
    # reduced once by a half before the checkpoint, then by a tenth in each of two epochs
    assert rest.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5 * 0.1 * 0.1)
    assert rest.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_settings_that_cannot_be_taken_over_are_refused(tmp_path) -> None:
    class TwoGroups(Line):
        def parameter_groups(self):
            return [{"params": [p]} for p in self.parameters()]

    path = fit_line(tmp_path, 2).checkpoint_callback.best_model_path
    with pytest.raises(ConfigError, match=r"model\.optimizer: the checkpoint holds the state of a torch.*Adam, which"):
        fit_line(tmp_path, 3, path, optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}})
    short = spec("OneCycleLR", max_lr=0.1, total_steps=4)
    with pytest.raises(ConfigError, match=r"model\.lr_scheduler: cannot be taken to the checkpoint's position, step 6"):
        fit_line(tmp_path, 3, path, lr_scheduler=short, lr_interval="step")
    content = torch.load(path, weights_only=True)
    with pytest.raises(ConfigError, match=r"parameter groups of \[2\] tensors, the model now has \[1, 1\]"):
        apply_changed_settings(content, TwoGroups()._build_optimizer, {})
    del content["optimizer_settings"]
    with pytest.raises(ConfigError, match=r"model\.optimizer: the checkpoint had .* does not say how"):
        apply_changed_settings(content, Line()._build_optimizer, {"optimizer": "another"})


# ---------------------------------------------------------------------- hyper-parameters


def test_a_model_built_with_partials_saves_loads_and_resumes(tmp_path) -> None:
    def build() -> Line:
        return Line(
            width=1,
            optimizer=functools.partial(torch.optim.AdamW, lr=0.02, betas=(0.8, 0.9)),
            lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1),
        )

    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(build(), PointsData(batch_size=4))
    path = trainer.checkpoint_callback.best_model_path
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    assert stored["optimizer"] == {
        "class_path": "torch.optim.adamw.AdamW",
        "init_args": {"lr": 0.02, "betas": [0.8, 0.9]},
    }
    loaded = Line.load_from_checkpoint(path, weights_only=True)
    optimizer = loaded.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.02
    again = quiet(tmp_path, max_epochs=2)
    again.fit(loaded, PointsData(batch_size=4), ckpt_path=path)
    assert again.global_step == 6


def test_a_command_line_checkpoint_loads_in_python_with_weights_only(run, tiny) -> None:
    cli = run("fit", *tiny, "--trainer.max_epochs=1", "--model.optimizer.lr=0.5")
    loaded = KOriginsSegmentation.load_from_checkpoint(
        cli.trainer.checkpoint_callback.best_model_path, weights_only=True
    )
    groups = loaded.configure_optimizers().param_groups
    assert [g["lr"] for g in groups] == [0.5, 100.0]
    assert checksum(loaded.state_dict()) == checksum(cli.model.state_dict())


def test_a_value_without_plain_form_is_left_out_with_a_warning() -> None:
    class Odd(Line):
        def __init__(self, module: torch.nn.Module | None = None) -> None:
            super().__init__()

    with pytest.warns(UserWarning, match="argument 'module'.*has no plain form"):
        model = Odd(torch.nn.ReLU())
    assert "module" not in model.hparams


def test_a_checkpoint_of_another_class_is_refused_in_python_too(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(Line(), PointsData())

    class Other(Line):
        pass

    with pytest.raises(CheckpointError, match=r"holds a .*\.Line, but the model is a .*Other"):
        quiet(tmp_path, max_epochs=2).fit(Other(), PointsData(), ckpt_path=trainer.checkpoint_callback.best_model_path)


def test_parameter_groups_reach_the_optimizer() -> None:
    model = KOriginsSegmentation(rfl=8, width=2, bias_lr=0.3, origin_lr=50.0)
    groups = {g["name"]: g for g in model.configure_optimizers().param_groups}
    assert {name: g["lr"] for name, g in groups.items()} == {"convolutions": 1e-4, "biases": 0.3, "origins": 50.0}
    counted = [p for g in groups.values() for p in g["params"]]
    assert len({id(p) for p in counted}) == len(counted) == len(list(model.parameters()))
    frozen = KOriginsSegmentation(rfl=8, width=2, trainable_origins=False)
    assert [g["name"] for g in frozen.configure_optimizers().param_groups] == ["convolutions"]


# ---------------------------------------------------------------------- samplers


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 40), ranks=st.integers(1, 5))
def test_unpadded_samplers_share_out_every_sample_once(length, ranks) -> None:
    parts = [list(UnpaddedDistributedSampler(range(length), ranks, r)) for r in range(ranks)]
    assert sorted(i for part in parts for i in part) == list(range(length))
    assert [len(UnpaddedDistributedSampler(range(length), ranks, r)) for r in range(ranks)] == [len(p) for p in parts]


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 40), ranks=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_training_order_is_numpys_permutation_of_seed_and_epoch(length, ranks, seed, epoch) -> None:
    samplers = [EpochSampler(range(length), ranks, r, seed=seed) for r in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    parts = [list(s) for s in samplers]
    assert len({len(p) for p in parts}) == 1
    order = [i for column in zip(*parts, strict=True) for i in column]
    assert order[:length] == np.random.default_rng([seed, epoch]).permutation(length).tolist()
    assert all(i.epoch == epoch for i in order)


def test_an_epoch_index_survives_the_way_to_a_worker() -> None:
    copy = pickle.loads(pickle.dumps(EpochIndex(3, 7)))
    assert (copy, copy.epoch) == (3, 7)


# ---------------------------------------------------------------------- one process and two


@pytest.mark.parametrize("samples", [7, 4])
def test_test_figures_are_the_same_on_one_process_and_on_two(run, tiny, samples) -> None:
    words = [*tiny, f"--data.test_images={samples}", "--data.eval_batch_size=2"]
    one = run("test", *words)
    two = run("test", *words, "--trainer.strategy=ddp_fork", "--trainer.devices=2")
    alone, pair = one.trainer.callback_metrics, two.trainer.callback_metrics
    assert "test/iou_batch" in alone
    assert set(pair) == set(alone) - {"test/iou_batch"}
    for name in pair:
        if name == "test/loss":
            assert float(pair[name]) == pytest.approx(float(alone[name]), rel=1e-6)
        else:
            assert float(pair[name]) == float(alone[name])  # ratios of equal counts


def test_fit_on_two_processes_with_uneven_validation_and_buffers(run, tiny) -> None:
    # 14 images: 10 train, 4 validate; with batches of 3 rank 0 and 1 would differ by padding or hang on BatchNorm
    cli = run("fit", *tiny, "--trainer.max_epochs=2", "--data.val_fraction=0.21", "--data.eval_batch_size=1",
              "--model.batch_norm=true", "--trainer.strategy=ddp_fork", "--trainer.devices=2")  # fmt: skip
    path = f"{cli.trainer.log_dir}/checkpoints/last.ckpt"
    again = run(
        "validate",
        *tiny,
        "--data.val_fraction=0.21",
        "--data.eval_batch_size=1",
        "--model.batch_norm=true",
        "--ckpt_path",
        path,
    )
    assert float(again.trainer.callback_metrics["val/iou"]) == float(cli.trainer.callback_metrics["val/iou"])


class FewData(BaseDataModule):
    def configure_dataset(self, split: str) -> Dataset:
        return torch.utils.data.Subset(Points(), range(10 if split == "train" else 1))


@pytest.mark.parametrize(("verb", "split"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_fewer_evaluation_samples_than_ranks_are_refused_on_every_rank(tmp_path, verb, split) -> None:
    for rank in range(2):
        data = FewData(batch_size=4)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, limit_val_batches=1.0)
        with pytest.raises(ConfigError, match=rf"trainer\.devices.* {split} split, got 2 processes for 1 samples"):
            data.setup(verb)
    trainer = quiet(tmp_path, max_epochs=1, strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match=r"ConfigError: trainer\.devices"):
        getattr(trainer, verb)(Line(), FewData(batch_size=4))


@pytest.mark.slow
def test_the_real_command_gives_the_same_figures_on_two_processes(tmp_path, tiny) -> None:
    import re
    import subprocess
    import sys

    figures = []
    for extra in ([], ["--trainer.strategy=ddp", "--trainer.devices=2"]):
        command = [sys.executable, "-m", "framework", "test", *tiny, *extra]
        environment = {**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=True
        )
        figures.append(re.search(r"test/iou\s*\D*([\d.]+)", done.stdout).group(1))
    assert figures[0] == figures[1]


# ---------------------------------------------------------------------- bad arguments of the base classes


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size: expected at least 1, got 0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size: expected at least 1, got 0"),
        ({"num_workers": -1}, r"data\.num_workers"),
        ({"seed": -1}, r"data\.seed"),
    ],
)
def test_bad_loader_arguments_are_named(kwargs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SquaresDataModule(**kwargs)


def test_an_optimizer_that_is_none_of_these_is_named() -> None:
    with pytest.raises(ConfigError, match="optimizer: expected a callable or"):
        Line(optimizer=3)
    with pytest.raises(ConfigError, match="optimizer: cannot import 'torch.optim.Adamm'"):
        Line(optimizer={"class_path": "torch.optim.Adamm"})
