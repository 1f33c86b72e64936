"""What every benchmark and study writes beside its figures: the machine, the versions, the command."""

import csv
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import lightning
import torch


def cpu_model() -> str:
    """Name of the processor as the system states it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Columns that say where and how a row was made."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "hardware": gpu or f"{cpu_model()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()}",
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_portable, sys.argv[1:])]),
    }


def _portable(word: str) -> str:
    """A path below the working directory or elsewhere without the part that only this machine has."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows written so far; none when the file is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Adds one row, and the header to a new file, so that an interrupted study keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
