"""Depthwise convolutions with operators of trainable scale beside plain ones: forward and backward, bound by bytes."""

import torch
from torch import nn

from benchmarks.device.measure import DTYPES, Table
from framework.nn import ScaleSpaceDepthwiseConv2d


def rows(table: Table, smoke: bool) -> None:
    """The shapes of ConvNeXt V2's stages at 224 x 224."""
    shapes = [(2, 8, 12)] if smoke else [(128, 96, 56), (128, 192, 28), (128, 384, 14), (128, 768, 7)]
    for batch, channels, side in shapes:
        layers = {
            "plain": nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            "scale space": ScaleSpaceDepthwiseConv2d(channels),
        }
        for dtype in ("fp32", "bf16"):
            for form, layer in layers.items():
                add(table, form, layer.to(table.device), (batch, channels, side), dtype)


def add(table: Table, form: str, layer: nn.Module, shape: tuple[int, int, int], dtype: str) -> None:
    """One row."""
    batch, channels, side = shape
    x = torch.randn(batch, channels, side, side, device=table.device, requires_grad=True)
    autocast = None if dtype == "fp32" else DTYPES[dtype]

    def step() -> None:
        x.grad = None
        layer.zero_grad()
        with torch.autocast(table.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            y = layer(x)
        y.backward(torch.ones_like(y))

    operations, least = 3 * 2 * x.numel() * 49, 5 * x.numel() * (4 if dtype == "fp32" else 2)
    table.add(step, operations, least, dtype, case=f"batch {batch}, {channels} channels, {side} x {side}", form=form)
