"""What can be known of a study before its first cell is run: its functions, its configurations, its files."""

import contextlib
import inspect
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.commands.cli import RUNS, FrameworkCLI
from framework.commands.study_cell import QUIET, named
from framework.commands.study_plan import Cell, Study
from framework.commands.study_rows import read_rows
from framework.commands.trainer_arguments import check_trainer
from framework.errors import ConfigError, few


class _Parsed(FrameworkCLI):
    """A command line that is read and checked, with nothing built and nothing run."""

    def _set_seed(self) -> None:
        """Draws nothing, so that a study leaves the generators as they are."""

    def instantiate_classes(self) -> None:
        """Looks at the trainer's arguments only."""
        check_trainer(self._get(self.config, "trainer").as_dict())

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def check_files(study: Study, out: Path, write: bool) -> None:
    """Raises ConfigError where a study's rows, or its runs, cannot be written.

    Args:
        study: whose columns a file that is there must have.
        out: the CSV file.
        write: folders that are missing are made, and a file is written into them.
    """
    check_place(out, "--out", write)
    check_place(Path(RUNS, "studies", "log.txt"), RUNS, write)
    _check_rows_of(out, study)


def check_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Raises what every cell would fail with.

    Args:
        study: its functions are imported, and looked at for what they are called with.
        cells: those that are to run; the configuration of one for each label of each axis is parsed.

    Raises:
        ConfigError: names the key and what to do.
    """
    _check_functions(study)
    for cell in () if study.rows else covering(cells):
        _check_words(study, cell)


def covering(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The fewest cells, as they come, among which every label of every axis is; seeds make no difference."""
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        labels = {(axis, label) for axis, label in cell.key.items() if axis != "seed"}
        if not seen or not labels <= seen:
            seen |= labels | {("", "")}
            yield cell


def _check_words(study: Study, cell: Cell) -> None:
    verbs = [("fit", ())] if study.fit else []
    for verb, more in [*verbs, *(("test", words) for words in study.tests.values())]:
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the cell's log has them
                _Parsed([verb, *cell.words, *more, *QUIET])
        except ConfigError as error:
            raise ConfigError(f"{cell.title}: {error}") from error


def _check_functions(study: Study) -> None:
    if study.measure is not None:
        _check_call("measure", study.measure, ("model", "data"), {})
    for cell in study.cells if study.rows is not None else ():
        _check_call("rows", str(study.rows), (), cell.arguments)


def _check_call(key: str, path: str, positional: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    function = named(path)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions of C do not say what they take
        return
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        gets = [*positional, *arguments]
        raise ConfigError(f"{key}: {path}{signature} is called with {few(gets, 12) or 'nothing'}: {error}") from error


def check_place(path: Path, key: str, write: bool) -> None:
    """Raises ConfigError where a file cannot be written.

    Args:
        path: of the file, which may be there.
        key: what names it, for the message.
        write: tries it, with a file beside it; the missing folders are made.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{key}: {path} is no file; give the path of a CSV file")
    folder = path.parent
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir():
        raise ConfigError(f"{key}: {above} is a file, where {path} needs a folder; give another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: no permission to write into {above}; give another path")
    try:
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be written: {error.strerror}; give another path") from error


def _check_rows_of(out: Path, study: Study) -> None:
    """A file that is there is replaced by one with its rows and ours; it must be one of rows."""
    try:
        rows = read_rows(out)
        header = out.read_text(encoding="utf-8-sig").splitlines()[:1] if out.is_file() else []
    except ConfigError as error:
        raise ConfigError(f"--out: {error}, or give another path") from error
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be read as a CSV file: {error}; give another path") from error
    columns = list(rows[0]) if rows else [name.strip('"') for name in "".join(header).split(",")]
    if header and study.columns and not set(study.columns) & set(columns):
        raise ConfigError(
            f"--out: {out} is there and has no column {few(study.columns)}, so it is no CSV file of this study; give "
            "another path"
        )
