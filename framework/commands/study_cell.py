"""One cell of a study in a process of its own: fit, test, and its rows in the CSV."""

import contextlib
import hashlib
import importlib
import os
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from framework.commands.cli import RUNS
from framework.commands.messages import message
from framework.commands.precedence import load_checkpoint
from framework.commands.run_folder import next_version
from framework.commands.study_form import COSTS, MADE_BY
from framework.commands.study_plan import Cell, Study
from framework.commands.study_record import MissingFigure, RunRecord, StudyError
from framework.commands.study_rows import add_rows, keys_of, locked, read_rows
from framework.errors import ConfigError, FrameworkError
from framework.main import import_modules, main
from framework.provenance import environment, portable

#: exit statuses of a cell's process; WRONG: what failed it fails every other cell too
DONE, FAILED, BUSY, WRONG, STOPPED = 0, 1, 3, 4, 130

#: in a cell's folder, what its last try failed with
ERROR = "error.txt"
_RECORD = f"{RunRecord.__module__}.{RunRecord.__qualname__}"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def cell_folder(study: Study, cell: Cell, out: Path) -> Path:
    """The folder of a cell's runs: one for each cell, file of rows and command."""
    slug = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in v) for v in cell.key.values())[:80]
    identity = repr((cell.key, cell.words, sorted(cell.arguments.items(), key=str), str(out.resolve())))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Path(RUNS, "studies", *study.name.split("/"), f"{slug}-{digest}")


def cell_command(study: Study, cell: Cell) -> str:
    """What runs this cell alone, for people."""
    if study.rows is not None:
        return f"{study.rows}({', '.join(f'{k}={v!r}' for k, v in cell.arguments.items())})"
    return shlex.join(portable(["framework", "fit" if study.fit else "test", *cell.words]))


def run_in_process(study: Study, cell: Cell, out: Path, command: str, modules: list[str], stopping: Event) -> None:
    """The body of a cell's process; ends it with one of the exit statuses above."""
    # Ctrl-C reaches the terminal's whole group; the study hands it on, once.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_the_study()
    torch.set_num_threads(1)
    folder = cell_folder(study, cell, out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        sys.stdout = sys.stderr = log
        try:
            import_modules(modules)
            status = run_cell(study, cell, out, command, stopping)
        except KeyboardInterrupt:
            status = STOPPED
        except SystemExit as end:
            # Lightning ends the process after Ctrl-C
            status = STOPPED if end.code not in (None, 0) else FAILED
        except BaseException as error:
            status = _failed(error, folder)
    sys.exit(status)


def _failed(error: BaseException, folder: Path) -> int:
    """Leaves the message for the study and, of what is no message of ours, the traceback in the log."""
    said = message(error)
    if not isinstance(error, FrameworkError):
        traceback.print_exc()
    print(f"error: {said}", file=sys.stderr)
    (folder / ERROR).write_text(said, encoding="utf-8")
    return WRONG if isinstance(error, StudyError) else FAILED


def failure(folder: Path, exitcode: int | None) -> str:
    """What a cell that failed has said."""
    if (folder / ERROR).is_file():
        return (folder / ERROR).read_text(encoding="utf-8", errors="replace")
    if exitcode is not None and exitcode < 0:
        return f"its process was ended by {signal.Signals(-exitcode).name}; the system does so when memory runs out"
    return f"its process ended with exit status {exitcode}"


def _end_with_the_study() -> None:
    """Ends this process when the study's ends, also when that was killed."""
    import multiprocessing
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(STOPPED)

        threading.Thread(target=watch, daemon=True).start()


def run_cell(study: Study, cell: Cell, out: Path, command: str, stopping: Event) -> int:
    """Runs a cell and adds its rows, unless they are there or another process runs it."""
    folder = cell_folder(study, cell, out)
    with locked(folder, wait=False) as mine:
        if not mine:
            return BUSY
        if tuple(cell.key.values()) in keys_of(read_rows(out), study.columns):
            return DONE
        where = environment()
        if study.rows is not None:
            rows, costs = _function_rows(study, cell)
        else:
            rows, costs = _fit_rows_or_again(study, cell, folder)
        if stopping.is_set():
            # what a fit gives that Ctrl-C ended is not the cell's
            return STOPPED
        tail = {**costs, **where, "command": command, "run": cell_command(study, cell)}
        _check_columns(study, {name for row in rows for name in row})
        add_rows(out, [{**cell.key, **row, **tail} for row in rows], study.columns, study.order())
        close(folder)
    return DONE


def _check_columns(study: Study, columns: Collection[str]) -> None:
    # what `keep` and `table` name was looked at before; this is what functions give
    if wrong := sorted({*study.columns, *COSTS, *MADE_BY} & set(columns)):
        raise StudyError(
            f"{'rows' if study.rows else 'measure'}: gave the column {wrong[0]}, which every row has by itself; take "
            "another name"
        )


def named(path: str) -> Callable[..., Any]:
    """A function given as `module:function`.

    Raises:
        ConfigError: there is no such function.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is run
        raise ConfigError(f"{path}: expected module:function of a module that can be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{path}: expected a function, got a {type(found).__name__}")
    return found


def _function_rows(study: Study, cell: Cell) -> tuple[list[dict[str, Any]], dict[str, str]]:
    start, processor = time.monotonic(), time.process_time()
    given = named(str(study.rows))(**cell.arguments)
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    if wrong := [row for row in rows if not isinstance(row, Mapping)]:
        raise StudyError(f"rows: {study.rows} gave {wrong[0]!r:.80}, expected a list of mappings, column: value")
    return rows, _costs(time.monotonic() - start, time.process_time() - processor)


def _fit_rows_or_again(study: Study, cell: Cell, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A cell that was cut after its last epoch misses what a run writes at its end: then it starts again."""
    resumed = bool(checkpoints(folder, "last"))
    try:
        return _fit_rows(study, cell, folder)
    except MissingFigure:
        if not resumed:
            raise
    close(folder)
    return _fit_rows(study, cell, folder)


def close(folder: Path) -> None:
    """Marks a cell's runs as ones that nothing goes on from."""
    for version in folder.glob("version_*"):
        (version / "finished").touch()


def _fit_rows(study: Study, cell: Cell, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    name = folder.relative_to(RUNS).as_posix()
    common = [f"--name={name}", *QUIET]
    record, cli = RunRecord(), None
    if study.fit:
        words = [*cell.words, *common, f"--trainer.callbacks+={_RECORD}"]
        record, cli = _fit(words, next(reversed(checkpoints(folder, "last")), None))
    curves: dict[str, list[tuple[int, float]]] = {**_logged(folder), **record.curves} if study.fit else {}
    parameters = record.parameters
    for test, extra in study.tests.items():
        weights = [f"--ckpt_path={chosen_checkpoint(folder, study.checkpoint)}"] if study.fit else []
        cli = main(["test", *cell.words, *extra, *common, *weights])
        for figure, value in cli.trainer.callback_metrics.items():
            curves[figure.replace("test/", f"{test}/", 1)] = [(0, float(value))]
        parameters = parameters or sum(p.numel() for p in cli.model.parameters())
    row: dict[str, Any] = {column: _rounded(kept.of(curves)) for column, kept in study.keep.items()}
    if study.measure is not None:
        if cli is None:
            cli = main(["validate", *cell.words, *common, f"--ckpt_path={chosen_checkpoint(folder, study.checkpoint)}"])
        row |= _measured(study, cli, row)
    rows = [row]
    if study.table is not None:
        rows = [{**row, **part} for part in _table_rows(study.table, _newest(folder))]
    done = {"parameters": parameters, "epochs": _epochs(curves), "steps": record.steps}
    rows = [{**(done if study.fit else {"parameters": parameters}), **row} for row in rows]
    return rows, _costs(*record.seconds)


def _measured(study: Study, cli: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    given = named(str(study.measure))(cli.model, cli.datamodule)
    if not isinstance(given, Mapping):
        raise StudyError(f"measure: {study.measure} gave {given!r:.80}, expected a mapping, column: value")
    if twice := [column for column in given if column in row]:
        raise StudyError(f"measure: {study.measure} gave the column {twice[0]}, which `keep` has; take another name")
    return dict(given)


def _fit(words: list[str], checkpoint: Path | None) -> tuple[RunRecord, Any]:
    """The record of a fit, and its command line; none where the run had already ended."""
    if checkpoint is not None:
        states = load_checkpoint(checkpoint).get("callbacks", {})
        state = next((s for key, s in states.items() if key.startswith(RunRecord.__qualname__)), None)
        if state is not None and state["finished"]:
            record = RunRecord()
            record.load_state_dict(state)
            return record, None
    cli = main(["fit", *words, *([] if checkpoint is None else [f"--ckpt_path={checkpoint}"])])
    if cli.trainer.interrupted:
        raise KeyboardInterrupt
    return next(c for c in cli.trainer.callbacks if isinstance(c, RunRecord)), cli


def checkpoints(folder: Path, name: str) -> list[Path]:
    """The checkpoints `name` of a cell's unfinished run, which is several runs when it was resumed; newest last."""
    unfinished = [version for version in folder.glob("version_*") if not (version / "finished").exists()]
    found = [path for version in unfinished for path in version.glob(f"checkpoints/{name}.ckpt")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def chosen_checkpoint(folder: Path, name: str) -> Path:
    """The newest checkpoint `name`; `best` over a resumption too: of several, the first with the best score.

    Raises:
        StudyError: the run wrote none.
    """
    found = checkpoints(folder, name)
    if not found:
        raise StudyError(
            f"checkpoint: the run wrote no {name}.ckpt; there are best and last, unless they are turned off"
        )
    if name != "best" or len(found) == 1:
        return found[-1]
    scores, mode = {}, "max"
    for path in found:
        for key, state in load_checkpoint(path).get("callbacks", {}).items():
            if key.startswith(("ModelCheckpoint", "BestCheckpoint")) and state.get("best_model_score") is not None:
                scores[path] = float(state["best_model_score"])
                mode = "min" if "'mode': 'min'" in key else "max"
    return (min if mode == "min" else max)(scores, key=lambda path: scores[path]) if scores else found[-1]


def _newest(folder: Path) -> Path:
    """The folder of the newest run below a cell's."""
    newest = int(next_version(folder).removeprefix("version_")) - 1
    return folder / f"version_{newest}"


def _table_rows(table: tuple[str, dict[str, str]], folder: Path) -> Iterator[dict[str, Any]]:
    """Chosen columns of a table that the run wrote; one that it does not have is empty."""
    file, columns = table
    path = folder / file
    if not path.is_file():
        raise StudyError(f"table.file: the run wrote no {file}; it wrote {', '.join(p.name for p in folder.iterdir())}")
    written = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    for record in written:
        yield {column: record.get(source, "") for column, source in columns.items()}


def _logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What an unfinished cell's runs wrote to `metrics.csv`: figures that only loggers get, at the end of a fit."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        if not (path.parent / "finished").exists():
            table = pd.read_csv(path)
            for name in table.columns.difference(["epoch", "step"]):
                values = table[[name, *table.columns.intersection(["epoch"])]].dropna(subset=[name])
                epochs = values["epoch"].ffill().fillna(0) if "epoch" in values else [0] * len(values)
                curves.setdefault(name, []).extend(
                    (int(e) + 1, float(v)) for e, v in zip(epochs, values[name], strict=True)
                )
    return curves


def _epochs(curves: Mapping[str, list[tuple[int, float]]]) -> int:
    return max((epoch for curve in curves.values() for epoch, _ in curve), default=0)


def _rounded(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _costs(wall: float, processor: float) -> dict[str, str]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    costs = {"wall_s": f"{wall:.1f}", "cpu_s": f"{processor:.1f}", "peak_mib": f"{peak:.0f}"}
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            costs["peak_device_mib"] = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"
    return costs
