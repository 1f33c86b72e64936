"""Pointing tests at a device: what a test makes without saying where is made there."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

TESTS = Path(__file__).parents[1]


class OnDevice(TorchFunctionMode):
    """As `torch.set_default_device`, and what a test needs beside it.

    Numbers from a CPU generator are drawn on the CPU and moved, so that every device sees the same ones; arrays become
    tensors of the device; and a test (the packages do not) may turn a tensor of the device into an array.

    Args:
        device: where tensors without a device go.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in ("numpy", "__array__") and isinstance(args[0], Tensor):
            return func(args[0].cpu() if _from_a_test() else args[0], *args[1:], **kwargs)
        if func is torch.from_numpy:
            return func(*args).to(self.device)
        generator = kwargs.get("generator")
        if kwargs.get("device") is None and generator is not None and generator.device.type == "cpu":
            wanted = kwargs.pop("requires_grad", False)
            drawn = func(*args, **kwargs)
            return drawn if "out" in kwargs else drawn.to(self.device).requires_grad_(wanted)
        if func not in _device_constructors() or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": self.device})


def _from_a_test() -> bool:
    """Whether a test file asks, directly or through NumPy's or pytest's comparisons."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(TESTS):
            if path.name not in ("devices.py", "accelerator.py"):
                return True
        elif path.is_relative_to(TESTS.parent):
            return False
        frame = frame.f_back
    return False
