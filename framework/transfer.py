"""Fine-tuning: what fits of a checkpoint becomes initial weights; what does not stays as it was made, and is said."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from framework.checkpoints import load_checkpoint
from framework.distributed import say
from framework.errors import CheckpointError, few
from framework.nn import SplineLayer
from framework.serialization import class_path, is_class
from framework.trust import class_named


@dataclass
class Transfer:
    """What was done.

    Attributes:
        taken: names of the tensors that the module has from the checkpoint.
        new: name -> why it is new.
        left: names of the checkpoint that the module has no place for.
    """

    taken: list[str] = field(default_factory=list)
    new: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        said = f"{len(self.taken)} of {len(self.taken) + len(self.new)} tensors are taken over"
        if self.new:
            said += "; new: " + few([f"{name} ({why})" for name, why in self.new.items()], 4)
        return said + (f"; left in the file: {few(self.left, 4)}" if self.left else "")


def take_over(module: Any, path: str | Path) -> Transfer:
    """Copies from a checkpoint of the same class whatever has the module's own name and shape.

    A spline layer takes its coefficients from any grid. Another number of classes leaves the head new, another number
    of channels the first layer. Nothing that the file names is imported or called.

    Args:
        module: a BaseMethod, changed in place.
        path: the checkpoint.

    Raises:
        CheckpointError: no whole checkpoint, one of another class, or one of which nothing fits.
    """
    try:
        content = load_checkpoint(Path(path))
        _check_kind(module, str(content.get("class_path") or class_path(type(module))), path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("ckpt_path:", "initial_weights:", 1)) from error
    stored = module.translate_weights(dict(content["state_dict"]), content.get("hyper_parameters") or {})
    own, done = module.state_dict(), Transfer()
    splines = {f"{name}." for name, child in module.named_modules() if isinstance(child, SplineLayer)}
    for name, value in own.items():
        if name.startswith(module.not_taken_over):
            continue
        why = _spline_misfit(name, own, stored, splines) or _misfit(name, value, stored, splines)
        if why:
            done.new[name] = why
        else:
            done.taken.append(name)
    done.left = [name for name in stored if name not in own and not name.startswith(module.not_taken_over)]
    if not any(isinstance(own[name], Tensor) and own[name].ndim > 1 for name in done.taken):
        raise CheckpointError(f"initial_weights: nothing of {path} fits this model: {done}; give another checkpoint")
    nn.Module.load_state_dict(module, {name: stored[name] for name in done.taken}, strict=False)
    said = {n: why for n, why in done.new.items() if not n.endswith(("_extra_state", "grid_code", ".mask"))}
    say(f"initial weights of {path}: {Transfer(done.taken, said, done.left)}")
    return done


def _misfit(name: str, value: Any, stored: Mapping[str, Any], splines: set[str]) -> str:
    if name not in stored:
        return "not in the file"
    found = stored[name]
    if not isinstance(found, Tensor) or not isinstance(value, Tensor):
        return ""
    grids = name.removesuffix("coefficients") in splines  # the first axis is the grid, which is converted
    mine, theirs = ((v.shape[1:] if grids else v.shape) for v in (value, found))
    return "" if mine == theirs else f"{tuple(mine)} instead of {tuple(theirs)}"


def _spline_misfit(name: str, own: Mapping[str, Any], stored: Mapping[str, Any], splines: set[str]) -> str:
    """Why a tensor of a spline layer stays new although it fits by itself: the layer is one thing."""
    prefix = next((p for p in splines if name.startswith(p)), None)
    if prefix is None:
        return ""
    return _misfit(f"{prefix}coefficients", own[f"{prefix}coefficients"], stored, splines) or (
        "" if f"{prefix}_extra_state" in stored else "its grid is not in the file"
    )


def _check_kind(module: nn.Module, stored: str, path: str | Path) -> None:
    if any(is_class(stored, kind) for kind in type(module).__mro__):
        return
    found = class_named(stored)
    if not (isinstance(found, type) and issubclass(found, type(module))):
        raise CheckpointError(
            f"initial_weights: {path} holds a {stored}, but the model is a {class_path(type(module))}; give a "
            "checkpoint of the second"
        )
