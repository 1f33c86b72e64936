"""Short configuration errors with a did-you-mean, made from jsonargparse's long ones."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

_UNKNOWN_KEYS = (
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"[Uu]nrecognized arguments: (?P<name>-[-\w.]*)"),
    re.compile(r"No action for key \"(?P<name>[\w.]+)\""),
    re.compile(r"Key '(?P<name>[\w.]+)' is not expected"),
)
_KEY = re.compile(r'Parser key "(?P<name>[\w.]+)"')
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[\w.]+)'")
_REQUIRED = re.compile(r"the following arguments are required: (?P<names>[\w., ]+)")
_EXPECTED = re.compile(r"Expected an? (?P<what><class '[\w.]+'>|[\w.]*Literal\[[^\]]*\])")
_GOT = re.compile(r"(?:Got value|Given value): (?P<value>.*?)(?=\. Got value:|$)", re.M)
_UNLOADABLE = re.compile(r"Unable to load config '(?P<value>[^']*)'")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
_UNKNOWN_IMPORT = re.compile(
    r"(?:Unexpected import path format|No module named|Unable to import)[^'\"]*['\"]?(?P<name>[\w.]+)"
)
_WRAPPERS = re.compile(
    r"^\s*(-?\s*Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|"
    r"-?\s*Expected a <class 'NoneType'>.*|Given value type: .*|Given value: .*|Parser key .*:|"
    r"-?\s*Problem with given class_path '[\w.]+':|"
    r"-?\s*Expected a path but .* either not accessible or invalid)\s*$"
)


def nearest_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names nearest to `name`, best first; compares the last dotted part as well as the whole."""
    names = list(dict.fromkeys(names))
    whole = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if whole:
        return whole
    tail = name.rsplit(".", 1)[-1].lower()
    by_tail = {n: difflib.SequenceMatcher(None, tail, n.rsplit(".", 1)[-1].lower()).ratio() for n in names}
    return [n for n in sorted(by_tail, key=lambda n: -by_tail[n])[:count] if by_tail[n] >= 0.6]


def shorten(
    message: str, keys: Iterable[str], classes: Iterable[str], owners: Mapping[str, Sequence[str]] | None = None
) -> str:
    """jsonargparse's message in our words: one to three lines with the key, what was expected and got, or is nearest.

    Args:
        message: the text of jsonargparse's exception.
        keys: every key the parser knows ("trainer.max_epochs", "model.width", ...).
        classes: every bare class name the configuration may use.
        owners: argument names of every class of ours, to say whose an option is.
    """
    owners = owners or {}
    where = _where(message)
    of = _CLASS.findall(message)
    name_of = of[-1].rsplit(".", 1)[-1] if of else ""
    for pattern in _UNKNOWN_KEYS:
        if found := pattern.search(message):
            return _unknown_option(
                found["name"].removeprefix("--").replace("init_args.", ""), where, name_of, keys, owners
            )
    if found := _REQUIRED.search(message):
        names = found["names"].strip().replace("fit.", "").replace("test.", "")
        return f"{where or 'command line'}: expected a value for {names}, got none\ngive it as {_option(where, names)}"
    if found := _UNLOADABLE.search(message):
        return f"{where}: expected keys and values, got {found['value']}"
    inner = message[: found.start()] if (found := _GOT.search(message)) else message
    kinds = list(dict.fromkeys(_plain(m["what"]) for m in _EXPECTED.finditer(inner)))
    unknown = _UNKNOWN_CLASS.search(message) or _UNKNOWN_IMPORT.search(message)
    said = _own_words(message)
    if said and not unknown:
        return f"{said}" if ":" in said.split(" ")[0] else f"{where + ': ' if where else ''}{said}"
    if unknown and not any(kind in ("int", "float", "str", "bool") for kind in kinds):
        return f"{where}: expected a class that can be imported, got {unknown['name']}" + _hint(
            unknown["name"], classes
        )
    got = _GOT.search(message)
    expected = [kind for kind in kinds if kind != "null"] or kinds
    if got and expected:
        return f"{where}: expected {' or '.join(expected)}, got {got['value'].strip()}"
    return "\n".join(line.strip() for line in message.splitlines() if line.strip() and not _WRAPPERS.match(line))


def _where(message: str) -> str:
    names: list[str] = []
    for match in _KEY.finditer(message):
        if match["name"] not in names:
            names.append(match["name"])
    return ".".join(names)


def _plain(kind: str) -> str:
    """`<class 'int'>` is int, a Literal is its values."""
    if "Literal[" in kind:
        return "one of " + kind.split("[", 1)[1].rstrip("]").replace("'", "")
    name = kind.removeprefix("<class '").removesuffix("'>")
    return {"NoneType": "null", "bool": "true or false"}.get(name, name)


def _own_words(message: str) -> str:
    """The message of a class's own that stands in a list of errors."""
    for line in message.splitlines():
        text = line.strip()
        if text.startswith("- ") and not re.match(
            r"- (Expected|Problem with|Not a valid|Does not|a |Parser key)", text
        ):
            return text.removeprefix("- ")
    return ""


def _option(where: str, names: str) -> str:
    first = names.split(",")[0].strip()
    return f"--{where}.{first}=..." if where else f"--{first}=..."


def _unknown_option(name: str, where: str, of: str, keys: Iterable[str], owners: Mapping[str, Sequence[str]]) -> str:
    sections = {key.split(".", 1)[0] for key in keys}
    if "." in name and sections and not of and name.split(".", 1)[0] not in sections:
        name = name.split(".", 1)[0]  # the section is unknown, whatever stands in it
    last = name.rsplit(".", 1)[-1]
    known = [*owners[of]] if of in owners else [k for k in keys if k.rsplit(".", 1)[-1] != last or k == name]
    head = f"{where + ': ' if where else ''}{of + ': ' if of else ''}option '{last}' is not accepted"
    if of in ("LightningDataModule", "LightningModule"):  # the base: no class is chosen
        return f"{head}\nno class is chosen: give --{where or 'data'} CLASS, -c CONFIG, or --ckpt_path CHECKPOINT"
    near = nearest_names(name, known)
    if near:
        return f"{head}\ndid you mean {' or '.join(near)}?"
    others = [owner for owner, names in owners.items() if last in names and owner != of]
    if others:
        return f"{head}\nit belongs to {', '.join(others[:4])}"
    return f"{head}\n`framework list` and `--help` show what there is."


def _hint(name: str, names: Iterable[str]) -> str:
    near = nearest_names(name, names)
    return f"\ndid you mean {' or '.join(near)}?" if near else "\n`framework list` and `--help` show what there is."
