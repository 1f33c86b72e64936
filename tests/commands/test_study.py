"""`framework study`: what it runs, what it keeps, and that nothing it suffers changes the CSV."""

import csv
import inspect
import math
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from framework.commands import study as study_module
from framework.commands.study import best_labels, run, whole_command
from framework.commands.study_cell import chosen_checkpoint, named
from framework.commands.study_plan import find_study, load_study, study_names
from framework.commands.study_record import Kept, RunRecord
from framework.commands.study_rows import add_rows, read_rows
from framework.errors import ConfigError
from framework.main import main

#: what may differ between two runs of one cell
TIMES = ["wall_s", "cpu_s", "peak_mib", "command"]
TINY: dict[str, Any] = {
    "base": "korigins/quickstart",
    "set": {
        "model.rfl": 8,
        "model.width": 2,
        "data.side": 24,
        "data.images": 14,
        "data.shapes_per_class": [1, 1],
        "data.radius_range": [3, 5],
        "trainer.num_sanity_val_steps": 0,
        "trainer.max_epochs": 4,
        "trainer.callbacks": [{"class_path": "tests.commands.study_killer.KillOnce"}],
    },
    "axes": {"origins": {"none": {"model.origins": "none"}, "statistics": {}}},
    "seeds": [0],
    "test": True,
    "keep": {"iou": "val/iou max", "reached": "val/iou first >= 0.03", "loss": "val/loss last", "test_iou": "test/iou"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `tiny.yaml`; processes are forked from this one, which has the imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "_processes", lambda: multiprocessing.get_context("fork"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    return tmp_path


def as_a_new_process_would(words: list[str]) -> None:
    # an earlier test of Ctrl-C may have left this process, and what it forks, deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(words))


def in_process(*words: str) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=as_a_new_process_would, args=(list(words),))
    process.start()
    return process  # type: ignore[return-value]


def figures(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=TIMES)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("SIGKILL", -9),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 143, marks=pytest.mark.slow),
    ],
)
def test_a_study_cut_in_a_cell_and_started_again_has_the_rows_of_one_that_was_not(
    here: Path, how: str, status: int
) -> None:
    (here / "how").write_text(how)
    cut = in_process("tiny.yaml", "--out", "out.csv")
    cut.join()
    assert cut.exitcode == status
    assert len(read_rows(here / "out.csv")) == 1
    assert run(["tiny.yaml", "--out", "out.csv"]) == 0
    # the cell that was killed went on from its checkpoint, in another folder of its runs
    assert [len(list(cell.glob("version_*"))) for cell in sorted((here / "runs/studies/tiny").iterdir())].count(3) == 1
    assert run(["tiny.yaml", "--out", "whole.csv"]) == 0
    ours, whole = figures(here / "out.csv"), figures(here / "whole.csv")
    assert len(whole) == 2
    pd.testing.assert_frame_equal(ours, whole)


def test_two_studies_at_once_run_every_cell_once(here: Path) -> None:
    (here / "killed").touch()
    both = [in_process("tiny.yaml", "--out", "out.csv") for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    rows = read_rows(here / "out.csv")
    assert [(row["origins"], row["seed"]) for row in rows] == [("none", "0"), ("statistics", "0")]
    # one fit and one test in each cell's folder
    assert {len(list(cell.glob("version_*"))) for cell in (here / "runs/studies/tiny").iterdir()} == {2}


def test_a_row_is_what_fit_and_test_say(here: Path) -> None:
    (here / "killed").touch()
    assert run(["tiny.yaml", "--out", "out.csv", "--only", "origins=statistics"]) == 0
    (row,) = read_rows(here / "out.csv")
    words = [f"--{key}={value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()}"
             for key, value in TINY["set"].items()]  # fmt: skip
    words += ["--seed_everything=0", "--data.seed=0", "--trainer.enable_progress_bar=false"]
    fit = main(["fit", "-c", "korigins/quickstart", *words])
    log = pd.read_csv(next(Path("runs/korigins/quickstart").glob("version_0/metrics.csv")))
    iou = log["val/iou"].dropna()
    assert float(row["iou"]) == pytest.approx(iou.max(), rel=1e-5)
    reached = [epoch for epoch, value in enumerate(iou, start=1) if value >= 0.03]
    assert row["reached"] == (str(reached[0]) if reached else "> 4")
    assert float(row["loss"]) == pytest.approx(log["val/loss"].dropna().iloc[-1], rel=1e-5)
    assert int(row["parameters"]) == sum(p.numel() for p in fit.model.parameters())
    test = main(["test", "-c", "korigins/quickstart", *words, "--ckpt_path", "best"])
    assert float(row["test_iou"]) == pytest.approx(float(test.trainer.callback_metrics["test/iou"]), rel=1e-5)
    for column in ("wall_s", "cpu_s", "peak_mib"):
        assert float(row[column]) > 0
    assert row["command"].startswith("framework study tiny.yaml")
    assert row["run"].startswith("framework fit -c korigins/quickstart --model.rfl=8")


def test_a_cell_that_fails_is_named_and_has_no_row(here: Path, capsys: pytest.CaptureFixture) -> None:
    content = TINY | {"axes": {"model.rfl": [9, 8]}, "seeds": [0], "test": False, "keep": {"iou": "val/iou max"}}
    (here / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (here / "killed").touch()
    assert run(["tiny.yaml", "--out", "out.csv", "--jobs", "2"]) == 1
    assert [row["model.rfl"] for row in read_rows(here / "out.csv")] == ["8"]
    assert "failed: model.rfl 9, seed 0: error: model.rfl: expected one of" in capsys.readouterr().out


def plain_rows(count: int, scale: float = 1.0) -> list[dict[str, float]]:
    """What a study's function may look like."""
    return [{"part": part, "value": scale * part} for part in range(count)]


def test_a_function_gives_rows_of_its_own(here: Path) -> None:
    content = {"rows": f"{__name__}:plain_rows", "set": {"scale": 2.0}, "axes": {"count": [1, 2]}}
    (here / "rows.yaml").write_text(yaml.safe_dump(content))
    assert run(["rows.yaml", "--out", "rows.csv"]) == 0
    rows = [(row["count"], row["part"], row["value"]) for row in read_rows(here / "rows.csv")]
    assert rows == [("1", "0", "0.0"), ("2", "0", "0.0"), ("2", "1", "2.0")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("val/iou max", 0.9),
        ("val/iou min", 0.1),
        ("val/iou", 0.5),
        ("val/iou last", 0.5),
        ("val/iou mean", 0.5),
        ("val/iou first >= 0.8", 2),
        ("val/iou first < 0.6", 1),
        ("val/iou first > 0.9", "> 3"),
    ],
)
def test_an_expression_keeps_one_number_of_a_curve(text: str, value: object) -> None:
    assert Kept.parse("keep.x", text).of({"val/iou": [(1, 0.1), (2, 0.9), (3, 0.5)]}) == value


@pytest.mark.parametrize("curve", [[math.nan, 0.5, 0.2], [0.2, math.nan, 0.5], [0.5, 0.2, math.nan]])
def test_nan_is_neither_the_largest_nor_the_smallest(curve: list[float]) -> None:
    curves = {"val/psnr": list(enumerate(curve, start=1))}
    assert Kept.parse("k", "val/psnr max").of(curves) == 0.5
    assert Kept.parse("k", "val/psnr min").of(curves) == 0.2
    assert math.isnan(float(Kept.parse("k", "val/psnr max").of({"val/psnr": [(1, math.nan)]})))


def test_a_label_that_diverged_is_not_the_best() -> None:
    for what, best in (("max", "b"), ("min", "c")):
        kept = Kept.parse("choose.by", f"psnr {what}")
        for labels in ("abc", "cab", "bca"):
            assert kept.best({label: {"a": math.nan, "b": 30.0, "c": 20.0}[label] for label in labels}) == best
        assert kept.best({"a": math.nan, "b": math.nan}) == "a"


@pytest.mark.parametrize("text", ["val/iou best", "val/iou first", "val/iou first >= high", ""])
def test_another_expression_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"keep\.x: expected a figure"):
        Kept.parse("keep.x", text)


def test_rows_that_an_editor_has_touched_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    # as spreadsheets and editors leave it: a byte order mark, ends of lines of another system, none at the end
    path.write_bytes(b"\xef\xbb\xbfseed,iou,date\r\n0,0.5,today\r\n\r\n2,0.2,yesterday")
    assert [row["seed"] for row in read_rows(path)] == ["0", "2"]
    order = [("1",), ("0",), ("2",)]
    assert add_rows(path, [{"seed": 1, "iou": 0.3, "more": "x"}], ["seed"], order)
    assert not add_rows(path, [{"seed": 1, "iou": 0.4}], ["seed"], order)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["seed", "iou", "more", "date"],
            ["1", "0.3", "x", ""],
            ["0", "0.5", "", "today"],
            ["2", "0.2", "", "yesterday"],
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"seed,iou,date\n0,0.5,today\n1,0.2\n", "line 3: expected a field for each of the 3 columns, got 2"),
        (b"seed,iou\n0,0.5\n1,0.2,x\n", "line 3: expected a field for each of the 2 columns, got 3"),
        (b"seed,iou,iou\n0,0.5,0.4\n", "line 1: expected columns of different names, got 'iou' twice"),
        (b'seed,iou\n0,"0.5\n1,0.2\n', "expected a line of CSV"),
        (b"seed,iou\n0,\xe9\n", "cannot be read as a CSV file"),
    ],
)
def test_what_is_no_row_is_named_and_the_file_stays(here: Path, text: bytes, message: str) -> None:
    path = here / "out.csv"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        add_rows(path, [{"seed": 7, "iou": 0.3}], ["seed"], [])
    with pytest.raises(ConfigError, match=f"--out: out.csv.*{message}"):
        run(["tiny.yaml", "--out", "out.csv"])
    assert path.read_bytes() == text


def test_a_command_is_kept_without_what_chose_cells() -> None:
    said = whole_command(["--jobs", "2", "korigins/epochs", "--out", "x.csv"])
    assert said == ["korigins/epochs", "--out", "x.csv"]
    assert whole_command(["--jobs=2", "korigins/epochs"]) == ["korigins/epochs"]
    said = whole_command(["korigins/epochs", "--only", "rfl=18", "seed=0", "--data.root", "x", "--jobs", "2"])
    assert said == ["korigins/epochs", "--data.root", "x"]
    assert whole_command(["--only=rfl=18", "korigins/epochs"]) == ["korigins/epochs"]


def test_later_seeds_run_at_the_first_seeds_best_label() -> None:
    columns = ["variant", "rate", "seed"]
    rows = [
        {"variant": v, "rate": r, "seed": "0", "psnr": p}
        for v, r, p in [("a", "1", "3"), ("a", "1", "5"), ("a", "2", "4.5"), ("b", "1", "1"), ("b", "2", "0")]
    ]
    rows.append({"variant": "b", "rate": "2", "seed": "1", "psnr": "9"})
    kept = Kept.parse("choose.by", "psnr max")
    assert best_labels(rows, "rate", kept, columns, "0") == {("a",): "2", ("b",): "1"}


def test_only_and_skip_leave_cells_out(here: Path) -> None:
    content = TINY | {
        "seeds": [0, 1],
        "axes": {**TINY["axes"], "model.rfl": [8, 18]},
        "skip": [{"origins": "none", "model.rfl": 18}],
    }
    (here / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study("tiny.yaml")
    assert [tuple(cell.key.values()) for cell in study.cells[:3]] == [
        ("none", "8", "0"),
        ("statistics", "8", "0"),
        ("statistics", "18", "0"),
    ]
    chosen = study_module.chosen_cells(study, ["origins=statistics", "model.rfl=18"])
    assert [tuple(cell.key.values()) for cell in chosen] == [("statistics", "18", "0"), ("statistics", "18", "1")]
    with pytest.raises(ConfigError, match="there is no value random; there are none, statistics"):
        study_module.chosen_cells(study, ["origins=random"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [0]}, "seed: there is no such key in a study; did you mean seeds"),
        ({"base": "korigins/quickstrat"}, "did you mean korigins/quickstart"),
        ({"axes": {"origins": "none"}}, "axes.origins: expected a list"),
        ({"keep": {"iou": "val/iou best"}}, "keep.iou: expected a figure"),
    ],
)
def test_a_study_that_cannot_be_is_refused(here: Path, change: dict, message: str) -> None:
    (here / "tiny.yaml").write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(ConfigError, match=message):
        load_study("tiny.yaml")


def test_a_study_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no such file and no study of this name"):
        find_study("korigins/epoch")


@pytest.mark.parametrize("name", [name for name, _ in study_names()])
def test_every_shipped_study_can_be_planned(name: str) -> None:
    study = load_study(name)
    keys = study.order()
    assert keys
    assert len(set(keys)) == len(keys)


def test_the_example_of_the_page_is_a_study(here: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "studies.md"
    (here / "page.yaml").write_text(page.read_text().split("```yaml\n")[1].split("```")[0])
    study = load_study("page.yaml")
    # the K-network has no batch norm
    assert len(study.cells) == 3 * 2 * 3
    assert study.cells[0].words == (
        *("-c", "korigins/e1_rfl18", "--trainer.max_epochs=15", "--data.side=96"),
        *("--model.optimizer.init_args.lr=0.001", "--seed_everything=0", "--data.seed=0"),
    )
    words = next(cell.words for cell in study.cells if cell.key["network"] == "KRFL18")
    assert words[:4] == ("-c", "korigins/e1_rfl18", "-c", "korigins/e2_krfl18")


@pytest.mark.parametrize("name", [name for name, _ in study_names()])
def test_every_shipped_study_names_what_there_is(name: str) -> None:
    study = load_study(name)
    for function in (study.rows, study.measure):
        if function is not None:
            assert callable(named(function))
    if study.rows is not None:
        for cell in study.cells:
            inspect.signature(named(study.rows)).bind(**cell.arguments)  # a TypeError names what does not fit


def test_the_best_checkpoint_of_a_resumed_run_is_the_best_of_its_parts(tmp_path: Path) -> None:
    key = "ModelCheckpoint{'monitor': 'val/iou', 'mode': 'max'}"
    for version, score in ((0, 0.7), (1, 0.9), (2, 0.8)):
        path = tmp_path / f"version_{version}" / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": {}, "callbacks": {key: {"best_model_score": torch.tensor(score)}}}, path)
    assert chosen_checkpoint(tmp_path, "best").parts[-3] == "version_1"
    # a run whose row is written is over
    (tmp_path / "version_1" / "finished").touch()
    assert chosen_checkpoint(tmp_path, "best").parts[-3] == "version_2"
    with pytest.raises(ConfigError, match="the run wrote no last"):
        chosen_checkpoint(tmp_path, "last")


def test_a_run_record_goes_on_where_its_state_was() -> None:
    record, again = RunRecord(), RunRecord()
    record.curves = {"val/iou": [(1, 0.5), (2, 0.6)]}
    record.parameters, record.steps = 7, 20
    record.load_state_dict({**record.state_dict(), "seconds": [100.0, 50.0]})
    again.load_state_dict(record.state_dict())
    assert (again.curves, again.parameters, again.steps) == (record.curves, 7, 20)
    assert 100 <= again.seconds[0] < 110
    assert 50 <= again.seconds[1] < 60
