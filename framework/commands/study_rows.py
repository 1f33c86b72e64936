"""A study's CSV file: whole rows or none, one writer at a time, in the order of the plan."""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.errors import ConfigError


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, as written here or by a spreadsheet (a byte order mark, a last line without an end).

    Args:
        path: of the file; none when it is not there.

    Raises:
        ConfigError: a line without a field for every column. The file is written anew from its rows, so what is no row
            would be lost.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as a CSV file: {error}; save it as UTF-8") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    names: list[str] = []
    try:
        for fields in lines:
            if not fields:
                continue
            place = f"{path}, line {lines.line_num}"
            if not names:
                names = fields
                if twice := [name for name in names if names.count(name) > 1]:
                    raise ConfigError(f"{place}: expected columns of different names, got {twice[0]!r} twice; mend it")
                continue
            if len(fields) != len(names):
                raise ConfigError(
                    f"{place}: expected a field for each of the {len(names)} columns, got {len(fields)}; mend the "
                    "line, or delete it to run its cell again"
                )
            rows.append(dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {lines.line_num}: expected a line of CSV, got {error}; mend it") from error
    return rows


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
