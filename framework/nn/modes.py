"""How a layer is being run: by itself, or under something that follows every operation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from framework.errors import ConfigError


def followed() -> bool:
    """Whether a compiler, an exporter, a tracer or a function transform follows every operation.

    Layers with a fast path of their own (in-place operations, a written-out backward, sorted rows) then take their
    form of plain differentiable operations, which is right at other sizes and values than the ones it was followed at:
    under `torch.compile`, `torch.export`, `torch.jit.trace` and `torch.func` (vmap, grad, jacrev, ...).
    """
    # torch has no public question for the last one; its own autograd.Function asks this
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def batched(*tensors: Tensor) -> bool:
    """Whether one of them stands for many gradients, which a backward pass is run for at once.

    `torch.autograd.grad(is_grads_batched=True)`, with it `torch.autograd.functional.jacobian(vectorize=True)`. A
    written-out backward pass then takes plain operations: nothing can be written into a tensor that is but one.
    """
    # of the engine's own vmap, not of `torch.func`'s; torch has no public question
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


class Layer(nn.Module):
    """A layer that is followed, not read: TorchScript's reader of Python would stop in the middle, in its own words."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Torch's hook, called by `torch.jit.script`.

        Raises:
            ConfigError: always; says what does work.
        """
        raise ConfigError(
            f"{type(self).__name__}: torch.jit.script cannot read it; torch.export, torch.compile and torch.jit.trace "
            "follow it"
        )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values to look at: not on the meta device, and not torch's fake tensors (torch 2.15)."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


@contextmanager
def numbers() -> Iterator[None]:
    """Tensors made inside hold their numbers, on the CPU: on the meta device and under FakeTensorMode too."""
    with torch.device("cpu"), unset_fake_temporarily():
        yield
