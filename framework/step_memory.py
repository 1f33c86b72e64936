"""How much memory a training step takes, known before the first one, and what a method gives up where it is short.

A copy of the method takes one step on tensors that have sizes and no values (torch's fake tensors), while the bytes of
every tensor are counted from its making to its end. What an operator takes inside, and the allocator's gaps, are not
seen: `framework.memory.SHARE` leaves room for them.
"""

import contextlib
import copy
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from framework.batches import as_outputs
from framework.distributed import say
from framework.errors import ConfigError
from framework.memory import SHARE, free_bytes, gib


@runtime_checkable
class KnowsMemory(Protocol):
    """A method whose training step can be tried without values, and that can give something up for memory."""

    memory: str
    plans_memory: bool

    def step(self, batch: Any, split: Any) -> dict[str, Tensor]:
        """The loss, as `loss`."""
        ...

    def save_memory(self) -> str | None:
        """Changes the method so that a step takes less; says how, or None where there is nothing to give up."""
        ...


class Peak(TorchDispatchMode):
    """Bytes of the tensors made inside, now and at the highest point.

    Attributes:
        now: bytes that are held.
        highest: the most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._watch(tensor, before)
        return made

    def _watch(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def activation_bytes(method: Any, batch: Any, precision: AbstractContextManager[Any] | None = None) -> int:
    """Bytes of a training step's forward and backward at their highest point, gradients of the weights among them.

    Args:
        method: with `step`; it is copied and stays as it is.
        batch: a batch on the method's device; only sizes and types are looked at.
        precision: what surrounds a step, for example autocast.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    twin = copy.deepcopy(method).train()
    for module in twin.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None:
                    made = fake.from_tensor(value.detach())
                    tensors[name] = nn.Parameter(made, value.requires_grad) if tensors is module._parameters else made
    there = tree_map(lambda v: fake.from_tensor(v.detach()) if isinstance(v, Tensor) else v, batch)
    with warnings.catch_warnings(), fake, Peak() as peak:
        warnings.simplefilter("ignore")  # said again in the step itself
        with precision or contextlib.nullcontext():
            loss = as_outputs(twin.step(there, "train"), type(method).__name__)["loss"]
        loss.backward()
    return peak.highest


def weight_bytes(method: nn.Module, optimizers: list[Optimizer] | None = None) -> int:
    """Bytes of parameters, buffers and what the optimizers keep of every parameter (None: two moments)."""
    held = sum(t.numel() * t.element_size() for t in [*method.parameters(), *method.buffers()])
    if optimizers is None:
        return held + 2 * sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            moments = 2 if "betas" in group else 1 if group.get("momentum") or group.get("alpha") else 0
            held += moments * sum(p.numel() * p.element_size() for p in group["params"])
    return held


def _tried(method: Any, batch: Any, fixed: int, precision: AbstractContextManager[Any]) -> tuple[int | None, str]:
    """Bytes of a step with the weights' `fixed`; where they cannot be known, None and the reason."""
    try:
        return fixed + activation_bytes(method, batch, precision), ""
    except ConfigError:
        raise
    except Exception as error:  # a step of a user's own that reads values cannot be tried without them
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


def plan(
    method: Any,
    batch: Any,
    free: int | None,
    optimizers: list[Optimizer] | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> str:
    """Chooses for `memory: auto` (or carries out `lean`) what a method gives up, and says what a step takes.

    Args:
        method: of which `memory` is `auto`, `fast` or `lean`.
        batch: the first one.
        free: bytes that the process could hold in all; None: not known.
        optimizers: of the run.
        precision: makes what surrounds a step, for example autocast.

    Returns:
        one line. A step that cannot be tried is not foreseen, and `lean` is carried out all the same.

    Raises:
        ConfigError: nothing fits; names the keys.
    """
    fixed = weight_bytes(method, optimizers)
    needed, reason = _tried(method, batch, fixed, precision())
    given_up, seen = None, True
    short = free is not None and needed is not None and needed > SHARE * free
    if method.memory == "lean" or (method.memory == "auto" and short):
        given_up, before = method.save_memory(), needed
        if given_up is not None and needed is not None:
            needed, reason = _tried(method, batch, fixed, precision())
        # what saved tensors are rebuilt from has no address without values
        seen = given_up is None or (needed is not None and before is not None and needed < before)
    with_it = f", with {given_up} (model.memory: {method.memory})" if given_up else ""
    if needed is None:
        return f"{type(method).__name__}: the memory of a training step is not known beforehand ({reason}){with_it}"
    if seen and free is not None and needed > free:
        tried = f" even with {given_up}" if given_up else ""
        lean = ", model.memory: lean" if method.memory == "fast" else ""
        raise ConfigError(
            f"data.batch_size: a training step takes about {gib(needed)}{tried}, and there are {gib(free)}; give "
            f"smaller batches (with trainer.accumulate_grad_batches), smaller pictures (data.crop, data.image_size)"
            f"{lean}, or trainer.precision: bf16-mixed"
        )
    beside = "" if free is None else f" of {gib(free)}"
    return f"{type(method).__name__}: a training step takes about {gib(needed)}{beside}{with_it}"


class StepMemory(Callback):
    """Before the first step on an accelerator: what it will take, and whether it fits."""

    def __init__(self) -> None:
        self._settled = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Looks at the run's first batch.

        Raises:
            ConfigError: a step does not fit.
        """
        if self._settled or not isinstance(pl_module, KnowsMemory) or not pl_module.plans_memory:
            return
        self._settled = True
        device = pl_module.device
        if device.type == "cpu" and pl_module.memory != "lean":
            return  # the try takes as long as several small steps, and a host's memory is large
        free = free_bytes(device)
        if free is not None and device.type == "cuda":
            free += torch.cuda.memory_allocated(device)  # the weights and the batch are among what is needed
        say(plan(pl_module, batch, free, trainer.optimizers, trainer.precision_plugin.train_step_context))
