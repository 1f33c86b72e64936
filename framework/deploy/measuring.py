"""What an exported file costs, in a process of its own: `python -m framework.deploy.measuring FILE INPUTS`."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from framework.deploy.running import milliseconds, opened
from framework.errors import ConfigError

MIB = 2**20


def measured(path: Path, one: Sequence[np.ndarray], many: Sequence[np.ndarray], seconds: float) -> dict[str, float]:
    """Times and memory of a file, in a fresh process with as many threads as this one.

    Args:
        path: of the file.
        one: inputs of a single picture.
        many: of a batch.
        seconds: to measure each for.

    Returns:
        `latency_ms` of one, `per_second` samples of many, and `memory_mib`: the process's peak above what it held
        before the file was opened.

    Raises:
        ConfigError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, arrays in (("one", one), ("many", many)):
            np.savez(Path(folder, f"{name}.npz"), *arrays)
        words = [sys.executable, "-m", "framework.deploy.measuring", str(path), folder]
        words += [str(torch.get_num_threads()), str(seconds)]
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"bench: {path.name} failed in its own process: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(path: str, folder: str, threads: str, seconds: str) -> None:
    torch.set_num_threads(int(threads))
    inputs = {}
    for name in ("one", "many"):
        arrays = np.load(Path(folder, f"{name}.npz"))
        inputs[name] = [arrays[key] for key in arrays.files]
    before = _peak()
    run = opened(Path(path))
    latency = milliseconds(lambda: run(*inputs["one"]), float(seconds))
    whole = milliseconds(lambda: run(*inputs["many"]), float(seconds))
    rows = len(inputs["many"][0])
    found = {"latency_ms": latency, "per_second": 1000 * rows / whole, "memory_mib": (_peak() - before) / MIB}
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


def _peak() -> int:
    """Bytes that the process held at most, as Linux counts them."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _main(*sys.argv[1:])
