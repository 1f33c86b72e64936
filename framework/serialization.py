"""Hyper-parameters in plain form: what YAML and `torch.load(weights_only=True)` can carry.

An optimizer is `{"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}`, whether it came from the command line
or as a `functools.partial` from Python.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.compat import class_of_partial
from framework.errors import ConfigError


class NotPlain(TypeError):
    """A value without a plain form."""


def is_class(path: str, expected: type) -> bool:
    """Whether a stored class path names `expected`, by whichever module leads to it; imports nothing."""
    module, _, name = path.rpartition(".")
    return path == class_path(expected) or getattr(sys.modules.get(module), name, None) is expected


def same_class(a: str, b: str) -> bool:
    """Whether two class paths name one class; a bare name stands for the class of that name, wherever it lives."""
    (module_a, _, name_a), (module_b, _, name_b) = a.rpartition("."), b.rpartition(".")
    if a == b or (name_a == name_b and not (module_a and module_b)):
        return True
    found = getattr(sys.modules.get(module_a), name_a, None)
    return found is not None and found is getattr(sys.modules.get(module_b), name_b, None)


def class_path(target: type | Callable[..., Any]) -> str:
    """`module.QualifiedName` of a class or function."""
    return f"{target.__module__}.{target.__qualname__}"


def import_target(path: str, key: str) -> Any:
    """The object that `path` ("package.module.Name") names.

    Raises:
        ConfigError: nothing importable has that name.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: cannot import {path!r} ({error}); give it as 'package.module.Name'") from error


def factory(spec: Any, key: str) -> Callable[..., Any]:
    """A callable from a callable, or from its plain form `{"class_path": ..., "init_args": {...}}`.

    Raises:
        ConfigError: `spec` is neither.
    """
    if isinstance(spec, functools.partial) and (target := class_of_partial(spec)):
        # The command line's wrapper holds its parser, and through it the whole run; a copy of a method must not.
        return functools.partial(target, **spec.keywords)
    if callable(spec):
        return spec
    if isinstance(spec, Mapping) and "class_path" in spec:
        target = import_target(spec["class_path"], key)
        return functools.partial(target, **dict(spec.get("init_args") or {}))
    raise ConfigError(f"{key}: expected a callable or {{class_path, init_args}}, got {spec!r}")


def to_plain(value: Any) -> Any:
    """`value` built only from None, bool, int, float, str, list and dict.

    Raises:
        NotPlain: it has no such form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(v) for v in value]
    if isinstance(value, functools.partial):
        return _partial_to_plain(value)
    if inspect.isclass(value) or inspect.isfunction(value):
        path = class_path(value)
        if "<" not in path:
            return {"class_path": path}
    raise NotPlain(f"{type(value).__name__} {value!r}")


def _partial_to_plain(partial: functools.partial) -> dict[str, Any]:
    target = class_of_partial(partial)
    if target is None and partial.args:
        raise NotPlain(f"functools.partial with positional arguments {partial.args!r}")
    return {**to_plain(target or partial.func), "init_args": to_plain(partial.keywords)}
