"""Where and how a row of a CSV was made: the machine, the versions, the command."""

import os
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import lightning
import torch


def cpu_model() -> str:
    """Name of the processor as the system states it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Columns `hardware`, `torch`, `lightning` and `date`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "hardware": gpu or f"{cpu_model()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()}",
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "date": date.today().isoformat(),
    }


def portable(words: Iterable[str]) -> list[str]:
    """Words of a command without the part of a path that only this machine has, also in `--key=PATH`."""
    return [_portable(word) for word in words]


def _portable(word: str) -> str:
    head, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    return f"{head}{equals}{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}"
