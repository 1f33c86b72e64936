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


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line behind argparse's usage."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("python -m benchmarks.device: error: ")
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("measure", "invalid choice: 'measure'"),
        ("pack", "pack: expected --out with the archive to write, got none"),
        ("pack kodak --out d.tar", "pack: expected no name, got kodak"),
        ("pack --data nowhere --out d.tar", "--data: expected the folder of the data, got nowhere, which is not there"),
        ("pack --data empty --out d.tar", "kodak/MD5SUMS.txt"),
        ("merge", "merge: expected the folder of a run or its .tar.gz, got nothing"),
        ("merge nowhere", "got nowhere, which is not there"),
        ("--merge nowhere", "got nowhere, which is not there"),
        ("merge empty", "expected the CSV files of a run, got empty, which holds none"),
        ("merge notgz.tar.gz", "expected a folder or a tar archive, got notgz.tar.gz"),
        ("run --merge empty", "--merge: expected no verb beside it, got run"),
        ("run finola", "run: expected no name, got finola"),
        ("step --out rows", "step: expected steps of ceilings, tests_fp32, "),
        ("step nosuch --out rows", "fits, traces, got nosuch"),
        ("step finola", "step: expected --out with the folder of the CSV files, got none"),
        ("--only nosuch finola", "--only: expected steps of ceilings, tests_fp32, "),
        ("--only nosuch", "fits, traces, got nosuch"),
        ("--only", "expected at least one argument"),
        ("--minutes -1", "--minutes: expected more than 5 seconds, in minutes, got -1"),
        ("--minutes nan", "got nan"),
        ("--minutes 0.08", "got 0.08"),
        ("--out notgz.tar.gz", "--out: expected a folder to write into, got notgz.tar.gz, which is a file"),
        ("--out notgz.tar.gz/rows", "--out: expected a folder to write into, got notgz.tar.gz/rows"),
        ("step finola --out notgz.tar.gz", "--out: expected a folder to write into, got notgz.tar.gz"),
        ("--out rows --data notgz.tar.gz", "--data: expected a folder or a tar archive, got notgz.tar.gz"),
        ("--bundle empty", "--bundle: expected an archive"),
        ("--bundle nowhere/rows.tar.gz", "in nowhere, which is not there"),
    ],
)
def test_what_cannot_be_meant_is_one_message(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notgz.tar.gz").write_bytes(b"no archive")
    assert said in refusal(capsys, *words.split())
    assert not (tmp_path / "d.tar").exists()
    assert not (tmp_path / "results").exists()


GOOD = b"form,ms,hardware,torch\nseparable,1,H100,2.11\n"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"\x89PNG\xff\xfe\x00", "expected a CSV file in UTF-8"),
        (b"form,ms\nseparable,1\n", "expected rows with hardware and torch, got columns 'form', 'ms'"),
        (b"hardware,torch\nH100,2.11,3\n", "(more cells than names)"),
        (b"form,hardware,torch\nseparable,H100\n", "expected rows with hardware and torch"),
    ],
)
@pytest.mark.parametrize("bundled", [False, True])
def test_a_table_that_cannot_be_read_changes_no_other(
    bad: bytes, said: str, bundled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "rows"
    given.mkdir()
    (given / "finola.csv").write_bytes(GOOD)
    (given / "splines.csv").write_bytes(bad)
    if bundled:
        given = tmp_path / "rows.tar.gz"
        with tarfile.open(given, "w:gz") as archive:
            archive.add(tmp_path / "rows", ".")
    line = refusal(capsys, "merge", given, "--out", tmp_path / "results")
    assert said in line
    assert str(given / "splines.csv") in line
    assert not (tmp_path / "results").exists()


def test_an_archive_that_was_cut_short_or_a_results_folder_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "finola.csv").write_bytes(GOOD)
    whole, cut = tmp_path / "whole.tar.gz", tmp_path / "cut.tar.gz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(tmp_path / "rows", ".")
    cut.write_bytes(whole.read_bytes()[:60])
    assert f"got {cut}" in refusal(capsys, "merge", cut, "--out", tmp_path / "results")
    assert "--out: expected a folder" in refusal(capsys, "merge", tmp_path / "rows", "--out", whole)


def test_merge_has_two_spellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "finola.csv").write_bytes(GOOD)
    for out, words in (("a", ["merge"]), ("b", ["--merge"])):
        assert main([*words, str(tmp_path / "rows"), "--out", str(tmp_path / out)]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / out / "device_finola.csv")]
    assert rows(tmp_path / "a" / "device_finola.csv") == rows(tmp_path / "b" / "device_finola.csv")
