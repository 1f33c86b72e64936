"""One small error tree. Each message says what was got, what was expected and what to do."""

from collections.abc import Sequence


class FrameworkError(Exception):
    """Base of every error that the command line shows as a message, without a traceback."""


class ConfigError(FrameworkError, ValueError):
    """An argument or configuration value that cannot work; names the key as it is written in YAML."""


class DataError(FrameworkError, ValueError):
    """A folder, file or sample that is missing, broken or of the wrong shape."""


class CheckpointError(FrameworkError, ValueError):
    """A checkpoint that is missing, broken, of another class or of an incompatible shape."""


class DivergenceError(FrameworkError, RuntimeError):
    """Training produced a value that is not finite; names the step and the last good checkpoint."""


def few(values: Sequence[object], count: int = 5) -> str:
    """The first of many values, for a message, and how many more there are."""
    more = f" and {len(values) - count} more" if len(values) > count else ""
    return ", ".join(map(str, values[:count])) + more
