"""Convolutions of raw intensities keep out of TF32 in the backward pass too, and what lies beside them does not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from framework.nn import KOrigins, fold_korigins
from framework.nn.origins.korigins import convolve_folded
from framework.nn.precision import exact_backward
from models.korigins.network import KOriginsConv, KOriginsUNet
from tests.helpers.accelerator import Accelerator

CONVOLUTIONS: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]


class Precisions(TorchDispatchMode):
    """What cuDNN's convolutions may round to, whenever one runs, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[tuple[int, str]]] = {"convolution": [], "convolution_backward": []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.seen:
            self.seen[name].append((args[1 + (name != "convolution")].shape[0], CONVOLUTIONS.fp32_precision))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def tf32() -> Any:
    before = CONVOLUTIONS.fp32_precision
    CONVOLUTIONS.fp32_precision = "tf32"
    yield
    assert CONVOLUTIONS.fp32_precision == "tf32"
    CONVOLUTIONS.fp32_precision = before


def precisions(module: Any, x: Tensor, times: int = 1) -> dict[str, set[str]]:
    with Accelerator(), Precisions() as found:
        there = module.to("cuda") if isinstance(module, nn.Module) else module
        loss = there(x.to("cuda").requires_grad_()).square().sum()
        for _ in range(times):
            loss.backward(retain_graph=True)
    return {name: {precision for _, precision in calls} for name, calls in found.seen.items()}


def case(name: str) -> Any:
    torch.manual_seed(0)
    layer, conv = KOrigins(1, [100.0, 200.0], trainable=name == "layer"), nn.Conv2d(3, 4, 3, padding=1)
    return {
        "layer": lambda: KOriginsConv(layer, conv).train(),
        "frozen layer": lambda: KOriginsConv(layer, conv).train(),
        "folded": lambda: fold_korigins(layer, conv),
    }[name]()


@pytest.mark.parametrize("name", ["layer", "frozen layer", "folded"])
@pytest.mark.parametrize("times", [1, 2])
def test_forward_and_backward_of_what_consumes_intensities(name: str, times: int) -> None:
    found = precisions(case(name), 150 + 50 * torch.randn(1, 1, 6, 6), times)
    assert found == {"convolution": {"ieee"}, "convolution_backward": {"ieee"}}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_network_is_exact_backward_where_it_is_exact_forward(checkpoint: bool) -> None:
    network = KOriginsUNet(18, width=2, origins=[100.0, 200.0]).train()
    network.checkpoint = checkpoint
    with Accelerator(), Precisions() as found:
        network.to("cuda")(150 + 50 * torch.randn(1, 1, 16, 16).to("cuda")).square().sum().backward()
    ahead, back = (sorted(set(found.seen[name])) for name in ("convolution", "convolution_backward"))
    assert ahead == back
    assert {precision for _, precision in back} >= {"ieee"}


def test_what_lies_before_and_behind_is_left_alone_and_nothing_is_guarded_twice() -> None:
    first, second, third = (nn.Conv2d(width, width + 1, 1) for width in (1, 2, 3))

    def run(x: Tensor) -> Tensor:
        h = first(x)
        y = exact_backward(exact_backward(second(h).relu(), h), h)
        return third(y)

    with Accelerator(), Precisions() as found:
        for conv in (first, second, third):
            conv.to("cuda")
        run(torch.randn(1, 1, 4, 4).to("cuda").requires_grad_()).sum().backward()
    assert found.seen["convolution_backward"] == [(4, "tf32"), (3, "ieee"), (2, "tf32")]


def test_on_the_cpu_nothing_is_done() -> None:
    conv, layer = nn.Conv2d(3, 4, 3), KOrigins(1, [1.0, 2.0], trainable=False)
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    with Precisions() as found:
        convolve_folded(x, layer, conv).sum().backward()
    assert {precision for _, precision in found.seen["convolution_backward"]} == {"tf32"}
