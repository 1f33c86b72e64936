"""The accelerator's script, on a CPU: every row has its share of the limit, and no step takes the others' time."""

import argparse
import csv
import tarfile
from pathlib import Path

import pytest

from benchmarks.device.__main__ import main, parse_args
from benchmarks.device.fits import FITS
from benchmarks.device.pack import merge, pack, unpack
from benchmarks.device.runner import run_all, run_step
from benchmarks.device.steps import STEPS


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def smoke(tmp_path: Path) -> argparse.Namespace:
    return parse_args(["--smoke", "--out", str(tmp_path), "--data", str(tmp_path), "--only", "ceilings", "finola"])


@pytest.mark.slow
def test_steps_write_rows_with_their_share_of_the_limit(smoke: argparse.Namespace, tmp_path: Path) -> None:
    smoke.bundle = tmp_path / "rows.tar.gz"
    assert run_all(smoke) == 0
    assert {r["step"]: r["state"] for r in rows(tmp_path / "steps.csv")} == {"ceilings": "done", "finola": "done"}
    ceilings = {r["what"]: float(r["per_second"]) for r in rows(tmp_path / "ceilings.csv")}
    assert ceilings.keys() == {"copy", "fp32", "bf16", "fp16"}
    table = rows(tmp_path / "finola.csv")
    assert {r["form"] for r in table} == {"bare products, forward", "separable", "wavefront"}
    for row in table:
        assert row["failure"] == ""
        assert float(row["share_of_limit"]) == pytest.approx(float(row["limit_ms"]) / float(row["ms"]), abs=2e-3)
    with tarfile.open(smoke.bundle) as archive:
        assert {"ceilings.csv", "finola.csv", "finola.log", "steps.csv"} <= set(archive.getnames())


def test_a_step_is_cut_off_and_one_without_time_is_left_out(smoke: argparse.Namespace, tmp_path: Path) -> None:
    assert run_step(STEPS[0], smoke, 0.3)[0] == "cut off"
    smoke.minutes = 0.0
    assert run_all(smoke) == 0
    assert {r["state"] for r in rows(tmp_path / "steps.csv")} == {"left out"}


def test_a_failure_is_a_state_and_the_log_says_why(smoke: argparse.Namespace, tmp_path: Path) -> None:
    smoke.device = "nowhere"
    state, _ = run_step(STEPS[0], smoke, 60)
    assert state == "failed"
    assert "nowhere" in (tmp_path / "ceilings.log").read_text()


def test_merging_replaces_rows_of_the_same_card(tmp_path: Path) -> None:
    def write(folder: str, card: str, ms: str) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "finola.csv").write_text(f"form,ms,hardware,torch\nseparable,{ms},{card},2.11\n")
        return tmp_path / folder

    results = tmp_path / "results"
    for folder, card, ms in (("a", "H100", "1"), ("b", "H200", "2"), ("c", "H100", "3")):
        written = merge(write(folder, card, ms), results)
    assert written == [results / "device_finola.csv"]
    assert {(r["hardware"], r["ms"]) for r in rows(written[0])} == {("H200", "2"), ("H100", "3")}


def test_the_pack_holds_what_the_fits_name(shared_data: Path, tmp_path: Path) -> None:
    size = pack(shared_data, tmp_path / "data.tar")
    assert size < 40 * 2**20
    folder = unpack(tmp_path / "data.tar", tmp_path)
    for fit in FITS:
        for word in fit.words:
            if "{data}" in word:
                assert Path(word.split("=", 1)[1].format(data=folder)).exists(), word


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["measure"])
