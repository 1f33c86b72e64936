"""What keeps a contract in a hook that a subclass overrides, with or without `super()`."""

import functools
from collections.abc import Callable
from typing import Any


def kept(contract: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a hook run the method `contract` first, once, whether or not an override calls `super()`."""

    def decorate(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            running = self.__dict__.setdefault("_running", set())
            if contract in running:  # called by an override, which has run it
                return hook(self, *args, **kwargs)
            running.add(contract)
            try:
                getattr(self, contract)(*args, **kwargs)
                return hook(self, *args, **kwargs)
            finally:
                running.discard(contract)

        return guarded

    return decorate


def once(hook: Callable[..., None]) -> Callable[..., None]:
    """Makes `initialise` do nothing the second time, and nothing once weights have been restored."""

    @functools.wraps(hook)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        running = self.__dict__.setdefault("_running", set())
        if "initialise" in running:  # called by an override
            hook(self, *args, **kwargs)
        elif not self._initialised:
            running.add("initialise")
            try:
                hook(self, *args, **kwargs)
            finally:
                running.discard("initialise")
            self._initialised = True

    return guarded
