"""Files that a run can do without: logs, tables and figures."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


@contextlib.contextmanager
def optional_output(what: str | Path) -> Iterator[None]:
    """Writes something that training can go on without: where the system refuses, a warning says what is missing."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # Lightning's loggers raise from it
        if not isinstance(cause, OSError):
            raise
        rank_zero_warn(f"{what} cannot be written ({cause.strerror or cause}); the run goes on without it")


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
