"""Short configuration errors with a did-you-mean, made from jsonargparse's long ones."""

import difflib
import re
from collections.abc import Iterable

_UNKNOWN_KEYS = (
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<name>[\w.]+)"),
    re.compile(r"No action for key \"(?P<name>[\w.]+)\""),
    re.compile(r"Key '(?P<name>[\w.]+)' is not expected"),
)
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>[\w.]+)")
_UNKNOWN_IMPORT = re.compile(
    r"(?:Unexpected import path format|No module named|Unable to import)[^'\"]*['\"]?(?P<name>[\w.]+)"
)
_WRAPPERS = re.compile(
    r"^\s*(-?\s*Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|"
    r"-?\s*Expected a <class 'NoneType'>.*|Given value type: .*|Given value: .*|"
    r"-?\s*Expected a path but .* either not accessible or invalid)\s*$"
)


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names nearest to `name`, best first; compares the last dotted part as well as the whole."""
    names = list(dict.fromkeys(names))
    whole = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if whole:
        return whole
    tail = name.rsplit(".", 1)[-1].lower()
    by_tail = {n: difflib.SequenceMatcher(None, tail, n.rsplit(".", 1)[-1].lower()).ratio() for n in names}
    return [n for n in sorted(by_tail, key=lambda n: -by_tail[n])[:count] if by_tail[n] >= 0.6]


def shorten(message: str, keys: Iterable[str], classes: Iterable[str]) -> str:
    """jsonargparse's message without its type listings, with the nearest known key or class name.

    Args:
        message: the text of an `argparse.ArgumentError`.
        keys: every key the parser knows ("trainer.max_epochs", "model.width", ...).
        classes: every bare class name the configuration may use.
    """
    lines = [line for line in message.splitlines() if line.strip() and not _WRAPPERS.match(line)]
    short = "\n".join(line.rstrip() for line in lines)
    for pattern in _UNKNOWN_KEYS:
        if found := pattern.search(message):
            return short + _hint(found["name"].replace("init_args.", ""), keys)
    if found := _UNKNOWN_CLASS.search(message) or _UNKNOWN_IMPORT.search(message):
        return short + _hint(found["name"], classes)
    return short


def _hint(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f"\ndid you mean {' or '.join(near)}?" if near else "\n`framework list` and `--help` show what there is."
