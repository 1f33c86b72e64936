"""The accelerator's script, on a CPU: every row has its share of the limit, and no step takes the others' time."""

import argparse
import csv
import subprocess
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
    args = parse_args(["--out", str(tmp_path), "--data", str(tmp_path), "--device", "cpu", "--only", "ceilings"])
    return argparse.Namespace(**{**vars(args), "smoke": True})


TABLES = ["splines", "experts", "finola", "origins", "scale_space"]


def test_the_whole_script_runs_on_a_cpu(tmp_path: Path) -> None:
    data = Path(__file__).parents[3] / "shared" / "data"
    args = parse_args(["--smoke", "--out", str(tmp_path), "--data", str(data)])
    args.bundle = tmp_path / "rows.tar.gz"
    assert run_all(args) == 0, {p.name: p.read_text()[-2000:] for p in tmp_path.glob("*.log")}
    states = {r["step"]: r["state"] for r in rows(tmp_path / "steps.csv")}
    assert states == {step.name: "done" for step in STEPS}
    ceilings = {r["what"]: float(r["per_second"]) for r in rows(tmp_path / "ceilings.csv")}
    assert ceilings.keys() == {"copy", "fp32", "bf16", "fp16"}
    for row in [row for name in TABLES for row in rows(tmp_path / f"{name}.csv")]:
        assert row["failure"] == ""
        assert float(row["share_of_limit"]) == pytest.approx(float(row["limit_ms"]) / float(row["ms"]), abs=2e-3)
    assert {r["form"] for r in rows(tmp_path / "finola.csv")} == {"bare products, forward", "separable", "wavefront"}
    for precision in ("fp32", "bf16", "fp16"):
        (counted,) = rows(tmp_path / f"tests_{precision}.csv")
        assert (int(counted["tests"]), int(counted["failures"]), int(counted["errors"])) == (3, 0, 0)
    with_data = {fit.name for fit in FITS if any("{data}" in word for word in fit.words)}
    for row in rows(tmp_path / "fits.csv"):
        assert row["failure"] == "" or (not data.is_dir() and row["fit"] in with_data), row
    assert all(row["failure"] == "" and int(row["operators"]) > 0 for row in rows(tmp_path / "traces.csv"))
    with tarfile.open(args.bundle) as archive:
        names = {f"{step.name}{end}" for step in STEPS for end in (".csv", ".log")}
        assert names | {"steps.csv"} <= set(archive.getnames())


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


def test_with_the_pack_the_checkout_is_below_64_mib() -> None:
    root = Path(__file__).parents[2]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout, so the files that would be carried are not known")
    size = sum(path.stat().st_size for name in listed.stdout.split("\0") if (path := root / name).is_file())
    assert size < 24 * 2**20  # the pack is below 40


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["measure"])
