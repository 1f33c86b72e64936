"""Checks of parsed values that jsonargparse lets through: integers beyond 64 bits, null where a value is needed."""

import inspect
import sys
import typing
from collections.abc import Mapping
from typing import Any

from framework.errors import ConfigError

INT64 = 2**63 - 1

_NEEDED = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def check_values(values: Any, key: str = "") -> None:
    """Raises ConfigError for the first value that cannot be.

    Args:
        values: a parsed configuration as plain mappings, nested as it may be.
        key: where it stands, for the message.
    """
    if isinstance(values, Mapping):
        if isinstance(values.get("class_path"), str) and isinstance(values.get("init_args"), Mapping):
            _check_nulls(values["class_path"], values["init_args"], key)
        for name, value in values.items():
            check_values(value, key if name == "init_args" else f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            check_values(value, key)
    elif isinstance(values, int) and abs(values) > INT64:
        raise ConfigError(f"{key}: expected an integer of at most {INT64}, got one of {len(str(abs(values)))} digits")


def check_seed(seed: Any) -> None:
    """Raises ConfigError for a seed that numpy cannot take."""
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ConfigError(f"seed_everything: expected a number from 0 to {2**32 - 1}, true or false, got {seed}")


def _check_nulls(class_path: str, arguments: Mapping[str, Any], key: str) -> None:
    """jsonargparse takes null for every type; a class that says `int` means a number."""
    nulls = [name for name, value in arguments.items() if value is None]
    found = _imported(class_path) if nulls else None
    for kind in getattr(found, "__mro__", ()):
        if not inspect.isfunction(kind.__init__):
            continue
        try:
            hints = typing.get_type_hints(kind.__init__)
        except (NameError, TypeError):  # annotations that need names of their module only
            continue
        parameters = inspect.signature(kind.__init__).parameters
        for name in [name for name in nulls if name in parameters]:
            if parameters[name].default is not None and hints.get(name) in _NEEDED:
                raise ConfigError(f"{key}.{name}: expected {_NEEDED[hints[name]]}, got null")
            nulls.remove(name)  # the nearest class that names it decides; its base may ask for more


def arguments_of(kind: type) -> list[str]:
    """The arguments of a class, in order: its own, and its bases' where they can be handed on."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" not in base.__dict__:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names.update(dict.fromkeys(named))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
