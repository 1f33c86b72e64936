"""The tests that can be pointed at a device: tests/nn, the steps that must not wait, one short fit of every method."""

import argparse
import os
import subprocess
import sys
from typing import IO, cast

DTYPES = {"tests_fp32": "float32", "tests_bf16": "bfloat16", "tests_fp16": "float16"}


def run(name: str, args: argparse.Namespace) -> None:
    """Runs them; the log holds every failure, `NAME.csv` the counts."""
    dtype = DTYPES[name]
    files = ["tests/nn/test_device_and_dtype.py", "tests/test_short_fits.py"]
    if dtype == "float32" and not args.smoke:
        files += ["tests/test_no_waiting.py", "tests/nn"]
    report = args.out / f"{name}.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", *files]
    words += [f"--device={args.device}", f"--dtype={dtype}", f"--junitxml={report}", "--tb=short"]
    words += ["-n", "4", "--dist", "worksteal"] if args.device == "cuda" else ["-n", "0"]
    if args.smoke:
        words += ["-k", "finola and reference"]
    # through a pipe, so that what it prints goes where this step's output goes
    # and without what a pytest that all this runs in has asked for, counting lines above all
    around = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=around)
    for line in cast(IO[str], process.stdout):
        print(line, end="", flush=True)
    code = process.wait()
    count(name, args)
    sys.exit(code)


def count(name: str, args: argparse.Namespace) -> None:
    """One row: how many tests passed, failed and were skipped."""
    import xml.etree.ElementTree as ElementTree

    from benchmarks.common import append_row, environment

    path = args.out / f"{name}.csv"
    path.unlink(missing_ok=True)
    suite = ElementTree.parse(args.out / f"{name}.xml").getroot().find("testsuite")
    assert suite is not None
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    append_row(path, {"dtype": DTYPES[name], **counts, "seconds": suite.get("time"), **environment()})
