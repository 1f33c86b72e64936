"""A study's CSV file: whole rows or none, one writer at a time, in the order of the plan."""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a CSV; none when the file is not there. A last row that was only half written is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    return [row for row in rows if None not in row and None not in row.values()]


def keys_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> set[tuple[str, ...]]:
    """What the rows are known by."""
    return {tuple(str(row.get(column, "")) for column in columns) for row in rows}


def add_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], order: Sequence[tuple[str, ...]]
) -> bool:
    """Adds one cell's rows, all at once, unless the file holds rows of this key.

    Args:
        path: the CSV; it is replaced by a whole file, so that no reader sees half a row.
        rows: of one cell.
        columns: names of the columns that a cell is known by.
        order: keys in the order in which the file is to hold them; rows of other keys come last.

    Returns:
        False when the rows were there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        held: list[Mapping[str, Any]] = [*read_rows(path)]
        if keys_of(held, columns) & keys_of(rows, columns):
            return False
        place = {key: number for number, key in enumerate(order)}
        every = sorted(
            [*held, *rows],
            key=lambda row: place.get(tuple(str(row.get(column, "")) for column in columns), len(place)),
        )
        write_rows(path, every)
    return True


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a CSV by these rows; a column that only some rows have is empty in the others."""
    names = dict.fromkeys(name for row in rows for name in row)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock on a file or folder; the system takes it back when the process ends, however it ends.

    Yields:
        False when another process holds it and `wait` is False.
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
