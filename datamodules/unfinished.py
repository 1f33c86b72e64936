"""What a prediction has finished so far, beside its target: it goes on after Ctrl-C, a signal or a power cut.

`FOLDER/.unfinished` holds the measurements of every finished picture and the tiles of the one in work. It is claimed by
the process that writes, and gone when all is done.
"""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from framework.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there nobody sees that another process writes into the folder
    fcntl = None  # type: ignore[assignment]

NAME = ".unfinished"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write into one message.

    Raises:
        DataError: no room, no permission, ...
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}); make room or give another folder"
        ) from error


def refuse_existing(path: Path) -> None:
    """Raises DataError for a file that is there."""
    if path.exists():
        raise DataError(f"{path} is there already, and no file is replaced; give another folder or move it")


def identity(path: Path) -> list[str | int]:
    """What changes with a picture's file, as plain values: where it lies, its bytes and its time; of a folder all its
    files'."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    found = [file.stat() for file in files]
    size, time = sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)
    return [str(path.resolve()), size, time]


class FilePlane:
    """(H, W) numbers in a file, read and written by windows; nothing of it stays in this process's memory.

    Args:
        path: the file; where there is none, it begins with zeros and takes room only as it is filled.
        size: (H, W).
        dtype: of the numbers.
    """

    def __init__(self, path: Path, size: tuple[int, int], dtype: Any) -> None:
        self.path, self.size, self.dtype = path, size, np.dtype(dtype)
        with writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, size[0] * size[1] * self.dtype.itemsize)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """(y1 - y0, x1 - x0)."""
        values = np.empty((y1 - y0, x1 - x0), self.dtype)
        for y, row in zip(range(y0, y1), values, strict=True):
            os.preadv(self._file, [memoryview(row).cast("B")], self._place(y, x0))
        return values

    def write(self, y0: int, x0: int, values: np.ndarray) -> None:
        """Puts (h, w) values to row y0 and column x0.

        Raises:
            DataError: no room.
        """
        rows = np.ascontiguousarray(values, self.dtype)
        with writing(self.path):
            for y, row in enumerate(rows, y0):
                data = memoryview(row).cast("B")
                at = self._place(y, x0)
                while len(data):
                    written = os.pwrite(self._file, data, at)
                    data, at = data[written:], at + written

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def _place(self, y: int, x: int) -> int:
        return (y * self.size[1] + x) * self.dtype.itemsize


class Unfinished:
    """The folder `.unfinished` of one output folder.

    Args:
        folder: where the predictions go.
        plan: plain values that say with what is predicted; what was begun with another plan is not gone on with.
        rank: of this process; each claims its own part.

    Raises:
        ConfigError: another process writes into it, or it was begun with another plan.
        DataError: it cannot be written.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], rank: int = 0) -> None:
        self.target, self.folder = folder, folder / NAME
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim: IO[str] | None = (self.folder / f"claim_{rank}").open("w", encoding="utf-8")
        self._pictures: dict[str, str] = {}
        self._identities: dict[Path, str] = {}
        try:
            if fcntl is not None:
                fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._claim.close()
            raise ConfigError(
                f"output_dir: another process writes predictions into {folder}; wait for it, or give another folder"
            ) from error
        path, text = self.folder / "plan.json", json.dumps(plan, sort_keys=True)
        if not path.exists():
            self._write(path, text)
        elif path.read_text(encoding="utf-8") != text:
            self.release()
            raise ConfigError(
                f"output_dir: {self.folder} was begun with another network or other settings; remove it to begin anew, "
                "or give another folder"
            )

    def _write(self, path: Path, text: str) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with writing(path):
            part.write_text(text, encoding="utf-8")
            part.replace(path)

    # ------------------------------------------------------------------ pictures that are done

    def know(self, name: str, path: Path) -> None:
        """Says of which file a picture's predictions are; what was finished of another file, or before it changed, is
        not done."""
        if path not in self._identities:  # another slice of it
            self._identities[path] = json.dumps(identity(path))
        self._pictures[name] = self._identities[path]

    def finish(self, name: str, tables: Iterable[pd.DataFrame]) -> None:
        """Keeps a picture's measurements, in parts with the same columns, behind a line that says of which file they
        are; with them it is known that its own files are written."""
        path, part = self.folder / f"{name}.csv", self.folder / f"{name}.rows"
        with writing(path):
            with part.open("w", newline="", encoding="utf-8") as file:
                file.write(f"{self._pictures[name]}\n")
                for number, table in enumerate(tables):
                    table.to_csv(file, index=False, header=number == 0)
            part.replace(path)

    def moving(self, name: str) -> None:
        """Says that a picture's files are about to be moved to their places: whatever is there then is ours."""
        self._write(self.folder / f"{name}.moving", "")

    def may_write(self, name: str, path: Path) -> None:
        """Raises DataError for a file that is there and not ours."""
        if not self.has(name) and not (self.folder / f"{name}.moving").exists():
            refuse_existing(path)

    def has(self, name: str) -> bool:
        """Whether a picture is done."""
        return self._finished(name) == self._pictures[name]

    def changed(self, name: str) -> bool:
        """Whether a picture was done when its file was another."""
        return self._finished(name) not in (None, self._pictures[name])

    def _finished(self, name: str) -> str | None:
        try:
            with self._measured(name) as file:
                return file.readline().rstrip("\n")
        except FileNotFoundError:
            return None

    def _measured(self, name: str) -> IO[str]:
        return (self.folder / f"{name}.csv").open(newline="", encoding="utf-8")

    def join(self, names: Sequence[str], path: Path) -> bool:
        """Writes the measurements of pictures behind one another, line by line, without objects the columns alone.

        Returns:
            whether anything was measured; else there is no file.
        """
        kept = [name for name in names if self.has(name)]
        columns: dict[str, None] = {}
        for name in kept:
            with self._measured(name) as file:
                file.readline()
                columns.update(dict.fromkeys(next(csv.reader(file), [])))
        if not columns:
            return False
        with writing(path), path.open("w", newline="", encoding="utf-8") as target:
            writer = csv.DictWriter(target, list(columns), lineterminator="\n")
            writer.writeheader()
            for name in kept:
                with self._measured(name) as file:
                    file.readline()
                    for row in csv.DictReader(file):
                        writer.writerow(row)
        return True

    # ------------------------------------------------------------------ the picture in work

    def part(self, name: str) -> Path:
        """A folder for the tiles of a picture."""
        path = self.folder / f"{name}.tiles"
        with writing(path):
            path.mkdir(exist_ok=True)
        return path

    def drop_part(self, name: str) -> None:
        """The picture is done: its tiles go."""
        shutil.rmtree(self.folder / f"{name}.tiles", ignore_errors=True)

    # ------------------------------------------------------------------ the end

    def release(self) -> None:
        """Gives the claim back."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def leave(self) -> None:
        """Gives the claim back, and takes the folder away where nothing in it is worth keeping."""
        self.release()
        if not any(path.suffix in (".csv", ".moving", ".tiles") for path in self.folder.iterdir()):
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """All pictures are done."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)
