"""What leaves the trainer: a plain module, and what goes in and comes out of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.protocols import HasInferenceForms

Format = Literal["pt2", "onnx", "torchscript", "bioimageio"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class Axis:
    """One axis of an input.

    Attributes:
        name: `batch`, `height`, ...; axes of one name have one size.
        smallest: size that the module takes.
        multiple: sizes must be multiples of this.
        fixed: the only size that it takes; None: any from `smallest` on.
    """

    name: str
    smallest: int = 1
    multiple: int = 1
    fixed: int | None = None

    def near(self, size: int) -> int:
        """The nearest size from `size` on that the module takes."""
        if self.fixed is not None:
            return self.fixed
        return self.multiple * math.ceil(max(size, self.smallest) / self.multiple)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        if self.fixed is not None:
            return {"name": self.name, "size": self.fixed}
        return {"name": self.name, "smallest": self.smallest, "multiple_of": self.multiple}


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: as the file calls it.
        axes: in order.
        low: smallest value that makes sense.
        high: largest; what is compared is drawn from between.
        meaning: unit and normalisation in words.
        whole: int64, from `low` to `high` - 1; else floating point.
    """

    name: str
    axes: tuple[Axis, ...]
    low: float
    high: float
    meaning: str
    whole: bool = False

    def draw(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """Random values of these sizes by axis name."""
        shape = [axis.near(sizes.get(axis.name, axis.smallest)) for axis in self.axes]
        if self.whole:
            return torch.randint(int(self.low), int(self.high), shape, generator=generator)
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "axes": [axis.plain() for axis in self.axes],
            "dtype": "int64" if self.whole else "float32",
            "range": [self.low, self.high],
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class InferenceForm:
    """A part of a method as a plain module without anything that only training needs.

    Attributes:
        name: of its file.
        module: in evaluation mode, one output; it shares no memory with the method.
        inputs: in the order of its arguments.
        output: what it gives back; its axes say the names only.
        reference: what it must equal, called with the same arguments; usually the method.
        classes: the output's channel axis holds logits of classes: their names, or their numbers.
        refused: precisions that it cannot have, and why.
        apart: products (convolutions, linear layers) that `int8` leaves in float32, by their place from the input on,
            negative from the output on.
        extra: further plain values for the report.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    output: Port
    reference: Callable[..., Tensor]
    classes: Sequence[str] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    apart: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, sizes: Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of these sizes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(port.draw(sizes, generator) for port in self.inputs)

    def axes(self) -> dict[str, Axis]:
        """Every axis of the inputs by name."""
        return {axis.name: axis for port in self.inputs for axis in port.axes}

    def sizes(self, dynamic: bool = True) -> tuple[dict[str, int], list[dict[str, int]]]:
        """Sizes to export at, and those to compare at: two of every axis that varies, odd ones where they may be."""
        axes = self.axes()
        example, others = {}, [{}, {}]  # type: ignore[var-annotated]
        for place, (name, axis) in enumerate(axes.items()):
            if name == "batch":
                sizes = (2, 1, 3)
            else:
                # sides near enough to the smallest to be quick, and each its own
                start = 2 * max(axis.smallest, 8) + 4 * place
                sizes = (start, start + 5, start + 13)
            example[name] = axis.near(sizes[0])
            for other, size in zip(others, sizes[1:], strict=True):
                other[name] = axis.near(size) if dynamic else example[name]
        return example, others if dynamic else [example, example]


def forms_of(module: nn.Module, example: Any = None) -> list[InferenceForm]:
    """The forms of a method, or a module with an example of its inputs as one form.

    Args:
        module: with `inference_forms()`, or any module that gives back one tensor.
        example: its input (batch first), or a tuple of them, where it has no forms of its own. Of four axes the last
            two are height and width, any from half the example's on; of others the first is the batch, the rest fixed.

    Raises:
        ConfigError: neither.
    """
    if example is None:
        if not isinstance(module, HasInferenceForms):
            raise ConfigError(
                f"export: {type(module).__name__} has no inference_forms(); add it (docs/deploy.md), or give "
                "example=, an input or a tuple of them"
            )
        return list(module.inference_forms())
    inputs = example if isinstance(example, tuple) else (example,)
    ports = tuple(_port(f"input_{i}" if i else "input", tensor) for i, tensor in enumerate(inputs))
    output = Port("output", (Axis("batch"),), -math.inf, math.inf, "what the module gives back")
    return [InferenceForm("module", module, ports, output, module)]


def _port(name: str, tensor: Tensor) -> Port:
    last = len(tensor.shape) - 2 if tensor.ndim == 4 else tensor.ndim
    axes = tuple(
        Axis("batch")
        if i == 0
        else Axis(("height", "width")[i - last], max(2, n // 2))
        if i >= last
        else Axis(f"{name}_{i}", fixed=n)
        for i, n in enumerate(tensor.shape)
    )
    whole = not tensor.is_floating_point()
    low, high = (float(tensor.min()), float(tensor.max()) + whole) if tensor.numel() else (0.0, 1.0)
    return Port(name, axes, low, high, "as the example", whole)
