"""What was changed in the inputs that were accepted: every one is made again from its number and compared.

python -m benchmarks.faults.accepted --faults results/faults.csv --out results/faults_accepted.csv
"""

import argparse
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.common import append_row, environment, read_rows
from benchmarks.faults import fuzz, runs
from benchmarks.faults.record import one_line


def changed(case: int) -> str:
    """What an accepted input says otherwise than the whole one does, in words."""
    kind = [kind for kind, count in fuzz.KINDS.items() for _ in range(count)][case]
    pairs: list[tuple[bytes, bytes]] = []

    def seen(text: bytes, rng: random.Random) -> bytes:
        pairs.append((text, scrambled(text, rng)))
        return pairs[-1][1]

    scrambled = fuzz.scrambled
    with runs.room() as folder, mock.patch.object(fuzz, "scrambled", seen):
        words = fuzz.MAKE[kind](random.Random(f"fuzz {case}"), folder)
        if kind == "words":
            return one_line(fuzz.shown(kind, words, folder))
        if kind == "configuration value":
            now = yaml.safe_load((folder / "mine.yaml").read_text(encoding="utf-8"))
            return "; ".join(_differences(yaml.safe_load(fuzz.configuration()), now))
        if not pairs:
            whole = torch.load(io.BytesIO(fuzz.checkpoint_bytes()), weights_only=True)
            return "; ".join(_differences(whole, torch.load(folder / "mine.ckpt", weights_only=True)))
    before, after = pairs[0]
    if before == after:
        return "nothing: the bytes are as they were"
    try:
        return MEANT[kind](before, after)
    except RuntimeError:  # a checkpoint's bytes differ from run to run, so the damage may fall elsewhere
        return "not made again: the damage falls elsewhere in another checkpoint"


def _text(before: bytes, after: bytes) -> str:
    return "; ".join(_differences(yaml.safe_load(before), yaml.safe_load(after))) or "nothing: comments, blanks"


def _archive(before: bytes, after: bytes) -> str:
    two = [torch.load(io.BytesIO(data), weights_only=True) for data in (before, after)]
    return "; ".join(_differences(*two)) or "nothing: bytes of the archive that hold no value"


def _picture(before: bytes, after: bytes) -> str:
    one, two = (np.asarray(Image.open(io.BytesIO(data))) for data in (before, after))
    kind = Image.open(io.BytesIO(before)).format
    if one.shape != two.shape:
        return f"{kind}: {one.shape} became {two.shape}"
    count = int((one != two).sum())
    return f"{kind}: {count} of {one.size} pixels" if count else "nothing: the pixels are as they were"


def _table(before: bytes, after: bytes) -> str:
    one, two = (data.decode(errors="replace").split("\n") for data in (before, after))
    lines = [line for line in two if line not in one]
    return "rows: " + "; ".join(map(repr, lines)) if lines else "nothing: empty lines, repeated rows"


#: kind -> what it means that its bytes are others
MEANT = {
    "configuration text": _text, "checkpoint": _archive, "picture": _picture, "mask": _picture, "table": _table,
}  # fmt: skip


def _differences(one: Any, two: Any, at: str = "") -> Iterator[str]:
    """Entries of nested values that differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            place = f"{at}.{str(key).partition('{')[0]}".lstrip(".")
            if key not in two or key not in one:
                yield f"{place} {'is missing' if key in one else 'is new'}"
            else:
                yield from _differences(one[key], two[key], place)
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape != two.shape or not torch.equal(one, two):
            yield f"{at}: other numbers"
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _differences(a, b, f"{at}.{number}")
    elif type(one) is not type(two) or one != two:
        yield f"{at}: {one_line(str(two), 40) or repr(two)}"


def main(words: list[str]) -> None:
    """A row for every accepted input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(words)
    out = args.out.resolve()
    taken = [row for row in read_rows(args.faults) if row["kind"] == "fuzz" and row["status"] == "0"]
    done = {row["case"] for row in read_rows(out)}
    command = f"python -m benchmarks.faults.accepted --faults {args.faults} --out {args.out}"
    for row in taken:
        if row["case"] not in done:
            said = one_line(changed(int(row["case"])))
            row = {key: row[key] for key in ("case", "what")}
            append_row(out, {**row, "changed": said, **environment(), "command": command})


if __name__ == "__main__":
    main(sys.argv[1:])
