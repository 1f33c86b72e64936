"""Which dtype a layer computes and answers in.

A layer answers as torch's own do, in what torch promotes the dtypes of its input and its parameters to; where 16 bits
are not enough inside (cells of a spline, states and their statistics, raw intensities), it computes in float32 first.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from framework.nn.modes import followed

_convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]


def at_least_float32(x: Tensor) -> Tensor:
    """16-bit floats and integers as float32; float32 and float64 as they are.

    Args:
        x: tensor of any shape and real dtype.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def promoted(x: Tensor, like: Tensor) -> Tensor:
    """x in what torch promotes its dtype and that of parameters `like` to: integers and, under autocast, 16-bit floats
    become the parameters' float32; a network of 16-bit parameters keeps 16 bits."""
    return x.to(torch.promote_types(x.dtype, like.dtype))


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Autocast's dtype where it is on, else None; always None on the meta device, of which torch will not be asked.

    Args:
        device_type: `torch.device.type` of what is computed.
    """
    on = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if on else None


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Switches autocast off; the meta device has none.

    Args:
        device_type: `torch.device.type` of what is computed.
    """
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Switch autocast off, and TF32 convolutions too on CUDA, for operations that see raw 16-bit intensities.

    At an intensity of 20000 bfloat16 has steps of 128 and TF32 steps of 16: both are wider than the differences that
    the method looks for.

    The backward pass runs later, outside: see `exact_backward`.

    Args:
        x: tensor of any shape and dtype; only its device counts.
    """
    with without_autocast(x.device.type):
        if not x.is_cuda:
            yield
            return
        before = _convolutions.fp32_precision
        _convolutions.fp32_precision = "ieee"
        try:
            yield
        finally:
            _convolutions.fp32_precision = before


def exact_backward(y: Tensor, *inputs: Tensor) -> Tensor:
    """Switches TF32 off on CUDA for the backward pass of every convolution between some inputs and y.

    What a kernel's gradient is summed from are the same raw intensities. Not of second derivatives, and not inside a
    compiled graph, whose backward pass has no such places.

    Args:
        y: result of operations under `full_precision`.
        inputs: what they were given; what made these stays as it is.

    Returns:
        y itself.
    """
    if not y.is_cuda or followed():
        return y
    seen: set[Any] = {t.grad_fn for t in inputs} | {None}
    found: list[Any] = [y.grad_fn]
    while found:
        node = found.pop()
        if node in seen:
            continue
        seen.add(node)
        found += [before for before, _ in node.next_functions]
        if "onvolution" in node.name() and not node.metadata.get("exact"):
            node.metadata["exact"] = True  # guarded twice, the first guard would end before the second
            _guard(node)
    return y


def _guard(node: torch.autograd.graph.Node) -> None:
    kept: list[str] = []

    def enter(_: Any) -> None:
        kept.append(_convolutions.fp32_precision)
        _convolutions.fp32_precision = "ieee"

    def leave(*_: Any) -> None:
        _convolutions.fp32_precision = kept.pop()

    node.register_prehook(enter)
    node.register_hook(leave)
