"""The data that the fits need, in one archive; and the way of rows into results/."""

import csv
import re
import tarfile
import tempfile
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


def pack(data: Path, out: Path) -> int:
    """Writes the archive; returns its size in bytes. The pictures are compressed already, so it is a plain tar."""
    files = sorted({file for part in PARTS for file in data.glob(part) if file.is_file()})
    classes = sorted(folder for folder in (data / IMAGENET).iterdir() if folder.is_dir())
    files += [file for folder in classes[::EVERY] for file in sorted(folder.glob("*"))]
    files += [file for file in sorted((data / IMAGENET).glob("*")) if file.is_file() and file.suffix == ".csv"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(data))
    return out.stat().st_size


def unpack(data: Path, out: Path) -> Path:
    """The folder of the data: the one given, or what an archive holds."""
    if data.is_dir() or not data.is_file():
        return data
    folder = out / "data"
    with tarfile.open(data) as archive:
        archive.extractall(folder, filter="data")
    return folder


def merge(rows: Path, results: Path) -> list[Path]:
    """Adds the rows of every table to `device_TABLE.csv`; rows of the same card and versions are replaced.

    Args:
        rows: the folder that a run wrote, or its bundle.
        results: where the tables stand.

    Returns:
        the files written.
    """
    if rows.is_file():
        with tempfile.TemporaryDirectory() as folder, tarfile.open(rows) as archive:
            archive.extractall(folder, filter="data")
            return merge(Path(folder), results)
    written = []
    for file in sorted(rows.glob("*.csv")):
        from benchmarks.common import read_rows

        new = read_rows(file)
        target = results / f"device_{re.sub(r'[^a-z0-9]+', '_', file.stem.lower())}.csv"
        made = {(row["hardware"], row["torch"]) for row in new}
        old = [row for row in read_rows(target) if (row["hardware"], row["torch"]) not in made]
        names = list(dict.fromkeys(name for row in [*old, *new] for name in row))
        results.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=names, restval="")
            writer.writeheader()
            writer.writerows([*old, *new])
        written.append(target)
    return written
