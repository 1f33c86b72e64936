"""Runs the steps one after the other, each in a process of its own, within the time there is; tiny ones in this one."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
import traceback
import warnings
from pathlib import Path

from benchmarks.common import append_row, environment
from benchmarks.device.pack import unpack
from benchmarks.device.steps import STEPS, Step

#: of every tiny step
SMOKE_SECONDS = 120.0
#: a step is not begun with less time than this, seconds
LEAST = 5.0


def run_all(args: argparse.Namespace) -> int:
    """Runs every step whose time has not run out; returns the number of steps that failed."""
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    args.data = unpack(args.data, args.out)
    (args.out / "steps.csv").unlink(missing_ok=True)
    failed = 0
    for step in STEPS:
        if args.only and step.name not in args.only:
            continue
        left = 60 * args.minutes - (time.monotonic() - begun)
        limit = min(SMOKE_SECONDS if args.smoke else step.seconds, left)
        started = run_here if args.smoke else run_step
        state, took = ("left out", 0.0) if limit < LEAST else started(step, args, limit)
        failed += state == "failed"
        row = {"step": step.name, "state": state, "seconds": round(took, 1), "limit_seconds": round(limit, 1)}
        print(f"{step.name:24} {state:10} {took:6.1f} s", flush=True)
        append_row(args.out / "steps.csv", {**row, **environment()})
        if args.bundle:
            bundle(args.out, args.bundle)
    print_shares(args.out)
    return failed


def run_step(step: Step, args: argparse.Namespace, limit: float) -> tuple[str, float]:
    """`done`, `failed` or `cut off`, and the seconds it took; what it printed is in its log."""
    words = [sys.executable, "-m", "benchmarks.device", "step", step.name, "--out", str(args.out)]
    words += ["--data", str(args.data), "--device", args.device, "--seconds", str(limit)]
    words += ["--smoke"] if args.smoke else []
    begun = time.monotonic()
    with (args.out / f"{step.name}.log").open("w") as log:
        # a session of its own, so that nothing it started outlives it
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=surroundings(args)
        )
        try:
            state = "failed" if process.wait(limit) else "done"
        except subprocess.TimeoutExpired:
            state = "cut off"
        finally:
            stop(process)
    return state, time.monotonic() - begun


def run_here(step: Step, args: argparse.Namespace, limit: float) -> tuple[str, float]:
    """As `run_step`, in this process and to its end: starting a process would take longer than a tiny step."""
    import torch

    from benchmarks.device import steps

    begun, state, threads = time.monotonic(), "done", torch.get_num_threads()
    with (
        (args.out / f"{step.name}.log").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        try:
            steps.run(step.name, argparse.Namespace(**{**vars(args), "seconds": limit}))
        except (Exception, SystemExit) as error:
            if not isinstance(error, SystemExit) or error.code:
                traceback.print_exc()
                state = "failed"
        finally:
            torch.set_num_threads(threads)
    return state, time.monotonic() - begun


def surroundings(args: argparse.Namespace) -> dict[str, str]:
    """The environment of a step: unbuffered, and on a CPU one thread."""
    more = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    return {**os.environ, **more, **({"OMP_NUM_THREADS": "1"} if args.device == "cpu" else {})}


def stop(process: subprocess.Popen) -> None:
    """Ends a step's process and whatever it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sent)
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                continue


def bundle(folder: Path, path: Path) -> None:
    """Writes the folder's CSV files and logs into one archive: first aside, then in its place."""
    aside = path.with_suffix(".part")
    with tarfile.open(aside, "w:gz") as archive:
        for file in sorted(folder.glob("*")):
            if file.suffix in (".csv", ".log", ".gz") and file != path:
                archive.add(file, file.name)
    aside.replace(path)


def print_shares(folder: Path) -> None:
    """A short table: every timed row with its share of the device's limit."""
    import pandas as pd

    for file in sorted(folder.glob("*.csv")):
        table = pd.read_csv(file)
        if "share_of_limit" in table:
            print(f"\n{file.stem}")
            shown = [c for c in table.columns if c in ("case", "form", "dtype", "ms", "share_of_limit", "held_mib")]
            print(table[shown].to_string(index=False))
