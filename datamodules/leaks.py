"""One picture on both sides of a split, which makes figures of validation that mean nothing."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from framework.errors import few

#: files that are looked at; in a larger data set nobody copies pictures by hand
MOST = 50_000


def warn_of_shared(train: Iterable[str | Path], val: Iterable[str | Path], other: str = "val") -> None:
    """Warns of files of equal content in the train split and another one, whatever their names.

    Sizes are compared first, so that only files that might be the same are read.

    Args:
        train: files of the train split.
        val: files of the other one.
        other: its name.
    """
    one, two = list(dict.fromkeys(map(Path, train))), list(dict.fromkeys(map(Path, val)))
    if not one or not two or len(one) + len(two) > MOST:
        return
    by_size: dict[int, list[Path]] = {}
    for path in one:
        with contextlib.suppress(OSError):
            by_size.setdefault(os.path.getsize(path), []).append(path)
    known: dict[int, dict[bytes, Path]] = {}
    shared = []
    for path in two:
        with contextlib.suppress(OSError):
            size = os.path.getsize(path)
            if size not in by_size or not path.is_file():
                continue
            if size not in known:
                known[size] = {_digest(same): same for same in by_size[size] if same.is_file()}
            if (same := known[size].get(_digest(path))) is not None:
                shared.append(path.name if path == same else f"{path} = {same}")
    if shared:
        rank_zero_warn(
            f"data: {len(shared)} of the {len(two)} pictures of the {other} split are in the train split too, first "
            f"{few(shared, 2)}; {other} figures say nothing about new pictures. Split them otherwise"
        )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
