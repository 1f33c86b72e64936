"""`framework study`: what cannot be is said in one message, before the first cell is trained."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.commands import study as study_module
from framework.commands.messages import LINES, message
from framework.commands.study import chosen_cells, joined, run
from framework.commands.study_plan import load_study
from framework.commands.study_rows import read_rows
from framework.errors import ConfigError
from tests.commands.test_study import TINY

BASE: dict[str, Any] = {key: value for key, value in TINY.items() if key != "set"}
BASE |= {"set": {k: v for k, v in TINY["set"].items() if k != "trainer.callbacks"}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; cells are forked from this process, which has the imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "_processes", lambda: multiprocessing.get_context("fork"))
    return tmp_path


def written(here: Path, content: Mapping[str, Any]) -> str:
    (here / "study.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return "study.yaml"


ROWS = {"rows": f"{__name__}:some_rows", "axes": {"count": [1, 2]}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 3}, r"seeds: expected a list of whole numbers.*, got 3"),
        ({"seeds": ["a"]}, r"seeds: expected a list.*, got \['a'\]"),
        ({"seeds": [True]}, r"seeds: expected a list.*, got \[True\]"),
        ({"seeds": [-1]}, r"seeds: expected a list.*, got \[-1\]"),
        ({"seeds": []}, r"seeds: expected a list.*, got \[\]"),
        ({"seeds": [0, 1, 0]}, r"seeds: 0 and 0 are one value"),
        ({"axes": {"model.rfl": [8, 8]}}, r"axes.model.rfl: 8 and 8 are one value"),
        ({"axes": {"model.optimizer.init_args.lr": [0.001, "1e-3"]}}, "0.001 and 1e-3 are one value"),
        ({"axes": {"model.rfl": []}}, r"axes.model.rfl: expected at least one value, got none"),
        ({"axes": {"model.rfl": {}}}, r"axes.model.rfl: expected at least one value, got none"),
        ({"axes": {"model.rfl": 8}}, r"axes.model.rfl: expected a list of values, or labels"),
        ({"axes": ["model.rfl"]}, r"axes: expected axis: values.*, got .*"),
        ({"axes": {"origins": {"none": "model.origins"}}}, r"axes.origins.none: expected keys.*, got 'model.origins'"),
        ({"axes": {"origins": {"none": {"-c": 3}}}}, r"axes.origins.none.-c: expected one configuration.*, got 3"),
        ({"axes": {"seed": [1]}}, r"axes.seed: every row has a column of this name"),
        ({"axes": {"command": {"a": {}}}}, r"axes.command: every row has a column of this name"),
        ({"axes": {"epochs": {"a": {}}}}, r"axes.epochs: every row has a column of this name"),
        ({"keep": {"epochs": "val/iou"}}, r"keep.epochs: there is a column of this name"),
        ({"keep": {"wall_s": "val/iou"}}, r"keep.wall_s: there is a column of this name"),
        ({"keep": {"origins": "val/iou"}}, r"keep.origins: there is a column of this name already \(it is an axis\)"),
        ({"keep": {"seed": "val/iou"}}, r"keep.seed: there is a column of this name"),
        ({"keep": ["val/iou"]}, r"keep: expected column: figure.*, got .*"),
        ({"keep": {"iou": "test/iou"}, "test": False}, r"keep.iou: test/iou is a figure of a test.*give `test: true`"),
        ({"keep": {"iou": "test/iou"}, "test": {"other": {}}}, r"keep.iou: test/iou .*its tests are other"),
        ({"keep": {"iou": "val/iou"}, "fit": False}, r"keep.iou: val/iou is a figure of a fit"),
        ({"checkpoint": "lsat"}, r"checkpoint: expected best or last.*, got 'lsat'"),
        ({"fit": "no"}, r"fit: expected true or false.*, got 'no'"),
        ({"test": "kodak"}, r"test: expected true, false, or names.*, got 'kodak'"),
        ({"test": {"val": {}}}, r"test: expected text .*, got the name 'val'"),
        ({"fit": False, "test": False, "keep": {}}, r"fit: false leaves nothing to run"),
        ({"skip": [{"orgins": "none"}]}, r"skip: there is no axis 'orgins'; there are origins, seed"),
        ({"skip": [{"origins": "nothing"}]}, r"skip.origins: there is no value nothing; there are none, statistics"),
        ({"skip": {"origins": "none"}}, r"skip: expected a list of combinations.*, got .*"),
        ({"skip": [{"origins": ["none", "statistics"]}]}, r"skip: leaves no cell"),
        ({"choose": {"axis": "rate", "by": "iou max"}}, r"choose.axis: there is no axis 'rate'; there are origins"),
        ({"choose": {"axis": "origins", "by": "dice max"}}, r"choose.by: the rows have no column 'dice'"),
        ({"choose": "origins"}, r"choose: expected `axis` and `by`.*, got 'origins'"),
        ({"table": {"file": "images.csv"}}, r"table: expected `file` and `columns`.*, got .*"),
        ({"table": {"file": "images.csv", "columns": ["iou"]}}, r"table.columns.iou: there is a column of this name"),
        ({"set": ["model.rfl"]}, r"set: expected keys and values.*, got .*"),
        ({"base": 3}, r"base: expected one configuration or a list.*, got 3"),
        ({"base": None}, r"base: expected one configuration or a list, .*, got none"),
        ({"measure": 3}, r"measure: expected module:function.*, got 3"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_name(here: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_study(written(here, BASE | change))
    assert len(message(refused.value).splitlines()) <= LINES


def test_a_label_that_stands_twice_is_refused(here: Path) -> None:
    (here / "study.yaml").write_text("base: korigins/quickstart\naxes: {model.rfl: {a: {}, a: {}}}\n")
    with pytest.raises(ConfigError, match=r"study study.yaml: the key 'a' stands twice"):
        load_study("study.yaml")


def test_skip_means_values_not_texts(here: Path) -> None:
    content = BASE | {"axes": {"model.rfl": [8, 18]}, "skip": [{"model.rfl": "8.0"}]}
    assert [cell.key["model.rfl"] for cell in load_study(written(here, content)).cells] == ["18"]


def test_only_means_values_not_texts(here: Path) -> None:
    rates = {"model.optimizer.init_args.lr": [0.001, 0.01], "a=b": {"x=y": {}, "z": {}}}
    study = load_study(written(here, BASE | {"axes": rates}))
    for text in ("0.001", "1e-3", "1.0e-3", "1.0E-3"):
        chosen = chosen_cells(study, [f"model.optimizer.init_args.lr={text}", "a=b=x=y"])
        assert [tuple(cell.key.values()) for cell in chosen] == [("0.001", "x=y", "0")]
    with pytest.raises(ConfigError, match=r"--only model.optimizer.init_args.lr: there is no value 1"):
        chosen_cells(study, ["model.optimizer.init_args.lr=1"])
    with pytest.raises(ConfigError, match=r"--only rate=1: expected axis=value with an axis of model"):
        chosen_cells(study, ["rate=1"])


def test_cells_that_are_skipped_cannot_be_chosen(here: Path) -> None:
    study = load_study(written(here, BASE | {"seeds": [0, 1], "skip": [{"origins": "none", "seed": 1}]}))
    with pytest.raises(ConfigError, match="the study skips these combinations"):
        chosen_cells(study, ["origins=none", "seed=1"])


def test_both_forms_of_an_option_reach_every_cell(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert joined(["NAME", "--data.images", "5", "--only", "a=1", "b=2", "--out", "x", "--model.shift", "-1"]) == [
        *("NAME", "--data.images=5", "--only", "a=1", "b=2", "--out", "x", "--model.shift=-1")
    ]
    assert run([written(here, BASE), "--data.images", "5", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert all(line.endswith("--data.images=5") for line in shown)
    with pytest.raises(ConfigError, match=r"framework study: --data.images: expected --key=value or --key value"):
        run(["study.yaml", "--data.images", "--dry-run"])


# ------------------------------------------------------------------------------------- what is known before a cell runs


def some_rows(count: int) -> list[dict[str, int]]:
    return [{"part": part} for part in range(count)]


def own_columns(count: int) -> list[dict[str, int]]:
    return [{"command": count}]


def no_rows(count: int) -> str:
    return "/tmp"


def no_figures(model: object) -> None:
    """Takes too little."""


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BASE | {"set": {"model.wdith": 2}}, r"origins none, seed 0: .*wdith.* is not accepted"),
        (BASE | {"set": {"model.width": "two"}}, r"origins none, seed 0: model.width: expected int, got two"),
        (BASE | {"set": {"trainer.max_epochs": -7}}, r"origins none, seed 0: trainer.max_epochs: expected .*, got -7"),
        # of a later label, and of a test
        (BASE | {"axes": {"a": {"b": {}, "c": {"model.wdith": 2}}}}, r"a c, seed 0: .*wdith"),
        (BASE | {"test": {"test": {"data.sdie": 4}}}, r"origins none, seed 0: .*sdie"),
        (BASE | {"test": {"test": {"-c": "korigins/quikstart"}}}, r"-c korigins/quikstart: there is no such file"),
        (BASE | {"measure": "benchmarks.nothing:figures"}, r"benchmarks.nothing:figures: expected module:function"),
        (BASE | {"measure": f"{__name__}:no_figures"}, r"measure: .*no_figures.* is called with model, data"),
        (ROWS | {"rows": "os:getcwd"}, r"rows: os:getcwd\(\) is called with count"),
        (ROWS | {"rows": "os"}, r"os: expected module:function"),
        (ROWS | {"rows": "os:name"}, r"os:name: expected a function, got a str"),
        (ROWS | {"set": {"kount": 1}}, r"some_rows\(count: int\).* is called with kount, count"),
    ],
)
def test_what_every_cell_would_fail_with_is_said_before_the_first(
    here: Path, content: dict[str, Any], said: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError, match=said):
        run([written(here, content), *words])
    assert not list(here.glob("runs/studies/*/*"))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("folder", "--out: folder is no file"),
        ("file/below/out.csv", "file is a file, where file/below/out.csv needs a folder"),
        ("binary", "--out: binary cannot be read as a CSV file"),
        ("notes.csv", r"--out: notes.csv is there and has no column count"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_file_that_cannot_be_written_is_refused(here: Path, out: str, said: str, words: list[str]) -> None:
    (here / "folder").mkdir()
    (here / "file").touch()
    (here / "binary").write_bytes(b"\xff\xfe\x00")
    (here / "notes.csv").write_text("day,note\nMonday,rain\n")
    with pytest.raises(ConfigError, match=said):
        run([written(here, ROWS), "--out", out, *words])
    assert not (here / "runs").exists() or not list(here.glob("runs/studies/*"))


def test_a_folder_without_permission_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(here / "locked"))
    (here / "locked").mkdir()
    with pytest.raises(ConfigError, match=r"--out: no permission to write into"):
        run([written(here, ROWS), "--out", str(here / "locked" / "out.csv")])


@pytest.mark.parametrize(
    ("function", "said"),
    [("no_rows", "gave '/tmp', expected a list of mappings"), ("own_columns", "gave the column command")],
)
def test_what_a_function_gives_is_looked_at(
    here: Path, function: str, said: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=said):
        run([written(here, ROWS | {"rows": f"{__name__}:{function}"}), "--out", "out.csv"])
    assert "no row was written: there is no out.csv" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- what only a cell shows


def test_a_figure_that_no_run_has_ends_the_study_after_one_cell(here: Path, capsys: pytest.CaptureFixture) -> None:
    content = BASE | {"keep": {"iou": "val/iuo max"}, "test": False, "seeds": [0, 1], "axes": {}}
    content["set"] = content["set"] | {"trainer.max_epochs": 1}
    with pytest.raises(ConfigError, match=r"seed 0: keep: the run has no figure val/iuo; there are"):
        run([written(here, content), "--out", "out.csv"])
    shown = capsys.readouterr().out
    assert "no row was written: there is no out.csv" in shown
    assert len(list((here / "runs/studies/study").iterdir())) == 1


def test_the_whole_message_of_a_cell_is_shown_and_no_file_is_claimed(here: Path, capsys: pytest.CaptureFixture) -> None:
    content = BASE | {"set": BASE["set"] | {"data.images": 1}, "keep": {}, "test": False, "axes": {}}
    status = run([written(here, content), "--out", "out.csv"])
    shown = capsys.readouterr().out
    assert status == 1
    (log,) = here.glob("runs/studies/study/*/log.txt")
    said = (log.parent / "error.txt").read_text()
    assert f"failed: seed 0: error: {said}" in shown
    assert "no row was written: there is no out.csv" in shown
    assert "written: out.csv" not in shown


def test_rows_that_were_there_are_not_called_written(here: Path, capsys: pytest.CaptureFixture) -> None:
    words = [written(here, ROWS), "--out", "out.csv"]
    assert run(words) == 0
    assert "\nwritten: out.csv" in capsys.readouterr().out
    assert run(words) == 0
    assert "no new row: out.csv has the 3 of before" in capsys.readouterr().out
    assert len(read_rows(here / "out.csv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before a cell", pytest.param("in its first cell", marks=pytest.mark.slow)])
def test_sigterm_while_a_study_starts_is_said_and_leaves_nothing_behind(here: Path, moment: str) -> None:
    """As `timeout` ends a command: the whole group gets the signal."""
    written(here, BASE | {"test": False, "keep": {}})
    words = [sys.executable, "-m", "framework", "study", "study.yaml", "--out", "out.csv"]
    place = {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = (here / "shown").open("w")
    process = subprocess.Popen(
        words, env=os.environ | place, stdout=shown, stderr=shown, start_new_session=True, text=True
    )
    watched = {"before a cell": "runs", "in its first cell": "runs/studies/study/*/log.txt"}[moment]
    while process.poll() is None and not list(here.glob(watched)):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    status = process.wait()
    said = (here / "shown").read_text()
    assert status == 143, said
    assert "stopped; the same command goes on" in said or "interrupted before the first cell" in said
    assert "resource_tracker" not in said
    assert "Traceback" not in said
    assert not (here / "out.csv").exists()
