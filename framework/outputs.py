"""Files that a run can do without: logs, tables and figures."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


@contextlib.contextmanager
def optional_output(what: str | Path) -> Iterator[None]:
    """Writes something that training can go on without: where the system refuses, a warning says what is missing."""
    try:
        yield
    except OSError as error:
        rank_zero_warn(f"{what} cannot be written ({error.strerror or error}); the run goes on without it")
