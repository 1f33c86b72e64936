"""Operations that a device would have to launch."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts operations that do something on a device: not views, not allocations.

    Attributes:
        counts: by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and "empty" not in func._schema.name:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All together."""
        return sum(self.counts.values())
