"""What an exported file costs, in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from framework.deploy import worker
from framework.errors import ConfigError


def measured(path: Path, one: Sequence[np.ndarray], many: Sequence[np.ndarray], seconds: float) -> dict[str, float]:
    """Times and memory of a file of ours, in a fresh process with as many threads as this one.

    Args:
        path: of the file.
        one: inputs of a single sample.
        many: of a batch.
        seconds: to measure each for.

    Returns:
        `latency_ms` of one and `cpu_ms`, the processors' time of it; `per_second` samples of many; `memory_mib`: the
        process's peak above what it held before the file was opened.

    Raises:
        ConfigError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, arrays in (("one", one), ("many", many)):
            np.savez(Path(folder, f"{name}.npz"), *arrays)
        words = [sys.executable, "-I", worker.__file__, str(path), folder, str(torch.get_num_threads()), str(seconds)]
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"bench: {path.name} failed in its own process: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])
