"""Whatever a user types or hands over ends in one message of at most three lines: mistakes and seeded nonsense."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from skimage import io as pictures
from torch.multiprocessing.spawn import ProcessExitedException

from benchmarks.faults.nonsense import JUNK, junk_inside, scrambled
from datamodules import SegmentationDataModule
from framework.commands.messages import LINES, WIDTH, message
from framework.commands.precedence import layer_arguments
from framework.commands.yaml_files import MAX_DEPTH, parse
from framework.errors import ConfigError, FrameworkError
from framework.main import shown
from framework.signals import status_of
from tests.conftest import TINY

FIT = ["fit", *TINY, "--trainer.fast_dev_run=1"]


def is_short(text: str) -> bool:
    return 1 <= len(text.splitlines()) <= LINES and all(len(line) <= WIDTH for line in text.splitlines())


@pytest.fixture
def see(run, capsys) -> Callable[..., tuple[int, str]]:
    """(exit status, message without "error: ") of a command as a user sees it."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = shown(list(words))
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return status, re.split("^error: ", said, flags=re.MULTILINE)[-1].rstrip()

    return call


# ---------------------------------------------------------------------- what was seen, each with what it should say


TRAINER = {
    "accelerator=gpu": "that torch .* sees here|expected",
    "accelerator=warp": "accelerator: expected .*, got 'warp'",
    "devices=0": "devices: expected auto or a number of processes of 1 or more.*, got '?0'?",
    "devices=-1": "devices: expected.*, got '?-1'?",
    "devices=abc": "devices: expected.*, got 'abc'",
    "num_nodes=0": "num_nodes: expected 1 or more.*, got 0",
    "strategy=dddp": "strategy: expected .*, got 'dddp'.*did you mean .*ddp",
    "limit_train_batches=-1": "limit_train_batches: expected.*, got -1",
    "limit_val_batches=2.5": r"limit_val_batches: expected.*, got 2\.5",
    "limit_train_batches=nan": "limit_train_batches: expected.*, got nan",
    "overfit_batches=-1": "overfit_batches: expected .*, got -1",
    "fast_dev_run=-1": "fast_dev_run: expected .*, got -1",
    "check_val_every_n_epoch=0": "check_val_every_n_epoch: expected null or a number of epochs of 1 or more.*, got 0",
    "check_val_every_n_epoch=2.5": r"check_val_every_n_epoch: expected int.*, got 2\.5",
    "val_check_interval=0": "val_check_interval: expected.*, got 0",
    "val_check_interval=2.5": r"val_check_interval: expected.*, got 2\.5",
    "accumulate_grad_batches=0": "accumulate_grad_batches: expected 1 or more.*, got 0",
    "accumulate_grad_batches=-1": "accumulate_grad_batches: expected .*, got -1",
    "log_every_n_steps=-1": "log_every_n_steps: expected .*, got -1",
    "max_epochs=-5": "max_epochs: expected 0 or more, or -1 for no end.*, got -5",
    "max_epochs=99999999999999999999999": "max_epochs: expected .*, got one of 23 digits",
    "max_steps=-5": "max_steps: expected .*, got -5",
    "num_sanity_val_steps=-2": "num_sanity_val_steps: expected .*, got -2",
    "gradient_clip_val=-1": "gradient_clip_val: expected .*, got -1",
    "precision=bogus": "precision: expected.*, got bogus",
    "callbacks=GridExtension": "GridExtension: give either milestones",
    "callbacks=Bogus": "expected a class that can be imported, got Bogus",
    "callbacks=5": "trainer.callbacks: expected .*, got 5",
}
MODEL_AND_DATA = {
    "--model.width=null": "model.width: expected an integer, got null",
    "--model.width=99999999999999999999999": "got one of 23 digits",
    "--model.width=0": "width",
    "--model.num_classes=1": "model.num_classes, model.in_channels: expected 2 to 256 and at least 1, got 1 and 1",
    "--model.optimizer.lr=-1": "model.optimizer: expected arguments that torch accepts, got its ValueError: Invalid "
    "learning rate: -1",
    "--model.optimizer.lr=1e300": "model.optimizer: expected arguments that torch accepts, got its RuntimeError",
    "--data.num_workers=1000": "data.num_workers: expected 0 to ",
    "-c=.": "-c .: expected a YAML file, got a folder",
    "-c=/dev/null": "-c /dev/null: expected a YAML file, got a pipe or device",
    "--model.optimizer.lr=abc": "optimizer.lr: expected float, got abc",
    "--model.optimizer=LBFGS": "got its ValueError: LBFGS",
    "--model.optimizer=5": "model.optimizer: expected a class that can be imported, got 5",
    "--model.lr_scheduler=StepLR": "expected a value for step_size, got none",
    "--model.lr_interval=hour": "model.lr_interval: expected one of epoch, step, got hour",
    "--model.loss=5": "model.loss: expected some of cross_entropy, weighted_cross_entropy, focal",
    "--seed_everything=-5": "seed_everything: expected a number from 0 to 4294967295, true or false, got -5",
    "--name=../mine": "name: expected a folder below runs, got ../mine",
    "--trainer.max_time=abc": "trainer: `Timer(duration='abc')` is not a valid duration",
    "--model=5": "expected a class that can be imported, got 5",
    "--data.eval_batch_size=0": "eval_batch_size: expected at least 1, got 0",
    "--data.images=-1": "images: expected an integer of at least 1, got -1",
    "--trainer=5": "trainer: expected keys and values, got 5",
    "--trainer=null": "trainer: expected keys and values, got null",
    "--import=nothing_here": "--import nothing_here: ModuleNotFoundError",
    "--import=": "--import : expected a module's name",
    "--import=.relative": "--import .relative: expected a module's name",
}


@pytest.mark.parametrize(("word", "expected"), [(f"--trainer.{k}", v) for k, v in TRAINER.items()])
def test_trainer_arguments_are_named(see, word, expected) -> None:
    status, said = see(*FIT, word)
    assert status == 2
    assert is_short(said)
    assert re.search(expected, said), said


@pytest.mark.parametrize(("word", "expected"), MODEL_AND_DATA.items())
def test_arguments_of_model_and_data_are_named(see, word, expected) -> None:
    status, said = see(*FIT, word)
    assert status == 2
    assert is_short(said)
    assert expected in said, said


@pytest.mark.parametrize(
    "content",
    ["name: 5", "trainer: 5", "trainer: null", "model: 5", "model: {class_path: 5}", "data: []", "ckpt_path: [a]",
     "model: {class_path: KMUNet, init_args: 5}", "5", "[1, 2]", "a: b: c", "trainer: {1: 2}", "? [a]\n: b", "\x00"],
)  # fmt: skip
def test_values_of_the_wrong_kind_in_a_file(content, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"-c mine\.yaml: ") as caught:
        layer_arguments(["fit", "-c", "mine.yaml"], ["fit"], Path("runs"))
    assert is_short(message(caught.value))


def bomb() -> str:
    """Nine levels of ten aliases each: a thousand million values in half a kilobyte."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 10):
        aliases = ", ".join([f"*a{i - 1}"] * 10)
        levels.append(f"a{i}: &a{i} [{aliases}]")
    return "\n".join(levels)


TWICE = "trainer: {max_epochs: 1}\nmodel: x\ntrainer: {max_epochs: 2}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: &a {b: *a}", "an anchor holds an alias of itself"),
        ("a: &a [*a]", "an anchor holds an alias of itself"),
        (bomb(), "more than 100000 values"),
        ("a: " + "[" * 400 + "]" * 400, f"{MAX_DEPTH} levels"),
        ("a: " + "[" * 60 + "]" * 60, f"{MAX_DEPTH} levels"),
        (TWICE, "the key 'trainer' stands twice, in line 1 and in line 3"),
        ("model: {init_args: {width: 1, width: 2}}", "the key 'width' stands twice"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
    ids=["loop of keys", "loop of a list", "alias bomb", "very deep", "deep", "twice", "twice below", "code"],
)  # fmt: skip
def test_yaml_that_hangs_fills_memory_or_says_two_things(content, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        layer_arguments(["fit", "-c", "mine.yaml"], ["fit"], Path("runs"))
    assert is_short(message(caught.value))


def test_an_alias_bomb_on_the_command_line(see) -> None:
    status, said = see("fit", *TINY, f"--data.mean={bomb()}")
    assert status == 2
    assert "more than 100000 values" in said


def test_merge_keys_may_be_overridden() -> None:
    assert parse("a: &a {x: 1}\nb: {<<: *a, x: 2}")["b"] == {"x": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_at_all", "ModuleNotFoundError"),
        ("def (:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported(see, tmp_path, text, expected) -> None:
    name = f"broken_{expected.lower()}"
    (tmp_path / f"{name}.py").write_text(text)
    status, said = see("fit", "--import", name)
    assert status == 2
    assert is_short(said)
    assert f"--import {name}: {expected}" in said


def test_a_class_without_its_package(see, tmp_path) -> None:
    (tmp_path / "lacking.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\n\n\nclass Lacking(CSVLogger):\n"
        "    def __init__(self) -> None:\n        raise ModuleNotFoundError('Requirement rare>=3 not met')\n"
    )
    status, said = see(*FIT, "--import", "lacking", "--trainer.logger", "lacking.Lacking")
    assert status == 2
    assert is_short(said)
    assert "Lacking: expected its package to be installed, got Requirement rare>=3 not met" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=0", "--trainer.max_epochs=2"],
         "model.lr_scheduler: expected arguments that torch accepts, got its ZeroDivisionError"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=nope", "--trainer.max_epochs=2"],
         "trainer.callbacks: EarlyStopping.monitor: expected one of "),
    ],
)  # fmt: skip
def test_arguments_that_fail_after_a_while(see, words, expected) -> None:
    status, said = see("fit", *TINY, "--trainer.logger=false", *words)
    assert status == 2
    assert is_short(said)
    assert expected in said, said


@pytest.mark.parametrize(("code", "status"), [(7, 7), (-9, 2), (130, 130)])
def test_the_status_is_that_of_a_rank_that_ended_by_itself(code: int, status: int) -> None:
    assert status_of(ProcessExitedException("", error_index=1, error_pid=9, exit_code=code)) == status
    assert status_of(RuntimeError()) == 2


def test_debug_lets_the_traceback_through(run) -> None:
    with pytest.raises(ConfigError):
        shown(["fit", "--debug", "-c", "nowhere"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("Unable to allocate 931. GiB for an array"), "out of memory while asking for 931. GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), "out of memory"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), "pip install onnx"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(28, "No space left on device", "/x/y"), "the disk is full"),
        (RuntimeError("line\n" * 50), "RuntimeError: line"),
        (KeyError("x" * 5000), "KeyError"),
        (RuntimeError(""), "RuntimeError"),
        (ProcessExitedException("", error_index=1, error_pid=9, exit_code=7), "process 1: it ended with exit status 7"),
        (ProcessExitedException("", error_index=1, error_pid=9, exit_code=-9), "process 1: it ended by signal 9"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_any_exception_is_at_most_three_lines(error, expected) -> None:
    assert is_short(message(error))
    assert expected in message(error)


# ---------------------------------------------------------------------- seeded nonsense: configurations and words


def fails_well(call: Callable[[], object]) -> bool:
    """Whether a call ends in one of our errors; any other exception is a failure of the test."""
    try:
        call()
    except FrameworkError as error:
        said = message(error)
    else:
        return False
    assert is_short(said)
    return True


def quickstart() -> str:
    return (Path(__file__).parents[1] / "configs/korigins/quickstart.yaml").read_text()


def test_two_hundred_configurations(tmp_path) -> None:
    rng, failures = random.Random(0), 0
    whole = yaml.safe_load(quickstart())
    for i in range(200):
        path = tmp_path / f"{i}.yaml"
        if i % 2:
            path.write_bytes(scrambled(quickstart().encode(), rng))
        else:
            path.write_text(yaml.safe_dump(junk_inside(whole, rng)))
        failures += fails_well(lambda path=path: layer_arguments(["fit", "-c", str(path)], ["fit"], tmp_path))
    assert failures > 40


def test_configurations_and_words_as_a_user_gives_them(see, tmp_path) -> None:
    rng, statuses = random.Random(1), []
    whole = yaml.safe_load(quickstart())
    sections = ["trainer", "model.init_args", "data.init_args"]
    for i in range(24):
        if i % 2:
            (tmp_path / "mine.yaml").write_text(yaml.safe_dump(junk_inside(whole, rng)))
            words = ["-c", "mine.yaml", *TINY[2:], "--trainer.fast_dev_run=1"]
        else:
            words = [
                *FIT[1:],
                f"--{rng.choice(sections)}.{rng.choice(['width', 'max_epochs', 'side', 'x'])}={rng.choice(JUNK)}",
            ]
        status, said = see("fit", *words)
        statuses.append(status)
        assert status in (0, 2), words
        assert status == 0 or is_short(said), (words, said)
    assert 2 in statuses


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of three epochs of the smallest network."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["framework"])
        assert shown(["fit", *TINY, "--trainer.max_epochs=3", "--trainer.limit_train_batches=1"]) == 0
    return next(folder.rglob("last.ckpt"))


def changed(content: dict, how: str) -> dict:
    weights = content["state_dict"]
    first = next(iter(weights))
    if how == "missing weights":
        return {**content, "state_dict": {k: v for k, v in weights.items() if k != first}}
    if how == "additional weights":
        return {**content, "state_dict": {**weights, "more": torch.zeros(3)}}
    if how == "other shapes":
        return {**content, "state_dict": {**weights, first: torch.zeros(7, 7)}}
    if how == "weights are a list":
        return {**content, "state_dict": list(weights.values())}
    if how == "loops are text":
        return {**content, "loops": "x"}
    if how == "version is a number":
        return {**content, "pytorch-lightning_version": 5}
    return {key: value for key, value in content.items() if key != how}


@pytest.mark.parametrize(
    "how",
    ["missing weights", "additional weights", "other shapes", "weights are a list", "loops are text",
     "version is a number", "state_dict"],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole(see, checkpoint, tmp_path, how) -> None:
    torch.save(changed(torch.load(checkpoint, weights_only=True), how), tmp_path / "x.ckpt")
    status, said = see("test", *TINY, "--ckpt_path=x.ckpt")
    assert status == 2
    assert is_short(said)
    assert said.startswith("ckpt_path: ")


@pytest.mark.parametrize("key", ["optimizer_states", "loops", "pytorch-lightning_version", "hyper_parameters"])
def test_going_on_from_a_checkpoint_without_a_part(see, checkpoint, tmp_path, key) -> None:
    torch.save(changed(torch.load(checkpoint, weights_only=True), key), tmp_path / "x.ckpt")
    status, said = see("fit", *TINY, "--ckpt_path=x.ckpt", "--trainer.max_epochs=4")
    assert status in (0, 2)
    assert status == 0 or (is_short(said) and said.startswith("ckpt_path: ")), said


@pytest.mark.parametrize(
    ("verb", "word", "expected"),
    [
        (
            "test",
            "--model.width=4",
            "ckpt_path: the weights in the checkpoint are not those of this KOriginsSegmentation",
        ),
        ("fit", "--trainer.max_epochs=1", "trainer.max_epochs: got 1, but the checkpoint stands at epoch 2"),
    ],
)
def test_a_checkpoint_that_does_not_go_with_the_arguments(see, checkpoint, verb, word, expected) -> None:
    status, said = see(verb, *TINY, f"--ckpt_path={checkpoint}", word)
    assert status == 2
    assert is_short(said)
    assert expected in said


def test_eighty_damaged_checkpoints(checkpoint, tmp_path) -> None:
    rng, failures = random.Random(2), 0
    whole = checkpoint.read_bytes()
    for i in range(80):
        path = tmp_path / "x.ckpt"
        path.write_bytes(whole[: rng.randrange(len(whole))] if i % 4 == 0 else scrambled(whole, rng))
        words = ["test", "-c", "korigins/quickstart", "--ckpt_path", str(path)]
        failures += fails_well(lambda words=words: layer_arguments(words, ["test"], tmp_path))
    assert failures > 20


# ---------------------------------------------------------------------- pictures, masks, tables


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("part", ["images", "masks", "split.csv"])
def test_damaged_pictures_masks_and_tables(tmp_path, suffix, part) -> None:
    rng, failures = random.Random(suffix + part), 0
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            values = np.random.default_rng(i).integers(0, 256, (12, 12)).astype(np.uint8)
            kind = suffix if folder == "images" else "png"
            mask = np.where(values > 127, 255, 0).astype(np.uint8)
            pictures.imsave(
                tmp_path / folder / f"{i}.{kind}", values if folder == "images" else mask, check_contrast=False
            )
    table = tmp_path / "split.csv"
    table.write_text("id,split\n0,train\n1,train\n2,val\n3,test\n")
    target = table if part == "split.csv" else next((tmp_path / part).glob("1.*"))
    whole = target.read_bytes()

    def read() -> None:
        data = SegmentationDataModule(str(tmp_path), split_file="split.csv", cache=False)
        for split in ("train", "val", "test"):
            dataset = data.configure_dataset(split)
            for i in range(len(dataset)):
                dataset[i]

    for _ in range(12):
        target.write_bytes(scrambled(whole, rng))
        failures += fails_well(read)
    target.write_bytes(whole)
    read()
    assert failures > 0
