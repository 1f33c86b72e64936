"""`framework list`: what there is, a line each, without importing torch."""

import argparse
import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from framework.configs import config_names

_HOME = Path(__file__).parents[2]
_PACKAGES = {"methods": "models", "data": "datamodules", "callbacks": "callbacks"}


def run(args: Sequence[str]) -> int:
    """Prints methods, data modules, callbacks and configurations with one line each."""
    parser = argparse.ArgumentParser(prog="framework list", description="What there is, a line each.")
    parser.add_argument("what", nargs="?", choices=[*_PACKAGES, "configs"], help="only this part")
    chosen = parser.parse_args(list(args)).what
    console = Console()
    for title, package in _PACKAGES.items():
        if chosen in (None, title):
            _print(console, title, public_classes(package))
    if chosen in (None, "configs"):
        _print(console, "configs", ((name, first_comment(path)) for name, path in config_names()))
    return 0


def public_classes(package: str) -> Iterator[tuple[str, str]]:
    """(name, first docstring line) of every class in a package's `__all__`, read from the source."""
    folder = _HOME / package
    init = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    for node in init.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            source = _HOME / Path(*node.module.split("."))
            path = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
            classes = {
                c.name: c for c in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(c, ast.ClassDef)
            }
            for alias in node.names:
                if alias.name in classes:
                    yield alias.name, (ast.get_docstring(classes[alias.name]) or "").split("\n")[0]


def first_comment(path: Path) -> str:
    """The text of a configuration's first line, which describes it."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.lstrip("# ").strip() if line.startswith("#") else ""


def _print(console: Console, title: str, rows: Iterator[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)
    console.print()
