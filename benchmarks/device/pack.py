"""The data that the fits need, in one archive; and the way of rows into results/."""

import csv
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

#: globs below the data folder, 40 MB together
PARTS = (
    "kodak/kodim0[1-6].png",
    "kodak/MD5SUMS.txt",
    "dsb2018_nuclei/**/*",
    "mobilenetv2_imagenet/*",
    "masterkey/*",
)
#: one picture a class of every fifth class
IMAGENET, EVERY = "imagenet_sample_256", 6
#: the columns that tell whose rows they are
OWNER = ("hardware", "torch")


class Refused(ValueError):
    """A path or a file that the command line was given and that cannot be used; its message is one line."""


def pack(data: Path, out: Path) -> int:
    """Writes the archive; returns its size in bytes. The pictures are compressed already, so it is a plain tar.

    Raises:
        Refused: the data folder lacks a part, or the archive cannot be written there.
    """
    if not data.is_dir():
        raise Refused(f"--data: expected the folder of the data, got {data}, which is {kind(data)}")
    missing = [part for part in (*PARTS, f"{IMAGENET}/*") if not any(data.glob(part))]
    if missing:
        raise Refused(f"--data: expected {', '.join(missing)} in the folder, got {data} without")
    if out.is_dir():
        raise Refused(f"--out: expected the name of the archive to write, got {out}, which is a folder")
    files = sorted({file for part in PARTS for file in data.glob(part) if file.is_file()})
    classes = sorted(folder for folder in (data / IMAGENET).iterdir() if folder.is_dir())
    files += [file for folder in classes[::EVERY] for file in sorted(folder.glob("*"))]
    files += [file for file in sorted((data / IMAGENET).glob("*")) if file.is_file() and file.suffix == ".csv"]
    make_folder(out.parent, "--out")
    with tarfile.open(out, "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(data))
    return out.stat().st_size


def kind(path: Path) -> str:
    """What stands at a path, in words."""
    return "a folder" if path.is_dir() else "a file" if path.exists() else "not there"


def make_folder(path: Path, option: str) -> None:
    """Makes a folder with those above it; refuses a path where a file stands or that cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{option}: expected a folder to write into, got {path} ({error.strerror})") from None


def extract(path: Path, folder: Path, option: str) -> None:
    """Unpacks an archive; refuses a file that is none, or one that was cut short."""
    try:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        why = " ".join(str(error).split())
        raise Refused(f"{option}: expected a folder or a tar archive, got {path} ({why})") from None


def unpack(data: Path, out: Path) -> Path:
    """The folder of the data: the one given, or what an archive holds."""
    if data.is_dir() or not data.is_file():
        return data
    extract(data, out / "data", "--data")
    return out / "data"


def table(path: Path, shown: str) -> list[dict[str, str]]:
    """The rows of a CSV file that a step wrote; refuses what is no text, or says not whose rows they are."""
    from benchmarks.common import read_rows

    try:
        rows = read_rows(path)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise Refused(f"{shown}: expected a CSV file in UTF-8, got what cannot be read ({error})") from None
    for row in rows:
        if None in row or any(row.get(name) is None for name in OWNER):
            raise Refused(f"{shown}: expected rows with {' and '.join(OWNER)}, got columns {listed(row)}")
    return rows


def listed(names: Iterable[str | None]) -> str:
    """Names of columns in one line; csv keeps the cells beyond the header under None."""
    return ", ".join(repr(name) if name is not None else "(more cells than names)" for name in names)


def merge(rows: Path, results: Path) -> list[Path]:
    """Adds the rows of every table to `device_TABLE.csv`; rows of the same card and versions are replaced.

    Every table is read before the first is written, so that what is refused changes nothing.

    Args:
        rows: the folder that a run wrote, or its bundle.
        results: where the tables stand.

    Returns:
        the files written.

    Raises:
        Refused: there are no tables, or one of them cannot be read.
    """
    if not rows.exists():
        raise Refused(f"merge: expected the folder of a run or its .tar.gz, got {rows}, which is not there")
    if rows.is_dir():
        return merge_folder(rows, results, rows)
    with tempfile.TemporaryDirectory() as folder:
        extract(rows, Path(folder), "merge")
        return merge_folder(Path(folder), results, rows)


def merge_folder(folder: Path, results: Path, given: Path) -> list[Path]:
    """As `merge`, from a folder; `given` is what messages name."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise Refused(f"merge: expected the CSV files of a run, got {given}, which holds none")
    merged = {}
    for file in files:
        new = table(file, f"merge: {given / file.name}")
        target = results / f"device_{re.sub(r'[^a-z0-9]+', '_', file.stem.lower())}.csv"
        made = {tuple(row[name] for name in OWNER) for row in new}
        old = table(target, f"merge: {target}")
        merged[target] = [*(row for row in old if tuple(row[name] for name in OWNER) not in made), *new]
    make_folder(results, "--out")
    for target, lines in merged.items():
        names = list(dict.fromkeys(name for row in lines for name in row))
        with target.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=names, restval="")
            writer.writeheader()
            writer.writerows(lines)
    return list(merged)
