"""What every method inherits: exact resume, plain hyper-parameters, the same figures on any number of ranks."""

import functools
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.utils.data import Dataset

from datamodules import SquaresDataModule
from framework.base import BaseDataModule, BaseMethod
from framework.distributed import EpochIndex, EpochSampler, UnpaddedDistributedSampler, checksum
from framework.errors import CheckpointError, ConfigError, DivergenceError
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


@pytest.mark.parametrize("extra", [[], SCHEDULER], ids=["constant", "scheduler"])
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


def test_resuming_in_the_middle_of_an_epoch_starts_it_again_and_says_so(run, tiny, caplog) -> None:
    words = [*tiny, "--trainer.max_epochs=2"]
    middle = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
              "--trainer.callbacks.every_n_train_steps=3",
              "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}"]  # fmt: skip
    run("fit", *words, *middle, "--name=first")
    checkpoints = sorted(Path("runs/first/version_0/checkpoints").glob("step=*.ckpt"))
    assert [p.stem for p in checkpoints] == ["step=3", "step=6"]
    with caplog.at_level("INFO"):
        cli = run("fit", *words, "--name=second", "--ckpt_path", str(checkpoints[1]))
    assert "middle of epoch 1: epoch 1 starts again" in caplog.text
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
    with pytest.raises(SystemExit):
        run("fit", *tiny, "--trainer.max_epochs=3", "--trainer.callbacks+=interrupting.PressCtrlC")
    printed = capsys.readouterr().out
    path = Path("runs/korigins/quickstart/version_0/checkpoints/interrupted.ckpt")
    assert path.is_file()
    assert f"--ckpt_path {path}" in printed
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
