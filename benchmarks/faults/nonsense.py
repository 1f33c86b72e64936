"""Seeded nonsense: configurations, values, bytes. The tests use it too."""

import random
from typing import Any

JUNK: list[Any] = [
    None,
    5,
    -1,
    2.5,
    10**30,
    float("nan"),
    "",
    "abc",
    "\u00e4",
    [],
    [1, [2]],
    {},
    {"a": {"b": 1}},
    True,
    "*x",
    "null",
    "os.system",
]


def junk_inside(value: Any, rng: random.Random) -> Any:
    """The same configuration with one value replaced by junk, at any level."""
    if not isinstance(value, dict) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    key = rng.choice(list(value))
    return {**value, key: junk_inside(value[key], rng)}


def scrambled(text: bytes, rng: random.Random) -> bytes:
    """A text or file with a few bytes flipped, taken out, doubled or cut off."""
    data = bytearray(text)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = rng.choice([b"\x00", b"\xff", b"\t", b"[", b"}", b": ", b"\n", b"&a *a"])
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)
