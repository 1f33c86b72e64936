"""Seeded nonsense that is handed to the command: each input ends in a whole run or in one message."""

import functools
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.faults.methods import METHODS
from benchmarks.faults.nonsense import JUNK, junk_inside, scrambled
from benchmarks.faults.record import Row, look_at_output, one_line
from benchmarks.faults.runs import Run, room, without_figures

#: inputs of every kind; 700 together
KINDS = {"configuration text": 150, "configuration value": 150, "words": 150, "checkpoint": 130, "picture": 50,
         "mask": 40, "table": 30}  # fmt: skip
#: seconds that are called a hang; long, for a busy machine
LIMIT = 150
#: events of Python's audit that nothing handed over may cause
CODE = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen"}
#: programs that the libraries start by themselves
HARMLESS = ("lscpu", "uname", "git", "ldconfig", "gcc", "cc", "c++", "g++")
QUIET = (
    "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
)  # fmt: skip
ONCE = (*QUIET, "--trainer.fast_dev_run=1")
KEYS = [
    *(f"trainer.{key}" for key in (
        "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "fast_dev_run",
        "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches",
        "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "profiler",
        "log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "plugins",
        "deterministic", "benchmark", "inference_mode", "use_distributed_sampler", "detect_anomaly", "barebones",
        "sync_batchnorm", "reload_dataloaders_every_n_epochs", "default_root_dir", "enable_checkpointing",
    )),
    *(f"model.{key}" for key in (
        "rfl", "num_classes", "width", "deep_origins", "origins", "optimizer", "optimizer.lr", "lr_scheduler",
        "lr_interval", "batch_norm", "loss", "in_channels", "class_mean", "class_std", "class_path", "nothing",
    )),
    *(f"data.{key}" for key in (
        "preset", "images", "side", "shapes_per_class", "radius_range", "std", "batch_size", "eval_batch_size",
        "num_workers", "seed", "class_path", "nothing",
    )),
    "model", "data", "trainer", "name", "seed_everything", "ckpt_path", "nothing",
]  # fmt: skip


def small(*names: str) -> list[str]:
    """The smallest K-network's words, without those that are given."""
    return [word for word in METHODS["korigins"] if not word.startswith(tuple(f"--{name}" for name in names))]


def text(rng: random.Random, folder: Path) -> list[str]:
    """A configuration's text with bytes changed."""
    (folder / "mine.yaml").write_bytes(scrambled(configuration().encode(), rng))
    return ["fit", "-c", "mine.yaml", *ONCE]


def value(rng: random.Random, folder: Path) -> list[str]:
    """A configuration with one value replaced, at any level."""
    changed = junk_inside(yaml.safe_load(configuration()), rng)
    (folder / "mine.yaml").write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
    return ["fit", "-c", "mine.yaml", *ONCE]


def words(rng: random.Random, folder: Path) -> list[str]:
    """One or two options with values of any kind."""
    given = [f"--{rng.choice(KEYS)}={rng.choice(JUNK)}" for _ in range(rng.choice([1, 1, 2]))]
    given += rng.choice([[], [], [], ["--import", str(rng.choice(JUNK))], ["-c", str(rng.choice(JUNK))]])
    return [rng.choice(["fit", "fit", "test", "validate"]), *small(), *ONCE, *given]


def checkpoint(rng: random.Random, folder: Path) -> list[str]:
    """A checkpoint's bytes or parts changed."""
    path = folder / "mine.ckpt"
    if rng.random() < 0.5:
        path.write_bytes(scrambled(checkpoint_bytes(), rng))
    else:
        (folder / "whole.ckpt").write_bytes(checkpoint_bytes())
        content = torch.load(folder / "whole.ckpt", weights_only=True)
        torch.save(_junk_in_state(content, rng), path)
    verb = rng.choice(["fit", "test"])
    return [verb, *small("trainer.max_epochs"), *QUIET, "--trainer.max_epochs=3", "--ckpt_path=mine.ckpt"]


def picture(rng: random.Random, folder: Path) -> list[str]:
    """A picture's bytes changed."""
    return _segmentation(rng, folder, "images/1.*")


def mask(rng: random.Random, folder: Path) -> list[str]:
    """A mask's bytes changed."""
    return _segmentation(rng, folder, "masks/1.*")


def table(rng: random.Random, folder: Path) -> list[str]:
    """A split file's bytes changed."""
    return _segmentation(rng, folder, "split.csv")


MAKE: dict[str, Callable[[random.Random, Path], list[str]]] = dict(
    zip(KINDS, (text, value, words, checkpoint, picture, mask, table), strict=True)
)


def fuzz(case: int) -> Row:
    """One input."""
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    kind = kinds[case % len(kinds)]
    rng = random.Random(f"fuzz {case}")
    with room() as folder:
        given = MAKE[kind](rng, folder)
        row = Row("fuzz", case, kind, shown(kind, given, folder))
        ended = Run(folder, given, functools.partial(_watch, folder / "code")).wait(LIMIT)
        row.status, row.seconds = ended.status, ended.seconds
        look_at_output(row, ended.said)
        row.blame(ended.status is None, "hangs")
        row.blame(ended.status not in (0, 2, None), f"status {ended.status}")
        row.blame(ended.left, f"{ended.left} processes live on")
        row.blame((folder / "code").exists(), "runs code")
        if ended.status == 0:
            row.said = "a whole run"
    return row


def _watch(file: Path) -> None:
    """In the forked process: leaves a file when a program is started; draws nothing."""
    without_figures()

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event in CODE and not str(args[0]).rpartition("/")[2].startswith(HARMLESS):
            file.write_text(f"{event} {args!r}")

    sys.addaudithook(look)


def shown(kind: str, given: list[str], folder: Path) -> str:
    """The words that are not those of every input; of a configuration its first line that is not as it was."""
    if kind.startswith("configuration"):
        now = (folder / "mine.yaml").read_bytes().decode(errors="replace").splitlines()
        before = configuration()
        if kind.endswith("value"):
            before = yaml.safe_dump(yaml.safe_load(before))
        changed = [line for line in now if line not in before.splitlines()]
        return one_line(changed[0], 80) if changed else "lines taken out or doubled"
    own = [word for word in given[1:] if word not in METHODS["korigins"] and word not in ONCE]
    return one_line(" ".join([given[0], *own]), 80)


@functools.cache
def configuration() -> str:
    """A whole configuration, a small one."""
    return (Path(__file__).parents[2] / "configs/korigins/quickstart.yaml").read_text().replace(
        "rfl: 18", "rfl: 8").replace("width: 16", "width: 2").replace("side: 96", "side: 24").replace(
        "shapes_per_class: [4, 4]", "shapes_per_class: [1, 1]\n    radius_range: [3, 5]")  # fmt: skip


@functools.cache
def checkpoint_bytes() -> bytes:
    """Of two epochs."""
    with room() as folder:
        Run(folder, ["fit", *small("trainer.max_epochs"), *QUIET, "--trainer.max_epochs=2"]).wait(300)
        return next(folder.rglob("last.ckpt")).read_bytes()


def _junk_in_state(content: Any, rng: random.Random) -> Any:
    if not isinstance(content, dict | list) or not content or rng.random() < 0.1:
        return rng.choice([*JUNK, torch.zeros(3), torch.tensor(float("nan"))])
    if isinstance(content, list):
        at = rng.randrange(len(content))
        return [*content[:at], _junk_in_state(content[at], rng), *content[at + 1 :]]
    key = rng.choice(list(content))
    if rng.random() < 0.2:
        return {k: v for k, v in content.items() if k != key}
    return {**content, key: _junk_in_state(content[key], rng)}


def _segmentation(rng: random.Random, folder: Path, target: str) -> list[str]:
    suffix = rng.choice(["png", "tif", "jpg"])
    for name in ("images", "masks"):
        (folder / name).mkdir()
        for i in range(4):
            values = np.random.default_rng(i).integers(0, 256, (16, 16)).astype(np.uint8)
            if name == "masks":
                values = np.where(values > 127, 255, 0).astype(np.uint8)
            Image.fromarray(values).save(folder / name / f"{i}.{suffix if name == 'images' else 'png'}")
    (folder / "split.csv").write_text("id,split\n0,train\n1,train\n2,val\n3,test\n")
    path = next(folder.glob(target))
    path.write_bytes(scrambled(path.read_bytes(), rng))
    return ["fit", "--model=KOriginsSegmentation", "--model.rfl=8", "--model.width=2", "--model.num_classes=2",
            "--model.origins=none", "--data=SegmentationDataModule", f"--data.root={os.curdir}",
            "--data.split_file=split.csv", "--trainer.accelerator=cpu", "--data.batch_size=2", *ONCE]  # fmt: skip
