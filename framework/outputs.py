"""Files that a command leaves: none is replaced; and those that a run can do without, logs, tables and figures."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from framework.errors import ConfigError

#: Lightning's RuntimeError where a run's folder is taken away while its hyper-parameters are written
_GONE = "Missing folder"


def refuse_taken(*paths: Path) -> None:
    """Looks, before anything is computed, at the places of the files of `--out`.

    Raises:
        ConfigError: one is there already, or a file stands where its folder belongs.
    """
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"out: {path} is there already, and nothing is replaced; give another --out")
        above = next((place for place in path.parents if place.exists()), path.parent)
        if above.exists() and not above.is_dir():
            raise ConfigError(f"out: expected a folder for {path.name}, got the file {above}; give another --out")


@contextlib.contextmanager
def optional_output(what: str | Path) -> Iterator[None]:
    """Writes something that training can go on without: where the system refuses, a warning says what is missing."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # Lightning's loggers raise from it
        if not isinstance(cause, OSError) and not str(error).startswith(_GONE):
            raise
        reason = (cause.strerror or cause) if isinstance(cause, OSError) else error
        rank_zero_warn(f"{what} cannot be written ({reason}); the run goes on without it")


def free_path(path: Path) -> Path:
    """The path itself, or where a file is there already the first free one of `NAME_1.ending`, `NAME_2.ending`, ..."""
    free, number = path, 0
    while free.is_file():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


@contextlib.contextmanager
def optional_threads() -> Iterator[None]:
    """Threads that write such files end without a traceback: TensorBoard's hands the error on to its next caller."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        is_writer = type(ended.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(ended.exc_value, OSError)):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
