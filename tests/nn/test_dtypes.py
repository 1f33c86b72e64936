"""Layers answer in the dtype of their input and parameters, and compute in float32 where 16 bits are too few."""

import copy

import pytest
import torch
from torch import nn

from framework.errors import ConfigError
from framework.nn import (
    ExpertLinear,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    KOrigins,
    ScaleSpaceDepthwiseConv2d,
    SineLayer,
    fold_korigins,
)
from models.korigins.network import KOriginsUNet
from tests.helpers.layers import Grown, folded

LAYERS = {
    "KANLinear": (lambda: KANLinear(4, 3, bias=True, base="silu"), (5, 4)),
    "KANLinear-dense": (lambda: KANLinear(4, 3, base="linear", implementation="dense"), (5, 4)),
    "KANConv2d": (lambda: KANConv2d(4, 3, 3, padding=1, bias=True), (2, 4, 5, 5)),
    "KANConv2d-recompute": (lambda: KANConv2d(4, 3, 3, padding=1, implementation="recompute"), (2, 4, 5, 5)),
    "KANConvTranspose2d": (lambda: KANConvTranspose2d(4, 3, 2, stride=2, bias=True), (2, 4, 5, 5)),
    "KOrigins": (lambda: KOrigins(2, [1.0, 2.0]), (1, 2, 4, 4)),
    "FoldedKOrigins": (folded, (1, 2, 4, 5)),
    "ExpertLinear": (lambda: ExpertLinear(4, 3, 1), (5, 4)),
    "SineLayer-first": (lambda: SineLayer(2, 3, first=True), (5, 2)),
    "SineLayer": (lambda: SineLayer(4, 3, w0=3.0), (5, 4)),
    "ScaleSpaceDepthwiseConv2d": (lambda: ScaleSpaceDepthwiseConv2d(8, 3), (1, 8, 4, 4)),
    "Finola": (lambda: Grown(4), (2, 4)),
    "Finola-wavefront": (lambda: Grown(4, "wavefront"), (2, 2, 4)),
}
EXACT_INSIDE = ("KAN", "KOrigins", "FoldedKOrigins", "SineLayer-first")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_a_cast_layer_answers_in_its_dtype(name, dtype) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().to(dtype)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())
    exact = copy.deepcopy(layer).double()(x.detach().double())
    # a result rounded once, or products of rounded values
    steps = 1 if name.startswith(EXACT_INSIDE) and not name.startswith("KAN") else 8
    tolerance = steps * torch.finfo(dtype).eps * max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_wider_parameters_win(name) -> None:
    """A float32 layer is not made coarser by a 16-bit input."""
    build, shape = LAYERS[name]
    layer = build()
    x = torch.randn(shape).bfloat16()
    y = layer(x)
    assert y.dtype == torch.float32
    assert layer.double()(x.float()).dtype == torch.float64


def test_a_scale_space_convolution_takes_whole_numbers_and_autocast_s_dtype() -> None:
    layer = ScaleSpaceDepthwiseConv2d(8, 3)
    whole = torch.arange(128).view(1, 8, 4, 4)
    torch.testing.assert_close(layer(whole), layer(whole.float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        for x in (torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4).bfloat16()):
            assert layer(x).dtype == torch.bfloat16


def test_a_folded_double_convolution_takes_float32_images() -> None:
    torch.manual_seed(0)
    korigins, conv = KOrigins(1, [10.0, 300.0]), nn.Conv2d(3, 2, 3, padding=1).double()
    x = 1000 * torch.rand(1, 1, 6, 7)
    y = fold_korigins(korigins, conv)(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, conv(korigins.double()(x.double())), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("base", [None, "silu"])
def test_edge_values_are_exact_under_autocast(base) -> None:
    layer = KANConv2d(2, 3, 3, base=base)
    points = torch.linspace(-4, 4, 33)
    with torch.autocast("cpu", torch.bfloat16):
        values = layer.edge_values(points)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, layer.edge_values(points), rtol=0, atol=0)


def test_a_network_of_raw_intensities_in_float64_takes_float32_images() -> None:
    torch.manual_seed(0)
    network = KOriginsUNet(rfl=8, width=2).eval()
    x = 1000 * torch.rand(1, 1, 16, 16)
    assert network.double()(x).dtype == torch.float64
    with pytest.raises(ConfigError, match="float16"):
        network.half().train()(x.half())
