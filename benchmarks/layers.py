"""What every layer of `framework.nn` can do in other people's torch code: the table of docs/layers.md.

    python -m benchmarks.layers --out results/layers.csv

Every cell is tried: `yes` where the result equals the layer's own at another batch and size than the one that was
followed, else what is said instead. The layers and their sizes are those of `tests/helpers/layers.py`.
"""

import argparse
import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import append_row, environment
from tests.helpers.layers import LAYERS, built

Follow = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
WRONG = "WRONG"


def sizes(x: Tensor) -> dict[int, Any]:
    """The axes that an export leaves open: batch, height and width."""
    dims = {0: torch.export.Dim("batch", min=1)}
    return dims | ({2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)} if x.ndim == 4 else {})


def exported(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """torch.export."""
    return torch.export.export(layer, (x,), dynamic_shapes=(sizes(x),)).module()(other), layer(other)


def onnx_new(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The exporter to ONNX that torch has now."""
    program = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=(sizes(x),), verbose=False)
    assert program is not None
    return run_onnx(program.model_proto.SerializeToString(), other), layer(other)


def onnx_old(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The one by tracing, which it keeps for a while (`dynamo=False`)."""
    axes = {0: "batch"} | ({2: "height", 3: "width"} if x.ndim == 4 else {})
    stream = io.BytesIO()
    torch.onnx.export(layer, (x,), stream, dynamo=False, input_names=["x"], dynamic_axes={"x": axes}, opset_version=17)  # type: ignore[arg-type]
    return run_onnx(stream.getvalue(), other), layer(other)


def run_onnx(graph: bytes, x: Tensor) -> Tensor:
    """By onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return torch.from_numpy(np.asarray(found))


def compiled(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """torch.compile without a graph break."""
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    run(x)
    return run(other), layer(other)


def traced(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """torch.jit.trace."""
    return torch.jit.trace(layer, (x,), check_trace=False)(other), layer(other)


def scripted(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """torch.jit.script."""
    return torch.jit.script(layer)(other), layer(other)


def halved(layer: nn.Module, x: Tensor, other: Tensor, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """16-bit parameters: the answer in their dtype."""
    truth = layer(other)
    found = copy.deepcopy(layer).to(dtype)(other.to(dtype))
    if found.dtype != dtype:
        raise TypeError(f"answers in {found.dtype}")
    room = 0.05 * float(truth.abs().max())
    return torch.where((found.float() - truth).abs() < room, truth, found.float()), truth


def in_bfloat16(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The same in bfloat16, within 5 % of the largest value."""
    return halved(layer, x, other, torch.bfloat16)


def mapped(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """torch.func.vmap."""
    pair = torch.stack([other, -other])
    return torch.func.vmap(layer)(pair), torch.stack([layer(other), layer(-other)])


def twice(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Second derivatives beside those of a float64 finite difference of the gradient."""
    exact, direction = copy.deepcopy(layer).double(), torch.randn(x.shape, dtype=torch.float64)

    def gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(exact(z).square().sum(), z, create_graph=True)[0]

    z = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(exact(z).square().sum(), z, create_graph=True)
    (found,) = torch.autograd.grad((slope * direction).sum(), z)
    step = 1e-6
    difference = (gradient(z + step * direction) - gradient(z - step * direction)) / (2 * step)
    return found.float(), difference.detach().float()


def channels_last(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """A network in channels-last memory."""
    network = nn.Sequential(copy.deepcopy(layer)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network(other.to(memory_format=torch.channels_last) if other.ndim == 4 else other), layer(other)


def nothing(layer: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """An empty batch."""
    return layer(other[:0]), layer(other)[:0]


HABITS: dict[str, Follow] = {
    "export": exported,
    "onnx": onnx_new,
    "onnx_by_tracing": onnx_old,
    "compile": compiled,
    "trace": traced,
    "script": scripted,
    "half": halved,
    "bfloat16": in_bfloat16,
    "vmap": mapped,
    "second_derivatives": twice,
    "channels_last": channels_last,
    "empty_batch": nothing,
}


def verdict(habit: str, name: str) -> str:
    """`yes`, `WRONG`, or the first line of what is said instead."""
    layer, x, other = built(name)
    try:
        with silent(), torch.set_grad_enabled(habit in ("second_derivatives",)):
            found, truth = HABITS[habit](layer, x, other)
    except Exception as error:  # whatever a layer or an exporter raises is its message
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "").partition(", scope:")[0]
        return f"{type(error).__name__}: {said[:120]}"
    scale = max(1.0, float(truth.abs().max()) if truth.numel() else 1.0)
    same = found.shape == truth.shape and torch.allclose(found, truth, rtol=1e-3, atol=1e-4 * scale)
    return "yes" if same else WRONG


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Exporters talk."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.unlink(missing_ok=True)
    for name in args.layers:
        row = {"layer": name, **{habit: verdict(habit, name) for habit in HABITS}}
        print(row, flush=True)
        append_row(args.out, {**row, **environment()})


if __name__ == "__main__":
    main()
