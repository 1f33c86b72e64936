"""`framework study NAME`: every cell of a study as `framework fit` and `test` run it, a row of a CSV for each."""

import argparse
import contextlib
import math
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from framework.commands.cli import RUNS
from framework.commands.study_cell import (
    BUSY,
    DONE,
    STOPPED,
    WRONG,
    cell_command,
    cell_folder,
    failure,
    run_in_process,
)
from framework.commands.study_check import check_cells, check_files
from framework.commands.study_form import find_label
from framework.commands.study_plan import Cell, Study, load_study, study_names
from framework.commands.study_record import Kept, StudyError
from framework.commands.study_rows import keys_of, read_rows
from framework.commands.study_server import STUDY
from framework.errors import ConfigError
from framework.main import import_modules
from framework.provenance import portable

#: exit status after SIGTERM
TERMINATED = 128 + signal.SIGTERM
#: options of the study itself
_OWN = ("--out", "--only", "--jobs", "--dry-run", "--import", "--help")


def run(args: Sequence[str]) -> int:
    """Runs `framework study`.

    Returns:
        the exit status: 1 when a cell failed, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ConfigError: the command or the study says what cannot be, or a cell has shown so.
    """
    try:
        with _sigterm_as_ctrl_c():
            return _run(args)
    except Terminated:
        print("interrupted before the first cell; nothing was written", file=sys.stderr)
        return TERMINATED


def _run(args: Sequence[str]) -> int:
    words = joined(args)
    options, extra = _parser().parse_known_args(words)
    if stray := [word for word in extra if not word.startswith("--") or "=" not in word]:
        raise ConfigError(
            f"framework study: {stray[0]}: expected --key=value or --key value, which every cell's command gets"
        )
    if options.jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, got {options.jobs}")
    modules = [*options.imports]
    import_modules(modules)
    study = load_study(options.name, extra)
    out = Path(options.out or Path(RUNS, "studies", f"{study.name}.csv"))
    console = Console(width=None if sys.stdout.isatty() else 160)
    cells = chosen_cells(study, options.only)
    check_files(study, out, write=not options.dry_run)
    done = keys_of(read_rows(out), study.columns)
    todo = [cell for cell in cells if tuple(cell.key.values()) not in done]
    check_cells(study, todo)
    if options.dry_run:
        for cell in cells:
            word = "to do" if cell in todo else "there"
            console.print(f"{word}  {cell_command(study, cell)}", soft_wrap=True, markup=False)
        return 0
    warn_of_other_settings(study, out, console)
    command = shlex.join(portable(["framework", "study", *whole_command(args)]))
    before = len(read_rows(out))
    runner = Runner(study, out, command, modules, options.jobs, console)
    status = runner.run(cells)
    console.print(result_table(study, out))
    console.print(what_was_written(before, len(read_rows(out)), out), soft_wrap=True, markup=False)
    if runner.wrong:
        raise StudyError(runner.wrong)
    return status


def what_was_written(before: int, after: int, out: Path) -> str:
    """The last line: whether there are new rows, and where."""
    if after > before:
        return f"written: {out}"
    return f"no new row: {out} has the {before} of before" if after else f"no row was written: there is no {out}"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a study as Ctrl-C does."""


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def end(signum: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(name for name, _ in study_names())
    parser = argparse.ArgumentParser(
        prog="framework study",
        description="Every cell of a study as `framework fit` runs it; a cell whose row is there is not run again. "
        "Further --key=value words go to every cell's command.",
        epilog=f"There are {names}.",
        allow_abbrev=False,
    )
    parser.add_argument("name", help="a study's name, or the path of its YAML file")
    parser.add_argument("--out", help="CSV file; by default below runs/studies")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=VALUE", help="only the cells with these labels")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each in a process of one thread")
    parser.add_argument("--dry-run", action="store_true", help="only print the cells and their commands")
    parser.add_argument("--import", dest="imports", action="append", default=[], help=argparse.SUPPRESS)
    return parser


def joined(args: Sequence[str]) -> list[str]:
    """`--key value` as `--key=value`, which `framework fit` takes both; the study's own options stay as they are."""
    words: list[str] = []
    stream = iter(args)
    for word in stream:
        foreign = word.startswith("--") and "=" not in word and word not in _OWN
        value = next(stream, None) if foreign else None
        if value is not None and value.startswith("--"):
            words += [word, *joined([value, *stream])]
            break
        words.append(word if value is None else f"{word}={value}")
    return words


def whole_command(args: Sequence[str]) -> list[str]:
    """The words of a row's command: which cells were chosen and how many ran at once are no part of it."""
    kept: list[str] = []
    left: float = 0  # words that still belong to the option before them
    for word in args:
        if word.startswith("-"):
            left = {"--jobs": 1, "--only": math.inf}.get(word, 0)
            if word.partition("=")[0] not in ("--jobs", "--only"):
                kept.append(word)
        elif left:
            left -= 1
        else:
            kept.append(word)
    return kept


def chosen_cells(study: Study, only: Sequence[str]) -> list[Cell]:
    """The cells that `--only axis=value ...` leaves; several values of one axis are alternatives.

    Raises:
        ConfigError: an axis or a label that the study does not have.
    """
    wanted: dict[str, set[str]] = {}
    for word in only:
        # an axis or a label may have a `=` in its name
        axis = max((name for name in study.columns if word.startswith(f"{name}=")), key=len, default="")
        if not axis:
            raise ConfigError(
                f"--only {word}: expected axis=value with an axis of {', '.join(study.columns) or 'none'}"
            )
        labels = dict.fromkeys(cell.key[axis] for cell in study.cells)
        wanted.setdefault(axis, set()).add(find_label(f"--only {axis}", word[len(axis) + 1 :], labels))
    cells = [cell for cell in study.cells if all(cell.key[axis] in values for axis, values in wanted.items())]
    if not cells:
        raise ConfigError(f"--only {' '.join(only)}: the study skips these combinations; there is no such cell")
    return cells


def warn_of_other_settings(study: Study, out: Path, console: Console) -> None:
    """Says when rows that are there, and therefore are not run again, were made by another command."""
    commands = {tuple(cell.key.values()): cell_command(study, cell) for cell in study.cells}
    others = [
        row
        for row in read_rows(out)
        if row.get("run") and row["run"] != commands.get(tuple(row.get(c, "") for c in study.columns), row["run"])
    ]
    if others:
        console.print(
            f"{len(others)} rows of {out} were made with other settings than the study has now (column `run`); they "
            "are kept: delete them, or give another --out, to run their cells again",
            soft_wrap=True,
            markup=False,
        )


def result_table(study: Study, out: Path) -> Table:
    """The rows of the file, without the columns that say how they were made."""
    hidden = {"hardware", "torch", "lightning", "date", "command", "run", "peak_mib", "peak_device_mib", "cpu_s"}
    rows = read_rows(out)
    table = Table(title=study.name, title_justify="left", box=None, padding=(0, 2, 0, 0))
    names = [name for name in (rows[0] if rows else {}) if name not in hidden]
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


class Runner:
    """Runs cells in processes, some at once, and never one whose row is there or that another process runs.

    Args:
        study: what is run.
        out: the CSV file.
        command: of the rows.
        modules: a user's, imported first.
        jobs: cells at once.
        console: where the progress is shown.
    """

    def __init__(self, study: Study, out: Path, command: str, modules: list[str], jobs: int, console: Console) -> None:
        self.study, self.out, self.command, self.modules, self.jobs = study, out, command, modules, jobs
        self.console = console
        self.failed: dict[str, str] = {}
        self.wrong = ""
        self.took: list[float] = []
        self.context = _processes()
        self.stopping = self.context.Event()

    def run(self, cells: Sequence[Cell]) -> int:
        """Runs what is left of these cells; the exit status."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console) as bar:
            self.bar = bar
            self.task = bar.add_task(self.study.name, total=len(cells), left="")
            try:
                for phase in self._phases(cells):
                    self._run_all(phase)
                    if self.wrong:
                        break
            except KeyboardInterrupt as interrupt:
                self.console.print("stopped; the same command goes on where this one was")
                return TERMINATED if isinstance(interrupt, Terminated) else STOPPED
        for title, said in self.failed.items():
            self.console.print(f"failed: {title}: error: {said}", soft_wrap=True, markup=False)
        return 1 if self.failed else 0

    def _phases(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """All cells at once, or with `choose` the first seed's and then the others' at the best label of an axis."""
        if self.study.choose is None:
            yield list(cells)
            return
        first = self.study.cells[0].key["seed"]
        yield [cell for cell in cells if cell.key["seed"] == first]
        axis, kept = self.study.choose
        later = [cell for cell in cells if cell.key["seed"] != first]
        best = best_labels(read_rows(self.out), axis, kept, self.study.columns, first)
        chosen = [c for c in later if best.get(_others(c.key, axis, self.study.columns)) == c.key[axis]]
        self.bar.update(self.task, total=len(cells) - len(later) + len(chosen))
        yield chosen

    def _run_all(self, cells: list[Cell]) -> None:
        todo, busy = list(cells), list[Cell]()
        running: list[tuple[Cell, BaseProcess, float]] = []
        try:
            while (todo or running or busy) and not self.wrong:
                done = keys_of(read_rows(self.out), self.study.columns)
                while todo and len(running) < self.jobs:
                    cell = todo.pop(0)
                    if tuple(cell.key.values()) in done:
                        self.bar.advance(self.task)
                        continue
                    running.append((cell, self._start(cell), time.monotonic()))
                busy += self._collect(running)
                if busy and not todo and not running:
                    # another study runs these; look again, for that one may be killed
                    time.sleep(1.0)
                    todo, busy = busy, []
        finally:
            # after Ctrl-C, or when one cell has shown that no other can have a row
            self._stop([process for _, process, _ in running])

    def _start(self, cell: Cell) -> BaseProcess:
        arguments = (self.study, cell, self.out, self.command, self.modules, self.stopping)
        process = self.context.Process(target=run_in_process, args=arguments)  # type: ignore[attr-defined]
        process.start()
        return process

    def _collect(self, running: list[tuple[Cell, BaseProcess, float]]) -> list[Cell]:
        """Takes ended processes out of `running`; returns the cells that another process runs."""
        busy = []
        if running:
            multiprocessing.connection.wait([process.sentinel for _, process, _ in running], timeout=1.0)
        for entry in [entry for entry in running if not entry[1].is_alive()]:
            cell, process, start = entry
            running.remove(entry)
            process.join()
            if process.exitcode == BUSY:
                busy.append(cell)
                continue
            seconds = time.monotonic() - start
            self.took.append(seconds)
            if process.exitcode != DONE:
                self._note(cell, process.exitcode)
            word = "done" if process.exitcode == DONE else "failed"
            self.console.print(f"{word}: {cell.title} ({seconds:.0f} s)", markup=False, highlight=False)
            self.bar.advance(self.task)
        self._show_time_left()
        return busy

    def _note(self, cell: Cell, exitcode: int | None) -> None:
        folder = cell_folder(self.study, cell, self.out)
        said = f"{failure(folder, exitcode)}\n  see {folder / 'log.txt'}"
        if exitcode == WRONG:
            self.wrong = f"{cell.title}: {said}"
        else:
            self.failed[cell.title] = said

    def _show_time_left(self) -> None:
        task = self.bar.tasks[0]
        seconds = self.took or [float(r["wall_s"]) for r in read_rows(self.out) if r.get("wall_s")]
        if seconds and task.total is not None:
            left = (task.total - task.completed) * sum(seconds) / len(seconds) / self.jobs
            self.bar.update(self.task, left=f"about {left / 60:.0f} min left")

    def _stop(self, processes: Sequence[BaseProcess]) -> None:
        """Hands Ctrl-C on, and waits for the checkpoints; a second Ctrl-C does not wait."""
        if not processes:
            return
        self.stopping.set()
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGINT)
        for process in alive:
            process.join()


def _processes() -> multiprocessing.context.BaseContext:
    """Processes that start quickly: forked from one that has the imports and nothing else."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ[STUDY] = str(os.getpid())
    context.set_forkserver_preload(["framework.commands.study_server"])
    return context


def _others(key: Mapping[str, str], axis: str, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(key[c] for c in columns if c not in (axis, "seed"))


def best_labels(
    rows: Sequence[Mapping[str, str]], axis: str, kept: Kept, columns: Sequence[str], first: str
) -> dict[tuple[str, ...], str]:
    """The best label of an axis for every combination of the others, by the first seed's mean of a column."""
    values: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows:
        if row["seed"] == first:
            group = values.setdefault(_others(row, axis, columns), {})
            try:
                group.setdefault(row[axis], []).append(float(row[kept.figure]))
            except (KeyError, ValueError):
                got = row.get(kept.figure, "nothing")
                raise StudyError(f"choose.by: {kept.figure}: got {got} in a row, expected a number") from None
    means = {key: {name: sum(v) / len(v) for name, v in group.items()} for key, group in values.items()}
    return {key: kept.best(group) for key, group in means.items()}
