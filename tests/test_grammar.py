"""Every message is a sentence in one grammar (CONTRIBUTING.md): PLACE: expected WHAT, got WHAT; what to do."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = {"ConfigError", "DataError", "CheckpointError", "DivergenceError"}
#: an argument or several, an option with its value, a class, or something filled in (a file, mostly)
PLACE = re.compile(
    r"^(\{\}|-c \{\}:|--[a-z]+( \{\})?:|(checkpoint|filter|study|framework) (\{\}|study: \{\}):"
    r"|[\w.{}*]+((, | and )[\w.{}*]+)*:)"
)
#: told of a file, whose name the caller puts in front
NAMED_BY_CALLER = {"framework/commands/yaml_files.py"}
#: says what happened and when, and is of no argument
OF_A_RUN = "DivergenceError"


def words(node: ast.expr) -> str | None:
    """A message with {} for whatever is filled in; None for one that is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return None


def messages() -> Iterator[tuple[str, str, str]]:
    """(where, class, words) of every error of ours."""
    for package in ("framework", "models", "datamodules", "callbacks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                kind = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                if kind in KINDS and isinstance(node, ast.Call) and node.args:
                    said = words(node.args[0])
                    if said is not None:
                        yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", kind, said


def faults(where: str, kind: str, said: str) -> list[str]:
    """What is wrong with a message."""
    wrong = []
    if not PLACE.match(said) and where.split(":")[0] not in NAMED_BY_CALLER and kind != OF_A_RUN:
        wrong.append("begins with no place")
    if said.endswith("."):
        wrong.append("ends with a full stop")
    if re.search(r"\b(must|should) ", said):
        wrong.append("commands, and does not say what is expected")
    if re.search(r"\bgot\b.*\bexpected\b", said) and not re.search(r"\bexpected\b.*\bgot\b", said):
        wrong.append("says what it got before what was expected")
    if re.search(r"; expected\b", said):
        wrong.append("puts what was expected behind what is wrong")
    return wrong


def test_every_message_keeps_to_the_grammar() -> None:
    found = [(where, kind, said) for where, kind, said in messages()]
    assert len(found) > 400
    assert {f"{where} {said}": wrong for where, kind, said in found if (wrong := faults(where, kind, said))} == {}


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("model.rfl: expected one of {}, got {}", []),
        ("data.mean and data.std: expected one number per class, got {}; give both", []),
        ("{} has no array 'learned', only {}", []),
        ("rfl is {}; expected one of {}.", ["begins", "ends", "puts"]),
        ("images: got {}, expected at least 1", ["says"]),
        ("data.masks: {} must have its image's size", ["commands,"]),
    ],
)
def test_the_grammar_tells_good_from_bad(said, wrong) -> None:
    found = faults("here.py:1", "ConfigError", said)
    assert [fault.split(" ")[0] for fault in found] == wrong
