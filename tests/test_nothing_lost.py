"""Nothing is lost: files are whole, nothing that is there is replaced, a run that is stopped goes on where it was."""

import errno
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, csv_logs
from lightning.pytorch.loggers.tensorboard import TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset

from callbacks import BestCheckpoint, LastCheckpoint
from framework.checkpoints import WholeCheckpoints, check_whole, load_checkpoint
from framework.commands.precedence import layer_arguments
from framework.commands.run_folder import LastingCSVLogger, claimed_version, devices_of_torchrun
from framework.errors import CheckpointError, ConfigError
from framework.outputs import optional_output, optional_threads
from tests.helpers.small import Points
from tests.test_contracts import Line, PointsData, quiet

OLD = Path(__file__).parent / "data" / "before_the_move"
QUIET = ["--trainer.enable_progress_bar=false"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def content(value: float = 0.0) -> dict:
    return {"state_dict": {"weight": torch.full((1000,), float(value))}}


# ---------------------------------------------------------------------- checkpoints


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch) -> None:
    target = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(1), target)
    save = torch.save

    def half(values, file):
        save(values, file)
        file.truncate(100)
        full_disk()

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match=r"last.ckpt: cannot be written \(No space left .*as it was before"):
        WholeCheckpoints().save_checkpoint(content(2), target)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert float(load_checkpoint(target)["state_dict"]["weight"][0]) == 1


def test_every_trainer_writes_whole_files_whatever_tmpdir_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path / "kept")])
    trainer.fit(Line(), PointsData(batch_size=4))
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    check_whole(next((tmp_path / "kept").iterdir()))


def test_a_writer_of_the_users_own_stays(tmp_path) -> None:
    class Own(WholeCheckpoints):
        pass

    trainer = quiet(tmp_path, max_epochs=1, plugins=[Own()])
    trainer.fit(Line(), PointsData(batch_size=4))
    assert type(trainer.strategy.checkpoint_io) is Own


def test_a_flipped_bit_is_seen(tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(1.0), path)
    data = bytearray(path.read_bytes())
    place = data.find(b"\x00\x00\x80\x3f" * 8) + 16
    data[place] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch itself does not look
    with pytest.raises(CheckpointError, match="checksum of .* does not match"):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 10, 1000, -1])
def test_a_cut_file_is_seen(tmp_path, length) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(1.0), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ([1], "is not a Lightning checkpoint"), ({"weight": torch.ones(1)}, "is not a Lightning checkpoint"),
        ({"state_dict": [1]}, "is not a Lightning checkpoint"), ({"state_dict": {1: 1}}, "names that are no text"),
        ({**content(), "pytorch-lightning_version": 2}, "pytorch-lightning_version is 2, expected text"),
        ({**content(), "loops": []}, "loops is a list, which no fit has written"),
    ],
)  # fmt: skip
def test_a_whole_file_that_is_no_checkpoint_is_said(tmp_path, inside, message) -> None:
    torch.save(inside, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("word", ["best", "last"])
def test_best_and_last_pass_over_a_damaged_file(tmp_path, monkeypatch, word) -> None:
    monkeypatch.chdir(tmp_path)
    for age, (version, name) in enumerate([(1, word), (1, "other"), (0, word)]):
        path = Path(f"runs/x/version_{version}/checkpoints/{name}.ckpt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content(age), path)
        os.utime(path, (1e9 - age, 1e9 - age))

    def found():
        return layer_arguments(["test", "--name=x", "--ckpt_path", word], ["test"], Path("runs"))

    assert found().checkpoint == Path(f"runs/x/version_1/checkpoints/{word}.ckpt")
    Path(f"runs/x/version_1/checkpoints/{word}.ckpt").write_bytes(b"PK")
    layers = found()
    assert layers.checkpoint == Path("runs/x/version_1/checkpoints/other.ckpt")
    assert any("passed over" in note for note in layers.notes)
    Path("runs/x/version_1/checkpoints/other.ckpt").write_bytes(b"")
    assert found().checkpoint == Path(f"runs/x/version_0/checkpoints/{word}.ckpt")
    Path(f"runs/x/version_0/checkpoints/{word}.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        found()


def test_last_of_a_run_that_was_killed_before_it_is_the_runs_best_and_not_an_older_runs(tmp_path) -> None:
    for age, name in (
        (2, "version_0/checkpoints/last"),
        (1, "version_0/checkpoints/best"),
        (0, "version_1/checkpoints/best"),
    ):
        path = tmp_path / f"x/{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content(age), path)
        os.utime(path, (1e9 - age, 1e9 - age))
    layers = layer_arguments(["test", "--name=x", "--ckpt_path=last"], ["test"], tmp_path)
    assert layers.checkpoint == tmp_path / "x/version_1/checkpoints/best.ckpt"
    assert any("--ckpt_path last: taking" in note for note in layers.notes)


# ---------------------------------------------------------------------- the best of all


class Scripted(Line):
    """Whose loss in evaluation is written down for every epoch."""

    figures_of_epochs = (5.0, 2.0, 4.0, 3.0)

    def step(self, batch, split):
        loss = super().step(batch, split)["loss"]
        return {"loss": loss if split == "train" else loss * 0 + self.figures_of_epochs[self.current_epoch]}


def keepers(folder: Path) -> list[ModelCheckpoint]:
    common = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(folder, filename="best", monitor="val/loss", **common)
    return [best, ModelCheckpoint(folder, filename="last", **common)]


@pytest.mark.parametrize("where", ["old", "new"], ids=["the same folder", "another folder"])
@pytest.mark.parametrize(("figures", "epoch", "score"), [((5, 2, 4, 3), 1, 2.0), ((5, 2, 4, 1), 3, 1.0)])
def test_best_is_the_best_of_all_resumptions(tmp_path, monkeypatch, where, figures, epoch, score) -> None:
    monkeypatch.setattr(Scripted, "figures_of_epochs", figures)
    last = None
    for until, folder in ((2, "old"), (3, where), (4, where if where == "old" else "newest")):
        callbacks = keepers(tmp_path / folder)
        quiet(tmp_path, max_epochs=until, callbacks=callbacks).fit(Scripted(), PointsData(batch_size=4), ckpt_path=last)
        last = tmp_path / folder / "last.ckpt"
    assert float(callbacks[0].best_model_score) == score
    assert Path(callbacks[0].best_model_path) == last.with_name("best.ckpt")
    assert load_checkpoint(last.with_name("best.ckpt"))["epoch"] == epoch
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


class Climbs(Scripted):
    """Whose loss in training is written down for every epoch."""

    def step(self, batch, split):
        loss = Line.step(self, batch, split)["loss"]
        return {"loss": loss * 0 + self.figures_of_epochs[self.current_epoch]}


class WithoutValidation(PointsData):
    def configure_dataset(self, split):
        return super().configure_dataset(split) if split == "train" else []


@pytest.mark.parametrize("kind", [PointsData, WithoutValidation])
def test_best_of_a_run_without_validation_is_the_best_of_all_resumptions(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setattr(Climbs, "figures_of_epochs", (5.0, 2.0, 4.0, 3.0))
    last = None
    for until in (2, 4):
        best = BestCheckpoint()
        words = {"limit_val_batches": 0} if kind is PointsData else {}
        trainer = quiet(tmp_path, max_epochs=until, callbacks=[best, LastCheckpoint()], **words)
        trainer.fit(Climbs(), kind(batch_size=4), ckpt_path=last)
        last = tmp_path / "checkpoints" / "last.ckpt"
        assert (best.monitor, float(best.best_model_score)) == ("train/loss", 2.0)
        assert load_checkpoint(last.with_name("best.ckpt"))["epoch"] == 1
    # with a validation it chooses by what it was asked for
    trainer.limit_val_batches, trainer.fit_loop.max_epochs = 1.0, 5
    monkeypatch.setattr(Climbs, "figures_of_epochs", (9.0,) * 5)
    trainer.fit(Climbs(), PointsData(batch_size=4))
    assert (best.monitor, float(best.best_model_score)) == ("val/loss", 9.0)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Points(4)[i] for i in range(4)])


@pytest.mark.parametrize("datasets", [[1, 2], {"val": Stream()}, None], ids=["list", "no length", "None"])
def test_a_users_data_module_may_keep_anything_as_its_datasets(tmp_path, datasets) -> None:
    class Own(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=2)

        val_dataloader = train_dataloader

    data, best = Own(), BestCheckpoint()
    data.datasets = datasets  # type: ignore[attr-defined]
    quiet(tmp_path, max_epochs=1, callbacks=[best]).fit(Returning(), data)
    assert best.monitor == "val/loss"
    assert best.best_model_path


class Returning(Line):
    def initialise(self, data) -> None:
        pass


def test_a_checkpoint_names_no_file_that_is_copied_or_removed(tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    callbacks = keepers(tmp_path / "old")
    quiet(tmp_path, max_epochs=1, callbacks=callbacks).fit(Scripted(), PointsData(batch_size=4))
    changed = load_checkpoint(tmp_path / "old" / "last.ckpt")
    state = changed["callbacks"][callbacks[0].state_key]
    state |= {"best_model_path": str(tmp_path / "mine"), "kth_best_model_path": str(tmp_path / "mine")}
    state["best_k_models"] = {str(tmp_path / "mine"): torch.tensor(9.0)}
    torch.save(changed, tmp_path / "old" / "changed.ckpt")
    trainer = quiet(tmp_path, max_epochs=2, callbacks=keepers(tmp_path / "old"))
    trainer.fit(Scripted(), PointsData(batch_size=4), ckpt_path=tmp_path / "old" / "changed.ckpt")
    assert (tmp_path / "mine").read_text() == "mine"


# ---------------------------------------------------------------------- stops inside an epoch


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


@pytest.mark.parametrize("how", ["max_steps", "should_stop", "max_time"])
@pytest.mark.parametrize(
    ("stop", "steps"), [(4, 4 + 6), (5, 5 + 6), (6, 9)], ids=["inside", "one before", "at the end"]
)
def test_an_epoch_that_was_stopped_inside_starts_again(tmp_path, monkeypatch, how, stop, steps) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    ends = {"max_steps": {"max_steps": stop}, "max_time": {"max_time": {"seconds": 1000}}}.get(how, {})
    done = []
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0 if len(done) < stop else 2000)
    monkeypatch.setattr(Line, "on_before_zero_grad", lambda self, optimizer: done.append(0))
    callbacks = [keep, StopsAt(stop)] if how == "should_stop" else [keep]
    quiet(tmp_path, max_epochs=3, min_epochs=0, callbacks=callbacks, **ends).fit(Line(), PointsData(batch_size=4))
    again = quiet(tmp_path, max_epochs=3)
    again.fit(Line(), PointsData(batch_size=4), ckpt_path=tmp_path / "last.ckpt")  # 3 steps an epoch
    assert (again.current_epoch, again.global_step) == (3, steps)


# ---------------------------------------------------------------------- folders


def test_ten_runs_at_once_get_ten_folders(tmp_path) -> None:
    with ThreadPoolExecutor(10) as pool:
        names = list(pool.map(lambda _: claimed_version(tmp_path / "runs" / "mine"), range(10)))
    assert sorted(names) == [f"version_{i}" for i in range(10)]
    assert all((tmp_path / "runs" / "mine" / name).is_dir() for name in names)


def test_a_file_where_the_run_folder_should_be_is_one_message(run, tiny) -> None:
    Path("runs").write_text("mine")
    with pytest.raises(ConfigError, match=r"trainer.default_root_dir: the run folder runs.* cannot be made"):
        run("fit", *tiny, "--trainer.max_epochs=1")
    assert Path("runs").read_text() == "mine"


def test_without_a_logger_nothing_in_the_working_directory_is_replaced(run, tiny) -> None:
    Path("config.yaml").write_text("trainer: {max_epochs: 1}\n")
    run("fit", *tiny, "-c", "config.yaml", "--trainer.logger=false")
    assert Path("config.yaml").read_text() == "trainer: {max_epochs: 1}\n"
    assert {p.name for p in Path().iterdir()} == {"config.yaml", "runs"}
    left = Path("runs/korigins/quickstart/version_0")
    assert {"config.yaml", "checkpoints"} <= {p.name for p in left.iterdir()}
    for version in ("here", "here/version_0"):
        run("fit", *tiny, "-c", "config.yaml", "--trainer.logger=false", "--trainer.default_root_dir=here")
        assert Path(version, "checkpoints", "last.ckpt").is_file()


def test_logs_and_figures_that_cannot_be_written_do_not_end_a_run(run, tiny, monkeypatch) -> None:
    monkeypatch.setattr(CSVLogger, "save", full_disk)
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", full_disk)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.warns(UserWarning, match=r"metrics.csv cannot be written \(No space left on device\)"):
        cli = run("fit", *tiny, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")
    assert cli.trainer.state.finished
    assert Path(cli.trainer.log_dir, "checkpoints", "last.ckpt").is_file()


def test_tensorboards_thread_ends_without_a_traceback(run, tiny, monkeypatch) -> None:
    ended = []
    monkeypatch.setattr("threading.excepthook", ended.append)
    room = iter([None] * 3)  # for what is written at the start

    def write(self, data) -> None:
        next(room, 0) is None or full_disk()

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", write)
    with pytest.warns(UserWarning, match=r"TensorBoard's file in .* cannot be written \(No space left on device\)"):
        cli = run("fit", *tiny, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")
    assert cli.trainer.state.finished
    assert not ended
    thread = threading.Thread(target=full_disk)
    with optional_threads():
        thread.start()
        thread.join()
    assert len(ended) == 1  # another thread's error is not hidden


def test_a_folder_taken_away_while_fitting_does_not_end_the_run(run, tiny) -> None:
    (Path() / "taking.py").write_text(
        "import shutil\n\nfrom lightning.pytorch import Callback\n\n\nclass Takes(Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1:\n            shutil.rmtree(trainer.log_dir)\n"
    )
    cli = run("fit", *tiny, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
              "--trainer.callbacks+=taking.Takes")  # fmt: skip
    assert Path(cli.trainer.log_dir, "checkpoints", "last.ckpt").is_file()


def test_a_run_folder_taken_away_while_hyper_parameters_are_written(tmp_path, monkeypatch) -> None:
    logger = LastingCSVLogger(tmp_path, name="mine", version="version_0")
    logger.log_hyperparams({"width": 2})
    write = csv_logs.save_hparams_to_yaml

    def too_late(*args, **kwargs):
        shutil.rmtree(tmp_path / "mine")
        write(*args, **kwargs)

    monkeypatch.setattr(csv_logs, "save_hparams_to_yaml", too_late)
    with pytest.warns(UserWarning, match=r"metrics.csv cannot be written \(Missing folder"):
        logger.log_hyperparams({"width": 4})
    with pytest.raises(RuntimeError, match="another"), optional_output("x.csv"):
        raise RuntimeError("another")


# ---------------------------------------------------------------------- the saved configuration


def test_the_saved_configuration_of_a_resumed_run_repeats_it(run, tiny) -> None:
    words = [*tiny, *QUIET]
    run("fit", *words, "--trainer.max_epochs=1")
    resumed = run("fit", *words, "--trainer.max_epochs=2", "--ckpt_path", "last")
    again = run("fit", "-c", f"{resumed.trainer.log_dir}/config.yaml")
    assert Path(again.trainer.log_dir) == Path("runs/korigins/quickstart/version_2")
    assert again.trainer.global_step == resumed.trainer.global_step
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())
    assert yaml.safe_load(Path(again.trainer.log_dir, "config.yaml").read_text())["name"] == "korigins/quickstart"


def test_what_the_weights_decide_cannot_be_overridden(run) -> None:
    old = ["-c", str(OLD / "kmunet" / "config.yaml"), "--ckpt_path", str(OLD / "kmunet" / "last.ckpt")]
    with pytest.raises(ConfigError, match=r"model.grid_size: the weights .* were made with 5 .* 7 would"):
        run("test", *old, *QUIET, "--model.grid_size=7")


def test_evaluating_untrained_weights_is_said_and_predict_writes(run, tiny) -> None:
    with pytest.warns(UserWarning, match="no --ckpt_path: test works with the initial, untrained weights"):
        run("test", *tiny)
    with pytest.warns(UserWarning, match="no --ckpt_path: predict works"):
        cli = run("predict", *tiny)
    assert list(Path(cli.trainer.log_dir, "predictions").iterdir())


# ---------------------------------------------------------------------- torchrun


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def test_torchrun_says_how_many_devices_there_are() -> None:
    assert devices_of_torchrun({}, {}) == {}
    assert devices_of_torchrun({}, {"WORLD_SIZE": "4"}) == {}
    everything = {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    assert devices_of_torchrun({"devices": "auto", "strategy": "auto", "num_nodes": 1}, TORCHRUN) == everything
    assert devices_of_torchrun({"devices": 2, "strategy": "fsdp"}, TORCHRUN) == {"num_nodes": 2}
    with pytest.raises(ConfigError, match="torchrun has started 2 processes on this machine, but devices is 1"):
        devices_of_torchrun({"devices": 1}, TORCHRUN)
    with pytest.raises(ConfigError, match="torchrun has started 2 nodes"):
        devices_of_torchrun({"num_nodes": 3}, TORCHRUN)
