"""`.pt2` files read as data: torch's own reader would evaluate texts and unpickle objects of a file (torch 2.15)."""

import ast
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.errors import CheckpointError

#: parts of an archive that are read; compiled code (`data/aotinductor`) is not among them
_PARTS = re.compile(
    r"(models/model\.json|data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|archive_(format|version)"
    r"|byteorder|version|\.data/[\w.]+|\.format_version|\.storage_alignment)"
)
#: what a node of the graph may call
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem|not_)"
)
_BLOCKS = re.compile(r"torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)")
#: sympy's and torch's functions of sizes, as their expressions are written
_FUNCTIONS = re.compile(
    "Symbol|Integer|Rational|Float|Mul|Add|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|ToFloat|Half"
    "|IntTrueDiv|FloatTrueDiv|TruncToInt|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Where|Equality|Unequality|One|Zero"
    "|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|Identity|NegativeOne"
)
_NAMES = {"L", "torch", "inf", "oo", "int_oo", "math", "true", "false"}
_METHODS = {
    "size",
    "stride",
    "storage_offset",
    "dtype",
    "device",
    "isnan",
    "trunc",
    "sym_max",
    "sym_min",
    "sym_not",
    "sym_float",
}
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def load_exported(path: str | Path) -> nn.Module:
    """A module from a `.pt2` file of `framework export`, wherever the file comes from.

    `torch.export.load` trusts its file: it evaluates the expressions of sizes in it, runs its guards as Python and
    unpickles what is no plain tensor. Here the archive is looked at first: it may hold the graph, plain tensors and
    arithmetic of sizes, and nothing else.

    Args:
        path: the file.

    Returns:
        called with the inputs, it gives back the output; on the CPU.

    Raises:
        CheckpointError: no such file, or one that holds what could run.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
            broken = archive.testzip()  # torch does not look at the checksums
    except (OSError, zipfile.BadZipFile, zlib.error, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as an exported program ({error})") from error
    if broken is not None:
        raise CheckpointError(
            f"{path}: expected a file as it was written, got {broken} damaged (its checksum tells); take another"
        )
    try:
        return torch.export.load(path).module()
    except Exception as error:  # a damaged graph fails anywhere
        raise CheckpointError(f"{path} is no whole exported program ({type(error).__name__}: {error})") from error


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    for entry in archive.infolist():
        part = entry.filename.partition("/")[2]
        if not _PARTS.fullmatch(part):
            raise _refused(path, f"the part {part}")
        if part.startswith("data/sample_inputs/") and entry.file_size:
            raise _refused(path, "pickled example inputs")
        if part.endswith(".json"):
            content = json.loads(archive.read(entry))
            for place, key, value in _walk(content, ""):
                _check_value(path, place, key, value)


def _walk(value: Any, place: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(keys above, key, value) of every text and number, the keys of objects among the texts."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{place}.{key}", "(key)", name
            yield from _walk(inner, f"{place}.{key}", name)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, place, key)
    else:
        yield place, key, value


def _check_value(path: Path, place: str, key: str, value: Any) -> None:
    if key == "use_pickle" and value:
        raise _refused(path, "pickled tensors")
    if key in ("class_fqn", "source_fn_stack") or (key in ("in_spec", "out_spec") and not _is_plain(value)):
        raise _refused(path, f"an object of a class, {str(value)[:80]}")
    if key == "target" and not (_TARGET.fullmatch(value) or _BLOCKS.fullmatch(value)):
        raise _refused(path, f"a call of {value}")
    evaluated = key in ("expr_str", "guards_code") or (key == "(key)" and place.endswith(".range_constraints"))
    if evaluated and not is_arithmetic(str(value)):
        raise _refused(path, f"the expression {str(value)[:80]}")


def _is_plain(spec: Any) -> bool:
    """Whether a tree of arguments is made of Python's own containers."""
    kinds = re.findall(r'"type": *"([^"]*)"', str(spec))
    return all(kind in ("builtins.tuple", "builtins.list", "builtins.dict") for kind in kinds)


def is_arithmetic(text: str) -> bool:
    """Whether a text is an expression of sizes: numbers, symbols, arithmetic, comparisons, and functions of them."""
    if len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) or (
            isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id) is not None
        )
    if isinstance(node, ast.Name):
        return node.id in _NAMES or any(p.fullmatch(node.id) for p in (_FUNCTIONS, re.compile(r"[a-z]+\d*")))
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or re.fullmatch(r"[a-z]\w*", node.value, re.I) is not None
    return True


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds {what}, which no file of `framework export` does and which could run code when it is read; "
        "nothing was read"
    )
