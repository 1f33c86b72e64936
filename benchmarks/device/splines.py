"""Spline convolutions in every form, beside the plain convolution and the wide one that they become.

Forward and backward. The wide convolution over n copies of the input (`floor`) holds the multiplications that every
dense form must do, so its operations are the limit of all of them; `held_mib` is what stays between the passes.
"""

from typing import Any

import torch
from torch import nn

from benchmarks.device.measure import DTYPES, Table
from benchmarks.kan_conv import Repeated, held_bytes
from framework.nn import KANConv2d


def rows(table: Table, smoke: bool) -> None:
    """Every form in fp32 and bf16."""
    shapes = [(1, 4, 12)] if smoke else [(32, 64, 128), (32, 256, 32)]
    for batch, channels, side in shapes:
        n = 8
        forms: dict[str, Any] = {
            "plain": nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            "floor": Repeated(channels, n),
        }
        for name in ("dense", "scatter", "recompute", "operator"):
            forms[name] = KANConv2d(channels, channels, 3, padding=1, implementation=name)  # type: ignore[arg-type]
        if not smoke:
            for name in ("dense", "operator"):
                layer = KANConv2d(channels, channels, 3, padding=1, implementation=name)  # type: ignore[arg-type]
                forms[f"{name}, compiled"] = torch.compile(layer, dynamic=False)
        for dtype in ("fp32", "bf16"):
            for name, module in forms.items():
                add(table, name, module.to(table.device), (batch, channels, side), 1 if name == "plain" else n, dtype)


def add(table: Table, form: str, module: nn.Module, shape: tuple[int, int, int], n: int, dtype: str) -> None:
    """One row; the operations are those of forward, gradient of the input and gradient of the weights."""
    batch, channels, side = shape
    x = torch.randn(batch, channels, side, side, device=table.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    autocast = None if dtype == "fp32" else DTYPES[dtype]

    def step() -> None:
        x.grad = None
        module.zero_grad()
        with torch.autocast(table.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            y = module(x)
        y.backward(torch.ones_like(y))

    operations = 3 * 2 * x.numel() * channels * 9 * n
    least = 5 * x.numel() * (4 if dtype == "fp32" else 2)  # x, y; their gradients; x again
    held = "" if "compiled" in form else round(held_bytes(module, x, autocast) / 2**20, 2)
    case = f"batch {batch}, {channels} channels, {side} x {side}"
    table.add(step, operations, least, dtype, case=case, form=form, held_mib=held)
