"""The pages that show how to extend the framework are run as they stand."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule
from skimage import io

from framework.method import BaseMethod

DOCS = Path(__file__).parents[1] / "docs"
SMALL = ["-c", "trainer/debug", "--trainer.enable_progress_bar=false"]


def saved(page: str, folder: Path) -> str:
    """Writes the page's file as the page names it; returns the page's text."""
    text = (DOCS / f"{page}.md").read_text()
    name = re.search(r"Save this as `(\w+\.py)`", text).group(1)
    (folder / name).write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    return text


def commands(text: str) -> list[list[str]]:
    """The words of every command in the page's blocks, without `framework`."""
    blocks = re.findall(r"```\n(framework .*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize(
    "example", re.findall(r"## (.*?)\n.*?```python\n(.*?)```", (DOCS / "layers.md").read_text(), re.S)
)
def test_the_examples_of_the_layers_run_as_they_are_written(example) -> None:
    name, code = example
    torch.manual_seed(0)
    exec(compile(code, name, "exec"), {"__name__": name})


@pytest.mark.parametrize("page", ["add-a-method", "add-a-dataset", "add-a-callback"])
def test_the_page_runs_as_it_is_written(page, run, tmp_path) -> None:
    verb, *words = commands(saved(page, tmp_path))[0]
    assert verb == "fit"
    folder = Path(run(verb, *words, *SMALL).trainer.log_dir)
    log = pd.read_csv(folder / "metrics.csv")
    assert log["train/loss"].notna().any()
    assert any(folder.joinpath("figures").glob("*.png"))
    if page == "add-a-callback":
        assert (log["origins/spread"].dropna() > 0).all()


def test_the_method_of_the_page_is_evaluated_and_predicts_as_it_is_written(run, tmp_path) -> None:
    fit, test, predict = commands(saved("add-a-method", tmp_path))
    assert [words[0] for words in (fit, test, predict)] == ["fit", "test", "predict"]
    run(*fit, *SMALL)
    tested = run(*test, *SMALL)
    assert 0 <= float(tested.trainer.callback_metrics["test/accuracy"]) <= 1
    folder = Path(run(*predict, *SMALL).trainer.log_dir)
    masks = sorted(folder.glob("predictions/*_mask.png"))
    assert masks
    assert all(set(np.unique(io.imread(mask))) <= {0, 1, 2} for mask in masks)


def test_the_page_names_every_hook_of_a_method_and_no_other() -> None:
    table = re.search(r"\| hook \| default \|\n(.*?)\n\n", (DOCS / "add-a-method.md").read_text(), re.S).group(1)
    named = set(re.findall(r"`(\w+)(?:\(.*?\))?`", "\n".join(line.split("|")[1] for line in table.splitlines())))
    assert all(hasattr(BaseMethod, hook) for hook in named)
    defined_here = {
        name
        for base in BaseMethod.__mro__
        if base.__module__.startswith("framework.")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith(("_", "on_")) and not hasattr(LightningModule, name)
    }
    not_for_override = {"initialise_once", "meet_data"}
    assert named == (defined_here - not_for_override) | {"predict_step", "monitor", "monitor_mode"}


@pytest.mark.parametrize("name", ["korigins", "kmunet", "levels_of_experts", "master_key", "finola"])
def test_a_method_that_lives_here_needs_at_most_six_files(name) -> None:
    section = (DOCS / "add-a-method.md").read_text().split("## A method that is to live here")[1]
    files = re.findall(r"^\| `([\w/.]+)` \|", section, re.M)
    assert len(files) <= 6
    always = {"configs/NAME/quickstart.yaml", "docs/NAME.md"}
    assert always < set(files)
    assert all((DOCS.parent / file.replace("NAME", name)).is_file() for file in always)
