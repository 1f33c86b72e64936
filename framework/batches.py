"""What goes into a step and what comes out of it, where a user's own loader or step gives something else."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from framework.errors import ConfigError, few


def need(batch: Any, place: str, *keys: str) -> None:
    """Raises ConfigError for a batch that is no dict with these keys, and says which one it has not.

    Args:
        batch: of a loader.
        place: the method, or its step, that reads them.
        keys: of tensors (B, ...); `index` int64 (B,) is the samples' unique id.
    """
    wanted = f"{place}: expected a batch with {', '.join(f'`{key}`' for key in keys)}"
    advice = "give a dataset whose samples are dicts with these keys"
    if not isinstance(batch, Mapping):
        raise ConfigError(f"{wanted}, got a {type(batch).__name__}; {advice}")
    if missing := [key for key in keys if key not in batch]:
        there = f"a dict with {few([str(key) for key in batch]) or 'nothing'}"
        raise ConfigError(f"{wanted}, got {there}, without `{missing[0]}`; {advice}")


def count_samples(batch: Any, name: str) -> int:
    """The length of a batch's first tensor.

    Raises:
        ConfigError: no dict, or nothing in it that has a length.
    """
    first = next(iter(batch.values()), None) if isinstance(batch, Mapping) else None
    if first is None or not hasattr(first, "__len__") or (isinstance(first, Tensor) and not first.dim()):
        got = f"a dict whose first value is a {type(first).__name__}" if first is not None else type(batch).__name__
        raise ConfigError(
            f"{name}.samples_in: expected a dict of tensors whose first axis is the batch, got {got}; give a dataset "
            "whose samples are dicts, or override samples_in(batch)"
        )
    return len(first)


def as_outputs(returned: Any, name: str) -> dict[str, Tensor]:
    """What `step` has returned, as a dict with the loss; the loss alone is Lightning's custom.

    Raises:
        ConfigError: anything else.
    """
    outputs = {"loss": returned} if isinstance(returned, Tensor) else returned
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if not isinstance(loss, Tensor) or loss.dim():
        if isinstance(loss, Tensor):
            got = f"a loss of shape {tuple(loss.shape)}"
        elif isinstance(outputs, Mapping) and "loss" not in outputs:
            got = f"a dict with {few(list(outputs)) or 'nothing'}"
        else:
            got = type(returned if loss is None else loss).__name__
        raise ConfigError(f"{name}.step: expected a dict with `loss`, a scalar tensor, or the loss alone, got {got}")
    return cast(dict[str, Tensor], outputs)
