"""The command line: precedence, run folders, errors, verbs."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from framework.commands.cli import BuildOnly
from framework.commands.precedence import layer_arguments
from framework.commands.run_folder import LastingTensorBoard, _is_of_the_start, claimed_version, given_back
from framework.errors import CheckpointError, ConfigError, DataError
from framework.main import main


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder, checkpoint) of one tiny fit that the tests of this module share."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["framework"])
        cli = main(["fit", *TINY, "--trainer.max_epochs=2", "--model.origin_lr=7"])
    return folder, Path(folder, cli.trainer.checkpoint_callback.best_model_path)


def test_a_fit_leaves_exactly_these_files(fitted: tuple[Path, Path]) -> None:
    folder, _ = fitted
    run_folder = folder / "runs" / "korigins" / "quickstart" / "version_0"
    names = {p.relative_to(run_folder).as_posix() for p in run_folder.rglob("*") if p.is_file()}
    events = {n for n in names if n.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/segmentation.png",
        "figures/separability.png",
        "figures/training_curves.png",
        "figures/origin_paths.png",
    }


def test_the_saved_config_repeats_the_run(fitted: tuple[Path, Path], run) -> None:
    _folder, checkpoint = fitted
    config = checkpoint.parents[1] / "config.yaml"
    again = run("fit", "-c", str(config))
    old = torch.load(checkpoint.with_name("last.ckpt"), weights_only=True)["state_dict"]
    new = again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key].cpu()) for key in old)


def test_the_command_line_wins_over_the_checkpoint_and_the_checkpoint_over_the_file(fitted, run, tiny, capsys) -> None:
    _, checkpoint = fitted
    # origin_lr: 7 in the checkpoint, default in the file; tile: default in the checkpoint, 64 on the command line
    words = [w for w in tiny if "model.width" not in w and "model.rfl" not in w]
    cli = run("test", *words, "--ckpt_path", str(checkpoint), "--model.tile=64")
    assert cli.model.origin_lr == 7
    assert cli.model.hparams.width == 2  # the file says 16
    assert cli.model.hparams.tile == 64
    printed = capsys.readouterr().out
    assert "model.width: 2 from the checkpoint (the config file had 16)" in printed
    assert "model.tile: 64 from the command line (the checkpoint had 'auto')" in printed


def test_a_checkpoint_brings_its_class_when_no_config_names_one(fitted, run) -> None:
    _, checkpoint = fitted
    cli = run("test", "--ckpt_path", str(checkpoint), "--data=SquaresDataModule", "--data.side=24", "--data.images=14",
              "--data.preset=rfl_failure", "--data.radius_range=[3,5]", "--data.shapes_per_class=[1,1]",
              "--trainer.accelerator=cpu")  # fmt: skip
    assert type(cli.model).__name__ == "KOriginsSegmentation"
    assert cli.model.origin_lr == 7


def test_a_checkpoint_of_another_class_is_an_error_that_names_both(fitted, run, tiny, tmp_path) -> None:
    _, checkpoint = fitted
    content = torch.load(checkpoint, weights_only=True)
    content["class_path"] = "models.kmunet.method.KMUNet"
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    with pytest.raises(CheckpointError, match=r"holds a models\.kmunet\.method\.KMUNet.*asks for KOriginsSegmentation"):
        run("test", *tiny, "--ckpt_path", str(other))


@pytest.mark.parametrize("word", ["best", "last"])
def test_best_and_last_find_the_newest_run(fitted, word, monkeypatch) -> None:
    from tests.conftest import TINY

    folder, _ = fitted
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["framework"])
    cli = main(["test", *TINY, "--ckpt_path", word])
    assert 0 <= float(cli.trainer.callback_metrics["test/iou"]) <= 1


def test_best_without_a_run_says_so(run, tiny) -> None:
    with pytest.raises(CheckpointError, match=r"no run below runs.korigins.quickstart has a best\.ckpt"):
        run("test", *tiny, "--ckpt_path", "best")


def test_options_of_no_class_say_how_one_is_chosen(run) -> None:
    said = r"option 'root' is not accepted\nno class is chosen: give --data CLASS, -c CONFIG, or --ckpt_path"
    with pytest.raises(ConfigError, match=said):
        run("predict", "--data.root=new")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.widht=3"], r"'widht' is not accepted\ndid you mean .*width"),
        (["--trainer.max_epoch=3"], r"did you mean trainer.max_epochs"),
        (["--model=KOriginSegmentation"], "did you mean KOriginsSegmentation"),
        (["--data=SquareDataModule"], "did you mean SquaresDataModule"),
        (["--model.width=three"], r"model\.width: expected int, got three"),
        (["--model.optimizer=Adamm"], "did you mean Adam"),
        (["--data.preset=mixd"], "did you mean mixed"),
        (["--ckpt_path=nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["-c", "korigins/quikstart"], "did you mean korigins/quickstart"),
    ],
)
def test_mistakes_get_a_short_message(run, tiny, words, message) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        run("fit", *tiny, *words)
    assert len(str(caught.value)) < 900
    assert "Subtypes" not in str(caught.value)


def test_a_mistyped_key_in_a_file(run, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("modle: {class_path: KOriginsSegmentation}\n")
    with pytest.raises(ConfigError, match="modle"):
        run("fit", "-c", "mine.yaml")


def test_a_file_that_is_not_yaml(run, tmp_path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        run("fit", "-c", "broken.yaml")


def test_a_file_that_is_no_checkpoint(run, tiny, tmp_path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        run("test", *tiny, "--ckpt_path", "x.ckpt")


def test_a_mistyped_verb(run) -> None:
    with pytest.raises(ConfigError, match=r"framework ft: no such command; did you mean fit\?"):
        run("ft")


def test_run_folders_are_numbered_and_hold_their_config(run, tiny) -> None:
    for version in (0, 1):
        cli = run("fit", *tiny, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--name=mine")
        folder = Path("runs/mine") / f"version_{version}"
        assert Path(cli.trainer.log_dir) == folder
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        assert saved["model"]["init_args"]["width"] == 2


def test_a_user_class_by_module_path_and_bare_after_import(run, tiny, tmp_path) -> None:
    (tmp_path / "my_module.py").write_text(
        "from models import KOriginsSegmentation\n\nclass MyOwnSegmenter(KOriginsSegmentation):\n    '''Mine.'''\n"
    )
    words = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    words += [w for w in tiny if w not in ("-c", "korigins/quickstart")]
    data = [
        "--data=SquaresDataModule",
        "--data.preset=rfl_failure",
        "--model.num_classes=3",
        "--trainer.accelerator=cpu",
    ]
    cli = run("fit", "--model=my_module.MyOwnSegmenter", *data, *words)
    assert type(cli.model).__name__ == "MyOwnSegmenter"
    cli = run("fit", "--import", "my_module", "--model=MyOwnSegmenter", *data, *words)
    assert type(cli.model).__name__ == "MyOwnSegmenter"


def test_packages_that_hide_ours_are_named(tmp_path, monkeypatch) -> None:
    from framework import main as entry

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "models", raising=False)
    with pytest.raises(ConfigError, match="models at .*models"):
        entry.check_packages()


def test_list_shows_methods_data_callbacks_and_configs(capsys) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("KOriginsSegmentation", "SquaresDataModule", "FigureWriter", "korigins/quickstart"):
        assert name in printed


def test_doctor_finds_this_installation_healthy(capsys) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in printed
    assert "no problem found" in printed


def test_help_needs_no_torch(capsys) -> None:
    assert main([]) == 0
    assert "framework fit -c korigins/quickstart" in capsys.readouterr().out


PLAIN = """
import torch
from lightning.pytorch import LightningModule


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].mean((1, 2, 3))[:, None]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_a_plain_lightning_module_gets_the_last_checkpoint_only(run, tiny, tmp_path) -> None:
    (tmp_path / "plain_module.py").write_text(PLAIN)
    words = [w for w in tiny if not w.startswith(("-c", "korigins", "--model"))]
    cli = run("fit", "--model=plain_module.Plain", "--data=SquaresDataModule", "--data.preset=rfl_failure",
              "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *words)  # fmt: skip
    assert [p.name for p in Path(cli.trainer.log_dir, "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["-c", "korigins/quickstart"], "runs/korigins/quickstart"),
        (["-c", "korigins/quickstart", "--name", "foo"], "runs/foo"),
        (["-c", "korigins/quickstart", "-c", "{name: foo}"], "runs/foo"),
        (["-c", "korigins/quickstart", "-c", "{name: foo}", "--name=bar"], "runs/bar"),
        (["--model", "KOriginsSegmentation"], "runs/KOriginsSegmentation"),
        (["-c", "{model: {class_path: models.KOriginsSegmentation}}"], "runs/KOriginsSegmentation"),
        (["-c", "korigins/quickstart", "--trainer.default_root_dir=out"], "out/korigins/quickstart"),
        (["-c", "{trainer: {default_root_dir: out}}", "--name=foo"], "out/foo"),
    ],
)
def test_best_and_last_look_where_fit_writes(words, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = Path(folder, "version_0", "checkpoints", "last.ckpt")
    there.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, there)
    layers = layer_arguments(["test", *words, "--ckpt_path", "last"], ["test"], Path("runs"))
    assert layers.checkpoint == there


def test_last_finds_a_run_by_its_name(run, tiny) -> None:
    run("fit", *tiny, "--trainer.max_epochs=1", "--trainer.default_root_dir=out", "--name=mine")
    cli = run("validate", *tiny, "--trainer.default_root_dir=out", "--name=mine", "--ckpt_path=last")
    assert cli.trainer.ckpt_path == "out/mine/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("word", ["--ckpt_path=null", "--ckpt_path=~", "--ckpt_path="])
def test_null_is_no_checkpoint_whatever_a_file_says(fitted, run, word, tmp_path) -> None:
    _, checkpoint = fitted
    (tmp_path / "mine.yaml").write_text(f"base: korigins/quickstart\nckpt_path: {checkpoint}\n")
    words = ["test", "-c", "mine.yaml", word]
    layers = layer_arguments(words, ["test"], Path("runs"))
    assert (layers.checkpoint, layers.hparams) == (None, None)
    if word.endswith("null"):
        assert BuildOnly(args=words).config["test"]["ckpt_path"] is None
    (tmp_path / "higher.yaml").write_text("ckpt_path: null\n")
    assert layer_arguments([*words[:3], "-c", "higher.yaml"], ["test"], Path("runs")).checkpoint is None
    assert layer_arguments(words[:3], ["test"], Path("runs")).checkpoint == checkpoint


REFUSED = (ConfigError, DataError)


@pytest.mark.parametrize("logger", ["", "--trainer.logger=false"])
def test_a_run_that_is_refused_takes_no_number(run, tiny, logger, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    words = ["fit", *tiny, "--name=mine", *([logger] if logger else [])]
    empty = [word for word in words if not word.startswith("--data")]
    empty += ["-c", "{data: {class_path: SegmentationDataModule, init_args: {root: data}}}"]
    for wrong in (empty, [*words, "--trainer.devices=no"]):
        with pytest.raises(REFUSED):
            run(*wrong)
        assert not list(Path("runs").glob("mine/*"))
    before = Path("runs/mine/version_0")
    before.mkdir(parents=True)
    (before / "config.yaml").write_text("seed_everything: 3\n")
    with pytest.raises(REFUSED):
        run(*empty)
    assert (before / "config.yaml").read_text() == "seed_everything: 3\n"
    cli = run(*words, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    assert Path("runs/mine/version_1/config.yaml").is_file()
    assert cli.trainer.global_step == 1
    assert [path.name for path in sorted(Path("runs/mine").iterdir())] == ["version_0", "version_1"]


def test_a_run_that_has_left_something_keeps_its_folder(tmp_path) -> None:
    @given_back()
    def ended(left: str, error: BaseException) -> None:
        folder = tmp_path / claimed_version(tmp_path)
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).touch()
        raise error

    for left in ("metrics.csv", "checkpoints/last.ckpt", "config.yaml"):
        with pytest.raises(ConfigError):
            ended(left, ConfigError("later"))
    assert not (tmp_path / "version_2").exists()
    log = LastingTensorBoard(str(tmp_path), name="", version="logs")
    log.log_metrics({"a": 1.0}, 0)
    log.finalize("success")
    (events,) = (tmp_path / "logs").glob("events*")
    assert not _is_of_the_start(events)
    shutil.rmtree(tmp_path / "logs")
    with pytest.raises(KeyboardInterrupt):
        ended("config.yaml", KeyboardInterrupt())
    there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert there == ["version_0/metrics.csv", "version_1/checkpoints/last.ckpt", "version_2/config.yaml"]
