"""FINOLA's map in every form beside its bare products: forward and backward, 64 x 64 from one vector an image."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.device.measure import DTYPES, Table
from benchmarks.finola import bare_products, plain_batched
from framework.nn import Finola


def rows(table: Table, smoke: bool) -> None:
    """Both schemes, eager, with the repeated step compiled, as a captured graph, and all compiled, for every C."""
    batch, side = (2, 8) if smoke else (32, 64)
    for channels in (8,) if smoke else (128, 256, 512, 1024, 2048):
        for dtype in ("fp32", "bf16"):
            weight = torch.randn(4, channels, channels, device=table.device) * 0.3 / channels**0.5
            factor = weight.to(DTYPES[dtype])
            case = f"C = {channels}, batch {batch}, {side} x {side}"
            # along the axes: side / 2 steps of 4 chains; across them as many of 4 x side chains; both passes 3 x that
            operations = 3 * 2 * (side // 2) * 4 * batch * (1 + side) * channels**2
            least = 3 * batch * side**2 * channels * 4
            if dtype == "fp32":
                bare = bare_products(factor, batch, side)
                table.add(bare, operations / 3, least / 3, dtype, case=case, form="bare products, forward")
            for form, step in forms(table, weight, batch, side, dtype, smoke).items():
                table.add(step, operations, least, dtype, case=case, form=form)


def forms(
    table: Table, weight: Tensor, batch: int, side: int, dtype: str, smoke: bool
) -> dict[str, Callable[[], object]]:
    """Steps by name."""
    channels = weight.shape[-1]
    q = torch.randn(batch, channels, device=table.device, requires_grad=True)
    g = torch.randn(batch, channels, side, side, device=table.device).contiguous(memory_format=torch.channels_last)

    def both(grow: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def step() -> None:
            with torch.autocast(table.device.type, torch.bfloat16, enabled=dtype != "fp32"):
                y = grow(q)
            y.backward(g)

        return step

    made: dict[str, Callable[[], object]] = {}
    layers = {"separable": Finola(channels), "wavefront": Finola(channels, "wavefront")}
    if not smoke:  # a compiler takes longer than the rest of the smoke test
        layers["separable, regional"] = Finola(channels, compile="regional")
    for name, layer in layers.items():
        step = both(functools.partial(layer.to(table.device), size=(side, side)))
        made[name] = step
        if table.device.type == "cuda":
            made[f"{name}, graph"] = captured(step)
    if not smoke and dtype == "fp32" and channels <= 512:
        learned = weight.clone().requires_grad_()
        made["separable, plain autograd, compiled"] = both(plain_batched(learned, side, compiled=True))
    return made


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a replayed CUDA graph, captured at the first call."""
    graph: list[torch.cuda.CUDAGraph] = []

    def replay() -> None:
        if not graph:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            made = torch.cuda.CUDAGraph()
            with torch.cuda.graph(made):
                step()
            graph.append(made)
        graph[0].replay()

    return replay
