"""What the full recipes cost: operations, bytes and hours on one and on many accelerators, without running them.

    python -m benchmarks.scale --out results/scale.csv

A training step of every recipe is traced on fake tensors, which have shapes and no values: `FlopCounterMode` counts the
operations of products and convolutions, and every operator's inputs and outputs are counted as bytes moved (as if
nothing were fused and nothing stayed in a cache: an upper bound). Hours are those of the larger of the two on the
device's data sheet, divided by the share of that limit which we expect to reach.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import append_row, environment, read_rows
from framework.commands.cli import BuildOnly
from models import MaskedFinola

IMAGENET = 1_281_167
KODAK, PIXELS = 24, 512 * 768
#: the data sheet of an H100 SXM: dense operations a second, bytes a second, bytes a second between machines
PEAK = {"32": 67e12, "bf16-mixed": 989e12}
BANDWIDTH, NETWORK = 3.35e12, 50e9
#: expected until it is measured
SHARE = 0.3


def _product(into: Any, a: Sequence[int], b: Sequence[int], **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


#: torch's counter knows products, and not those that add to what is there
IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}
DEVICES = (1, 8, 64)


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a recipe with one network.

    Args:
        words: the command line after `fit`.
        shape: of one sample's image; for coordinate networks the rows and columns of coordinates.
        samples: samples that are trained on, all epochs together.
    """

    words: tuple[str, ...]
    shape: tuple[int, ...]
    samples: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A full recipe.

    Args:
        name: of its configuration.
        parts: what is trained, one after the other.
        batch: samples a step, over all devices.
        precision: as in trainer.precision.
        apart: samples are networks of their own, and devices exchange nothing.
    """

    name: str
    parts: tuple[Part, ...]
    batch: int
    precision: str = "32"
    apart: bool = False

    @property
    def on_device(self) -> int:
        """Samples that one of eight devices holds: what is read once a step is shared by so many."""
        return self.batch if self.batch < 8 else min(256, self.batch // 8)


def _slides(epochs: int, grid: int) -> Part:
    # 30 pictures less a fifth for validation and a fifth for test
    return Part(("-c", "kmunet/slides", f"--model.grid_size={grid}"), (1, 512, 512), 18 * epochs)


RECIPES = (
    Recipe("korigins/paper", (Part(("-c", "korigins/paper"), (1, 400, 400), 140 * 50),), batch=3),
    Recipe("kmunet/slides", (_slides(50, 5), _slides(50, 10), _slides(50, 20), _slides(150, 40)), batch=2),
    Recipe(
        "levels_of_experts/paper",
        # the choice of an expert costs no products: counted on a plain SIREN of the same width
        (Part(("-c", "levels_of_experts/table1_siren"), (PIXELS, 2), KODAK * 5000),),
        batch=KODAK,
        apart=True,
    ),
    Recipe(
        "master_key/convnextv2_tiny_frozen",
        (
            Part(
                (
                    *("-c", "master_key/convnextv2_tiny_frozen"),
                    *("--model.checkpoint=null", "--model.match_checkpoint=null", "--model.filters=original"),
                ),
                (3, 224, 224),
                IMAGENET * 300,
            ),
        ),
        batch=8192,
        precision="bf16-mixed",
    ),
    Recipe("finola/paper", (Part(("-c", "finola/paper"), (3, 256, 256), IMAGENET * 100),), batch=256),
    Recipe("finola/masked_block", (Part(("-c", "finola/masked_block"), (3, 256, 256), IMAGENET * 100),), batch=256),
)


class BytesMoved(TorchDispatchMode):
    """Sums the bytes of every operator's inputs and outputs; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def built(words: Sequence[str], fake: FakeTensorMode) -> Any:
    """The configuration's model with fake parameters."""
    with unset_fake_temporarily():  # some models look at values while they are built
        model = BuildOnly(args=["fit", *words]).model
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                made: Tensor = fake.from_tensor(value.detach())
                is_parameter = isinstance(value, nn.Parameter)
                setattr(module, name, nn.Parameter(made, value.requires_grad) if is_parameter else made)
    return model


def loss_of(part: Part, batch: int, fake: FakeTensorMode) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The part's model and a function that makes a number of its outputs for `batch` samples; under fake tensors."""
    if part.words[1].startswith("levels_of_experts"):
        from models.levels_of_experts.network import LevelsOfExpertsNetwork

        network = LevelsOfExpertsNetwork([1, 1, 1, 1], [str(i) for i in range(batch)])
        rows = torch.zeros(batch, *part.shape)
        return network, lambda: network(rows, [None] * 4).sum()
    model = built(part.words, fake)
    if "--model.filters=original" in part.words:
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
                conv.weight.requires_grad_(False)
    image = torch.zeros(batch, *part.shape)
    if isinstance(model, MaskedFinola):
        return model, lambda: model.predict_all(image, [(0, 0)] * batch)[0].float().sum()
    return model, lambda: model(image).float().sum()


def count(part: Part, precision: str = "32", batch: int = 2) -> tuple[float, float, int]:
    """Operations and bytes of one sample's training step (forward and backward), and the parameters trained."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake)
        model, loss = loss_of(part, batch, fake)
        if precision == "bf16-mixed":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        operations = stack.enter_context(FlopCounterMode(display=False, custom_mapping=IN_PLACE))
        moved = stack.enter_context(BytesMoved())
        loss().backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return operations.get_total_flops() / batch, moved.total / batch, trained


def row(recipe: Recipe) -> dict[str, object]:
    """The recipe's figures."""
    counts = [count(part, recipe.precision, recipe.on_device) for part in recipe.parts]
    samples = sum(part.samples for part in recipe.parts)
    operations = sum(part.samples * c[0] for part, c in zip(recipe.parts, counts, strict=True))
    moved = sum(part.samples * c[1] for part, c in zip(recipe.parts, counts, strict=True))
    trained = counts[-1][2]
    limits = {"products": operations / PEAK[recipe.precision], "bytes": moved / BANDWIDTH}
    bound = max(limits, key=lambda name: limits[name])
    steps = math.ceil(samples / recipe.batch)
    exchanged = 0.0 if recipe.apart else 2 * 4 * trained / NETWORK * steps
    hours = {}
    for devices in DEVICES:
        used = min(devices, recipe.batch)
        exchange = exchanged if used > 1 else 0.0
        hours[f"hours_{devices}"] = f"{(limits[bound] / SHARE / used + exchange) / 3600:.3g}"
    return {
        "recipe": recipe.name,
        "samples": samples,
        "batch": recipe.batch,
        "counted_at": recipe.on_device,
        "steps": steps,
        "precision": recipe.precision,
        "parameters_trained": "" if recipe.apart else trained,
        "flops_per_sample": f"{operations / samples:.4g}",
        "bytes_per_sample": f"{moved / samples:.4g}",
        "flops": f"{operations:.4g}",
        "bytes": f"{moved:.4g}",
        "bound": bound,
        **hours,
        "share_expected": SHARE,
        "devices_used_at_most": recipe.batch,
    }


def main() -> None:
    """Writes the rows that the CSV does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of recipes")
    args = parser.parse_args()
    where = {**environment(), "hardware": "H100 SXM, from its data sheet; not measured"}
    where["command"] = f"python -m benchmarks.scale --out {args.out}"  # whichever rows are asked for, they are the same
    done = {r["recipe"] for r in read_rows(args.out)}
    for recipe in RECIPES:
        if recipe.name not in done and (args.only is None or recipe.name in args.only):
            figures = row(recipe)
            append_row(args.out, {**figures, **where})
            print(figures["recipe"], figures["flops"], figures["bytes"], *(figures[f"hours_{n}"] for n in DEVICES))


if __name__ == "__main__":
    main()
