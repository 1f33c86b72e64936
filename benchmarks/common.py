"""What every benchmark writes beside its figures: the machine, the versions, the command."""

import csv
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from framework import provenance


def environment() -> dict[str, str]:
    """Columns that say where and how a row was made."""
    # `python -m benchmarks.device` runs the file __main__.py of a package
    program = getattr(sys.modules["__main__"], "__spec__", None)
    name = program.name.removesuffix(".__main__") if program is not None else f"benchmarks.{Path(sys.argv[0]).stem}"
    words = ["python", "-m", name, *provenance.portable(sys.argv[1:])]
    return {**provenance.environment(), "command": shlex.join(words)}


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
