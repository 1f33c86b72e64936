"""Spline layers in their forms for inference: time, bytes, error and bound, and the Dice of a trained network.

    framework fit -c kmunet/dsb2018 -c kmunet/overlays/reduced --data.root DIR --model.optimizer.init_args.lr 0.01
    python -m benchmarks.spline_forms --ckpt_path last --data DIR --out results/spline_forms.csv

Times are of one layer's forward pass on one thread: batch 4, 32 -> 32 channels, 64 x 64, K = 3, G = 5, inputs channels
last, beside a plain convolution of as many channels, all forms by turns in one run; the least processor time of each.
Bounds, errors and Dice are of the network that the command above trains: the largest bound and error of a layer's
output over all layers, on four batches of training pictures the forms have not seen; the Dice of the test pictures.
"""

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import append_row, environment
from framework.main import main as framework
from framework.nn import KANConv2d, form_errors, spline_form, spline_layers
from framework.nn.splines.forms import FormKind, SplineForm
from framework.nn.splines.int8 import Int8Conv

BATCHES = 4


class Form(NamedTuple):
    """A row of the table."""

    kind: FormKind
    rank: int | None = None
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.kind + (f":{self.rank}" if self.rank else "")


FORMS = [
    Form("table"),
    *(Form("low_rank", rank) for rank in (1, 2, 3, 4)),
    Form("low_rank", 2, torch.bfloat16),
    Form("int8"),
    *(Form("low_rank_int8", rank) for rank in (1, 2, 3, 4)),
]


def held(module: nn.Module) -> int:
    """Bytes that a forward pass reads beside its input."""
    if isinstance(module, SplineForm):
        return module.bytes_held()
    return sum(t.numel() * t.element_size() for t in module.parameters())


def byte_kernels(channels: int) -> dict[Form | str, Callable[[], Any]]:
    """One convolution of bytes, 3 x 3 to 32 channels, by what the installed libraries have for it."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
    x = torch.randint(0, 256, (4, channels, 64, 64), dtype=torch.uint8).to(memory_format=torch.channels_last)
    ours = Int8Conv(layer, 1 / 255, 0)
    eager = torch.ao.nn.quantized.Conv2d(channels, 32, 3, padding=1, bias=False)
    steps, zeros = torch.full((32,), 0.01, dtype=torch.float64), torch.zeros(32, dtype=torch.int64)
    eager.set_weight_bias(torch.quantize_per_channel(layer.weight.detach(), steps, zeros, 0, torch.qint8), None)
    quantised = torch._make_per_tensor_quantized_tensor(x, 1 / 255, 0)
    constants = [
        numpy_helper.from_array(np.asarray(value, dtype), name)
        for name, value, dtype in (
            ("xs", 1 / 255, np.float32), ("xz", 0, np.uint8), ("w", ours.weight.numpy(), np.int8),
            ("ws", steps.numpy(), np.float32), ("wz", zeros.numpy(), np.int8), ("ys", 0.1, np.float32),
            ("yz", 128, np.uint8),
        )
    ]  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], pads=[1, 1, 1, 1])
    seen, said = (
        helper.make_tensor_value_info(k, TensorProto.UINT8, [4, c, 64, 64]) for k, c in (("x", channels), ("y", 32))
    )
    graph = helper.make_graph([node], "conv", [seen], [said], constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    return {
        f"{channels} channels of bytes: oneDNN": lambda: ours(x),
        f"{channels} channels of bytes: torch.ao": lambda: eager(quantised),
        f"{channels} channels of bytes: onnxruntime": lambda: session.run(None, {"x": array}),
    }


@torch.inference_mode()
def times(forms: list[Form], seconds: float) -> dict[Form | str, tuple[float, int]]:
    """Least processor milliseconds of a forward pass, and bytes held, of the plain, the exact layer and all forms."""
    torch.manual_seed(0)
    x = torch.randn(4, 32, 64, 64).to(memory_format=torch.channels_last)
    exact = KANConv2d(32, 32, 3, padding=1).eval()
    plain = nn.Conv2d(32, 32, 3, padding=1, bias=False).eval()
    made: dict[Form | str, tuple[nn.Module, Tensor]] = {
        "convolution": (plain, x.contiguous()),
        "convolution, channels last": (plain.to(memory_format=torch.channels_last), x),
        "exact": (exact, x),
    }
    for form in forms:
        made[form] = (spline_form(exact.to(form.dtype), form.kind, rank=form.rank), x.to(form.dtype))
        exact.to(torch.float32)
    calls: dict[Form | str, Callable[[], Any]] = {
        name: functools.partial(module, values) for name, (module, values) in made.items()
    }
    for channels in (64, 256):
        calls.update(byte_kernels(channels))
    least = dict.fromkeys(calls, float("inf"))
    begun = time.perf_counter()
    for turn in itertools.count():
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn > 1:
                least[name] = min(least[name], time.process_time() - start)
        if turn > 10 and time.perf_counter() - begun > seconds:
            break
    least["convolution"] = min(least["convolution"], least.pop("convolution, channels last"))
    return {name: (1000 * value, held(made[name][0]) if name in made else 0) for name, value in least.items()}


def trained(
    checkpoint: str, data: str, overlays: Sequence[str] = ("reduced",)
) -> tuple[nn.Module, list[Tensor], list[dict[str, Tensor]], Callable[[], Any]]:
    """The trained network, pictures to calibrate and to measure errors with, the test batches, and fresh metrics."""
    names = ["kmunet/dsb2018", *(f"kmunet/overlays/{name}" for name in overlays)]
    config = [*(word for name in names for word in ("-c", name)), "--data.root", data]
    cli = framework(["test", *config, "--ckpt_path", checkpoint, "--trainer.enable_progress_bar=false"])
    module, source = cli.model, cli.datamodule
    source.setup("fit")
    pictures = [batch["image"] for batch in itertools.islice(source.train_dataloader(), 2 * BATCHES)]
    return module.network.eval(), pictures, list(source.test_dataloader()), lambda: module.configure_metrics("test")


@torch.inference_mode()
def dice(network: nn.Module, batches: list[dict[str, Tensor]], metrics: Any) -> float:
    """Foreground Dice over all batches."""
    dtype = next(network.parameters()).dtype
    for batch in batches:
        metrics.update(network(batch["image"].to(dtype)).float().argmax(1), batch["mask"])
    return float(metrics.compute()["dice"])


def main() -> None:
    """Measures everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/spline_forms.csv")
    parser.add_argument("--ckpt_path", default="last", help="of the network trained as above")
    parser.add_argument("--data", default="data/dsb2018_nuclei", help="folder of the nuclei")
    parser.add_argument("--forms", nargs="*", help="kind, or kind:rank; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, at least ten turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [f for f in FORMS if args.forms is None or f.name in args.forms]
    measured = times(chosen, args.seconds)
    network, pictures, batches, metrics = trained(args.ckpt_path, args.data)
    seen, unseen = pictures[:BATCHES], pictures[BATCHES:]
    before = dice(network, batches, metrics())
    Path(args.out).unlink(missing_ok=True)
    for name, (milliseconds, size) in measured.items():
        row: dict[str, object] = {
            "form": name if isinstance(name, str) else name.kind,
            "rank": "" if isinstance(name, str) else name.rank or "",
            "dtype": "float32" if isinstance(name, str) else str(name.dtype).removeprefix("torch."),
            "cpu_ms": round(milliseconds, 2),
            "ratio_to_conv": round(milliseconds / measured["convolution"][0], 2),
            "kib": round(size / 1024, 1) if size else "",
        }
        row |= dict.fromkeys(("bound", "largest_error", "relative_error"), "") | {"dice": "", "dice_change": ""}
        if name == "exact":
            row |= {"dice": round(before, 4)}
        if isinstance(name, Form):
            cast = copy.deepcopy(network).to(name.dtype)
            form = spline_form(cast, name.kind, rank=name.rank, data=[x.to(name.dtype) for x in seen])
            errors = form_errors(cast, form, [x.to(name.dtype) for x in unseen]).values()
            said = dice(form, batches, metrics())
            row |= {
                "bound": f"{max(e.bound for e in errors):.3g}",
                "largest_error": f"{max(e.largest for e in errors):.3g}",
                "relative_error": f"{max(e.relative for e in errors):.3g}",
                "dice": round(said, 4),
                "dice_change": round(said - before, 4),
            }
        append_row(Path(args.out), {**row, **environment()})
        print(row, flush=True)
    print(f"{len(spline_layers(network))} spline layers, {len(batches)} test batches")


if __name__ == "__main__":
    main()
