"""The lift as an operator: equal to the other routes, and known to counters, compilers, exporters and autograd."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device.count import Launches
from framework.nn import KANConv2d, KANLinear
from framework.nn.splines.bspline import SplineGrid
from framework.nn.splines.expansion import expand
from framework.nn.splines.operator import SLOPE_OPERATIONS, VALUE_OPERATIONS, spline_lift, spline_lift_backward
from tests.helpers.accelerator import Accelerator

GRID = SplineGrid(5, 3, -3.0, 3.0, "linear")
SETTINGS = (5, 3, -3.0, 3.0, "linear", "silu")
LIFT, BACKWARD = "explicit_vision::spline_lift", "explicit_vision::spline_lift_backward"


def points(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([4 * torch.randn(60), torch.linspace(-4, 4, 17), torch.tensor([float("nan"), 1e6])]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [None, "silu", "linear"])
def test_is_the_scatter_route_bit_for_bit_on_a_cpu(base: Any, dtype: torch.dtype) -> None:
    found = []
    for route in ("operator", "scatter"):
        x = points(dtype).requires_grad_()
        values = expand(x, GRID, base, route)  # type: ignore[arg-type]
        values.backward(torch.linspace(-1, 1, values.numel()).view_as(values).to(values.dtype))
        found.append((values.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_torch_finds_nothing_wrong_with_the_operators() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(spline_lift, (x, *SETTINGS, torch.float32))
    torch.library.opcheck(spline_lift_backward, (torch.randn(3, 4, 9), x.detach(), *SETTINGS))


def test_the_flop_counter_sees_it_ahead_and_back() -> None:
    x = torch.randn(10, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        expand(x, GRID, None, "operator").sum().backward()
    assert counter.get_total_flops() == 10 * (VALUE_OPERATIONS[3] + SLOPE_OPERATIONS[3] + 2 * 4)


def test_a_compiled_graph_holds_it_and_keeps_the_input_alone() -> None:
    torch._dynamo.reset()
    layer, x = KANConv2d(2, 3, 3, padding=1, implementation="operator"), torch.randn(1, 2, 5, 5, requires_grad=True)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    out = torch.compile(layer, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(out, layer(x))
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (out, layer(x)))
    torch.testing.assert_close(ours, theirs)
    assert any("spline_lift" in str(node.target) for node in graphs[0].graph.nodes)


def test_an_exported_layer_needs_no_operator_of_ours() -> None:
    layer, x = KANLinear(4, 3, implementation="operator"), torch.randn(2, 4)
    program = torch.export.export(layer, (x,))
    assert "spline_lift" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("implementation", ["auto", "recompute"])
def test_an_accelerator_runs_it_once_in_each_direction(implementation: Any) -> None:
    torch.manual_seed(0)
    layer = KANConv2d(2, 3, 3, padding=1, base="silu", implementation=implementation)
    x = torch.randn(1, 2, 5, 5)
    expected = run(layer, x)
    with Accelerator() as accelerator:
        layer, x = layer.to("cuda"), x.to("cuda")
        accelerator.waits.clear()
        with Launches() as seen:
            found = run(layer, x)
        assert not accelerator.waits
    assert (seen.counts[LIFT], seen.counts[BACKWARD]) == (1, 1)  # lifted again outside of what is counted
    assert not {"aten::scatter_add", "aten::index_add", "aten::_index_put_impl_"} & set(seen.counts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.held, theirs)  # type: ignore[attr-defined]


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
    return [out.detach(), *grads]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for GPUs")
def test_the_kernels_give_the_same_in_tritons_interpreter() -> None:
    """A process of its own: the interpreter is chosen before Triton is imported."""
    program = Path(__file__).parents[1] / "helpers" / "interpreted_lift.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["cases", "equal"]
