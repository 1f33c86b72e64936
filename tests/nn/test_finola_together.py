"""FINOLA's form for accelerators, on the CPU: maps and gradients of the loop over cells, few launches, capturable."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.device.count import Launches
from benchmarks.device.methods import on_device, prepared
from framework.errors import ConfigError
from framework.nn import Finola
from framework.nn.waves import finola, together
from framework.nn.waves.together import Together
from models import FinolaAutoencoder, MaskedFinola
from tests.helpers.accelerator import Accelerator
from tests.nn.test_finola import SIZES, cell_loop, centre, gradients, layer_and_vector


@pytest.fixture
def as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that an accelerator takes, whatever the device."""
    monkeypatch.setattr(finola, "_parts", lambda plan, device: [Together(plan)])


@pytest.mark.usefixtures("as_there")
@pytest.mark.parametrize(("size", "start"), SIZES)
@pytest.mark.parametrize("scheme", ["separable", "row_first", "column_first"])
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"normalize": False, "matrices": 1}], ids=str)
@pytest.mark.parametrize("paths", [None, 3])
def test_map_and_gradients_are_those_of_the_cell_loop(scheme, size, start, options, paths) -> None:
    layer, q = layer_and_vector(scheme=scheme, paths=paths, **options)
    matrices, begin = layer.directional(), start or centre(size)
    single = [q] if paths is None else q.unbind(1)
    reference = sum(cell_loop(one, matrices, size, begin, scheme, layer.normalize) for one in single)
    grown = layer(q, size, start)
    assert (grown - reference).abs().max() <= 1e-12
    with torch.no_grad():
        assert torch.equal(layer(q, size, start), grown) or paths  # paths are summed one by one without a graph
    for ours, theirs in zip(gradients(grown, layer, q), gradients(reference, layer, q), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, float(theirs.abs().max()))


@pytest.mark.usefixtures("as_there")
def test_a_second_backward_through_a_retained_graph_is_the_first_again() -> None:
    layer, q = layer_and_vector(paths=2)
    total = layer(q, (5, 6)).square().sum()
    first = torch.autograd.grad(total, [q, layer.weight], retain_graph=True)
    second = torch.autograd.grad(total, [q, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("as_there")
def test_bf16_products_keep_the_state_in_float32() -> None:
    torch.manual_seed(0)
    layer, q = Finola(64), torch.randn(2, 64, requires_grad=True)
    exact = layer(q, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(q, (32, 32))
    assert mixed.dtype == torch.float32
    assert 0 < float((mixed - exact).detach().norm() / exact.detach().norm()) < 0.005
    for ours, true in zip(gradients(mixed, layer, q), gradients(exact, layer, q), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - true).norm() / true.norm()) < 0.02


@pytest.mark.usefixtures("as_there")
@pytest.mark.parametrize(("scheme", "paths"), [("separable", 1), ("separable", 4), ("row_first", 1)])
def test_a_step_of_all_chains_is_two_launches_ahead_and_four_back(scheme, paths) -> None:
    def launches(side: int) -> tuple[int, int]:
        layer = Finola(4, scheme)
        q = torch.randn(2, paths, 4, requires_grad=True)
        with Launches() as forward:
            grown = layer(q, (side, side))
        with Launches() as backward:
            grown.sum().backward()
        return forward.total, backward.total

    (ahead, back), (ahead_of_more, back_of_more) = launches(8), launches(20)
    more = 2 * 6  # steps along and across
    assert (ahead_of_more - ahead, back_of_more - back) == (2 * more, 4 * more)


class Sequence(TorchDispatchMode):
    """What is launched, in order, with all shapes, and what is copied from or to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[tuple[Any, ...]] = []
        self.copied: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in tensors if t.dim()}) > 1:
            self.copied.append(str(func))
        self.launched.append((func, *(tuple(t.shape) for t in tensors)))
        return result


@pytest.mark.parametrize("name", ["finola", "finola, paths one by one", "finola, wavefront", "masked_finola, element"])
def test_a_step_can_be_captured_into_a_graph(name: str) -> None:
    """Forward and backward launch the same whatever the values, and neither wait for the host nor take from it."""
    method, batch = prepared(name, small=True)
    steps = []
    with Accelerator() as accelerator:
        there = on_device(method, batch, "cuda")
        for seed in range(3):
            torch.manual_seed(seed)
            there["image"].copy_(torch.rand(batch["image"].shape).to("cuda"))
            for parameter in method.parameters():
                parameter.grad = None
            accelerator.waits.clear()
            with Sequence() as sequence:
                method.step(there, "train")["loss"].backward()
            steps.append(sequence)
            assert not accelerator.waits
            assert not sequence.copied
    assert steps[1].launched == steps[2].launched


# ---------------------------------------------------------------------- regional compilation


def both(layer: Finola, q: Tensor, size: tuple[int, int]) -> list[Tensor]:
    grown = layer(q, size)
    return [grown.detach(), *gradients(grown, layer, q)]


OPTIONS: list[dict[str, Any]] = [{}, {"normalize": False}, {"scheme": "row_first", "checkpoint": True}]


def assert_regional_equals_eager(options: dict[str, Any]) -> None:
    torch._dynamo.reset()  # what others compiled does not count against this one's limit
    layer, q = layer_and_vector(paths=2, **options)
    regional, _ = layer_and_vector(paths=2, compile="regional", **options)
    for size in ((8, 8), (5, 6)):
        for ours, theirs in zip(both(regional, q, size), both(layer, q, size), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_regional_compilation_follows_the_repeated_step_and_nothing_else(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    steps = tuple(torch.compile(step, backend=backend, fullgraph=True) for step in (together.ahead, together.back))
    monkeypatch.setattr(together, "compiled", lambda: steps)
    assert_regional_equals_eager(options)
    assert graphs
    for graph in graphs:
        called = [node for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
        assert len(called) < 16


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_compiled_step_is_the_eager_one(options: dict[str, Any]) -> None:
    assert_regional_equals_eager(options)


def test_regional_compilation_is_a_key_of_both_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "compiled", lambda: (together.ahead, together.back))
    for kind in (FinolaAutoencoder, MaskedFinola):
        plain, regional = (
            kind(channels=8, encoder_width=4, decoder_width=8, encoder_depth=1, compile=how)
            for how in (None, "regional")
        )
        regional.load_state_dict(plain.state_dict())
        batch = {"image": torch.rand(2, 3, 64, 64), "index": torch.arange(2)}
        torch.testing.assert_close(regional.step(batch, "val")["loss"], plain.step(batch, "val")["loss"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Finola(4, compile="all"), "compile: expected null, or regional"),
        (lambda: Finola(4, "wavefront", compile="regional"), "compile: expected.*separable"),
        (lambda: MaskedFinola(mode="block", compile="regional"), "model.compile: block-wise"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
