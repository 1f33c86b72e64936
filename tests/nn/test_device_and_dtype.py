"""Every layer, built on the CPU and moved, gives the float64 reference's output and gradients on the device."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework.nn import (
    ExpertLinear,
    Finola,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    KOrigins,
    ScaleSpaceDepthwiseConv2d,
    SineLayer,
    nested_sort,
)
from tests.helpers.accelerator import Accelerator

pytestmark = pytest.mark.cpu  # made on the CPU and moved, as a user's network is

# relative error of outputs and of gradients: a few rounding errors of the products' factors
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 6e-3}

Call = Callable[[nn.Module, Tensor], Tensor]


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def by_index(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, torch.arange(len(x), device=x.device) * 7 % 4)


def by_segments(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, segments=[nested_sort([torch.arange(x.shape[1]) // 3 % 4]).segments[0] for _ in x])


def grown(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, (5, 6))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Call]] = {
    "spline, dense": (lambda: KANConv2d(3, 4, 3, padding=1, implementation="dense"), (2, 3, 6, 6), plain),
    "spline, scatter": (lambda: KANConv2d(3, 4, 3, padding=1, base="silu"), (2, 3, 6, 6), plain),
    "spline, recompute": (lambda: KANConv2d(3, 4, 3, implementation="recompute"), (2, 3, 6, 6), plain),
    "spline, transposed": (lambda: KANConvTranspose2d(3, 4, 2, 2), (2, 3, 6, 6), plain),
    "spline, linear": (lambda: KANLinear(5, 4, bias=True), (7, 5), plain),
    "origins": (lambda: KOrigins(2, [[0.5, 0.25], [1.0, -1.0]]), (2, 2, 4, 4), plain),
    "experts by index": (lambda: ExpertLinear(5, 4, 4), (12, 5), by_index),
    "experts by segments": (lambda: ExpertLinear(8, 8, 4, "per_expert", 2), (2, 12, 8), by_segments),
    "sine": (lambda: SineLayer(8, 8, 4, w0=2.0, num_networks=2), (2, 12, 8), by_segments),
    "finola": (lambda: Finola(8), (2, 8), grown),
    "finola, paths one by one": (lambda: Finola(8, checkpoint=True), (2, 3, 8), grown),
    "finola, wavefront": (lambda: Finola(8, "wavefront"), (2, 8), grown),
    "scale space": (lambda: ScaleSpaceDepthwiseConv2d(8), (2, 8, 9, 9), plain),
}


def run(layer: nn.Module, x: Tensor, call: Call) -> dict[str, Tensor]:
    """The output and every gradient of a weighted sum of it, on the CPU in float64."""
    x = x.requires_grad_()
    y = call(layer, x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    (y * weights.to(y)).sum().backward()
    tensors = {"output": y, "input": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    return {name: t.detach().cpu().double() for name, t in tensors.items() if t is not None}


def compare(name: str, device: str, dtype: torch.dtype) -> None:
    build, shape, call = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build(), torch.randn(shape)
    expected = run(copy.deepcopy(layer).double(), x.double(), call)
    autocast: Any = nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)
    with autocast:
        found = run(layer.to(device), x.to(device), call)
    assert found.keys() == expected.keys()
    for part, truth in expected.items():
        error = (found[part] - truth).norm() / truth.norm()
        assert error < TOLERANCE[dtype], (name, part, float(error))


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_float64_reference(name: str, device: str, dtype: torch.dtype) -> None:
    with Accelerator() if device == "simulated" else nullcontext():
        compare(name, "cuda" if device == "simulated" else device, dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_keeps_to_an_accelerators_rules(name: str) -> None:
    with Accelerator():
        compare(name, "cuda", torch.float32)


def test_the_simulated_accelerator_refuses_what_a_real_one_refuses() -> None:
    with Accelerator() as accelerator:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        before = len(accelerator.waits)
        assert (x + 2 * x).device.type == "cuda"
        assert len(accelerator.waits) == before
        x.sum().item(), x.cpu(), x[x > 0], torch.tensor([1.0], device="cuda")
        assert [wait.operation for wait in accelerator.waits[before:]] == [
            *("_local_scalar_dense", "_to_copy", "index", "tensor")
        ]
