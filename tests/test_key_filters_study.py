"""The study of key filters extends its file and never mixes two measurements in one table."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.common import read_rows
from benchmarks.key_filters_study import main


def study(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["key_filters_study", *map(str, words)])
    main()


def written(path: Path, top1: dict[str, float]) -> Path:
    """What `framework test` leaves, with these accuracies."""
    rows = [
        {
            "bank": bank,
            "recalibrated": kind,
            "top1": value,
            "top5": value,
            "drop": top1["original"] - value,
            "explained_energy": 0.5,
            "parameters": 10,
        }
        for bank, value in top1.items()
        for kind in ([False] if bank == "original" else [False, True])
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_rows_that_a_file_holds_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    words = ["replacement", "--data", tmp_path, "--out", out, "--table"]
    study(monkeypatch, *words, written(tmp_path / "first.csv", {"original": 87.0, "B": 4.0}))
    study(monkeypatch, *words, written(tmp_path / "second.csv", {"original": 87.0, "B": 9.0, "random": 1.0}))
    rows = [(row["bank"], row["recalibrated"], row["top1"]) for row in read_rows(out)]
    assert rows == [
        ("original", "False", "87.00"),
        ("B", "False", "4.00"),
        ("B", "True", "4.00"),
        ("random", "False", "1.00"),
        ("random", "True", "1.00"),
    ]
    # the same banks in another network are other rows
    table = written(tmp_path / "third.csv", {"original": 90.0, "B": 60.0})
    study(monkeypatch, *words, table, "--network", "mobilenet_edgetpu")
    assert [row["top1"] for row in read_rows(out)][5:] == ["90.00", "60.00", "60.00"]


def test_a_run_with_another_untouched_accuracy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    words = ["replacement", "--data", tmp_path, "--out", out, "--table"]
    study(monkeypatch, *words, written(tmp_path / "first.csv", {"original": 87.0, "B": 4.0}))
    before = out.read_text()
    with pytest.raises(SystemExit, match=r"holds 87\.00 for the untouched mobilenetv2, this run measured 86\.00"):
        study(monkeypatch, *words, written(tmp_path / "second.csv", {"original": 86.0, "random": 1.0}))
    assert out.read_text() == before


def test_a_run_without_missing_banks_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    words = ["replacement", "--data", tmp_path, "--out", out, "--banks", "B"]
    study(monkeypatch, *words, "--table", written(tmp_path / "first.csv", {"original": 87.0, "B": 4.0}))
    before = out.read_text()
    # there are neither weights nor pictures to compute anything from
    study(monkeypatch, *words)
    assert out.read_text() == before
