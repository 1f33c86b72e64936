"""The house: imports go down only, nothing goes in circles, and nothing is longer than a head can hold."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("framework", "models", "datamodules", "callbacks")

#: from the ground up; a module may import from its own floor and from those below. The longest name that fits counts.
FLOORS: list[tuple[str, ...]] = [
    ("framework.errors",),
    ("framework.nn",),
    ("framework",),
    ("models", "datamodules"),
    ("callbacks",),
    ("framework.commands", "framework.main", "framework.__main__"),
]
#: stand side by side and know nothing of each other
APART = ("models", "datamodules")
#: what `framework.nn` may take from outside
OF_LAYERS = {"torch", "numpy", "scipy", "triton"}  # Triton comes with torch where there are GPUs

FILE, TEST_FILE, FUNCTION, CLASS = 400, 600, 60, 250


def modules() -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, str]]:
    """(module or name imported, where) of a module; where is `top`, `function` or `typing`."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*above, *([base] if base else [])])
                for alias in child.names:
                    whole = f"{base}.{alias.name}"
                    yield whole if whole in MODULES else base, where
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, "typing")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, "function" if where == "top" else where)
            else:
                yield from walk(child, where)

    return walk(ast.parse(path.read_text(encoding="utf-8")), "top")


def floor(name: str) -> int:
    """The floor on which a module stands."""
    fits = [
        (len(start), level)
        for level, starts in enumerate(FLOORS)
        for start in starts
        if name == start or name.startswith(f"{start}.")
    ]
    return max(fits)[1]


def ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name) -> None:
    for other, where in imports(name):
        if ours(other):
            assert floor(other) <= floor(name), f"{name} imports {other} from above it ({where})"
            sides = {side for side in APART if name.split(".")[0] == side or other.split(".")[0] == side}
            assert len(sides) < 2 or floor(name) > floor(APART[0]), f"{name} imports {other}, which stands beside it"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("framework.nn")])
def test_layers_need_torch_numpy_and_scipy_alone(name) -> None:
    for other, where in imports(name):
        head = other.split(".")[0]
        if where == "top" and not ours(other):
            assert head in OF_LAYERS or head in __import__("sys").stdlib_module_names, f"{name} imports {other}"
        if ours(other):
            assert other == "framework.errors" or other.startswith("framework.nn"), f"{name} imports {other}"


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        name: {other for other, where in imports(name) if other in MODULES and other != name and where != "typing"}
        for name in MODULES
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


def lengths() -> Iterator[tuple[str, int, int]]:
    """(file or file::function, its lines, how many it may have)."""
    for folder in (*PACKAGES, "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            text = path.read_text(encoding="utf-8")
            yield where, len(text.splitlines()), TEST_FILE if folder == "tests" else FILE
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
                    yield f"{where}::{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1, most


def test_nothing_is_longer_than_a_head_can_hold() -> None:
    assert {where: lines for where, lines, most in lengths() if lines > most} == {}, "cut these"
