"""Options of a layer that stand once, in a frozen dataclass, and are handed on by keyword."""

import inspect
from collections.abc import Callable
from typing import Any


def spelled_out(options: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For an `__init__` that takes `**name` and gives it to `options`: its signature shows the fields and defaults.

    What reads signatures (`help`, configurations, editors) then sees keyword arguments like all others.

    Args:
        options: a dataclass whose `__init__` takes the keywords.
    """

    def decorate(init: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(init)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(options).parameters.values()]
        init.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return init

    return decorate
