"""One form as one file: a torch program, an ONNX graph, or a TorchScript trace."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.deploy.form import Axis, Format, InferenceForm
from framework.errors import ConfigError

SUFFIX: dict[Format, str] = {"pt2": "pt2", "onnx": "onnx", "torchscript": "ts"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
EXTRA = "it comes with the extra `export`: pip install 'explicit-vision[export]'"

#: what torch.export raises for a module that looks at a size
_NOT_FOR_ALL = (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.ConstraintViolationError)


class Called(nn.Module):
    """A form's module as a file holds it: float32 in and out, parameters of 16 bits or 32 inside.

    Args:
        module: of the form.
        dtype: that its parameters are to have; None: as they are.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.module = module if dtype is None else module.to(dtype)
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """The form's inputs -> its output, floating point as float32."""
        if self.dtype is not None:
            inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
        return self.module(*inputs).float()


def write(
    form: InferenceForm, called: nn.Module, path: Path, kind: Format, example: Mapping[str, int], dynamic: bool
) -> None:
    """Writes the file.

    Args:
        form: what goes in and comes out.
        called: its module, in its precision.
        path: of the file.
        kind: `pt2`, `onnx` or `torchscript`.
        example: sizes that it is followed at.
        dynamic: leave every axis that has no fixed size open; else all sizes are those of the example.

    Raises:
        ConfigError: the module holds at the example's sizes only, or cannot be followed.
    """
    inputs = form.draw(example)
    with torch.no_grad(), quiet():
        if kind == "torchscript":
            traced = torch.jit.trace(called, inputs, check_trace=False)
            torch.jit.save(traced, str(path))
            return
        program = program_of(form, called, inputs, dynamic)
        if kind == "pt2":
            program._example_inputs = None  # nothing to unpickle
            for graph_module in program.graph_module.modules():
                for node in getattr(graph_module, "graph", torch.fx.Graph()).nodes:
                    node.meta.pop("stack_trace", None)  # paths of this machine
            torch.export.save(program, path)
            return
        need("onnx")
        need("onnxscript")
        graph = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[port.name for port in form.inputs],
            output_names=[form.output.name],
        )
        assert graph is not None
        graph.save(str(path))


def program_of(
    form: InferenceForm, called: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool
) -> torch.export.ExportedProgram:
    """The module followed by torch.export.

    Raises:
        ConfigError: it holds at the example's sizes only, or cannot be followed.
    """
    dims = {name: _dim(axis) for name, axis in form.axes().items()}
    shapes: Any = None
    found = {
        a.name: (a, n) for p, x in zip(form.inputs, inputs, strict=True) for a, n in zip(p.axes, x.shape, strict=True)
    }
    if dynamic:
        shapes = (tuple({i: dims[axis.name] for i, axis in enumerate(port.axes)} for port in form.inputs),)
    try:
        return torch.export.export(called, inputs, dynamic_shapes=shapes)
    except _NOT_FOR_ALL as error:
        # what the exporter could not prove for all sizes it writes into the program as checks, which are tried here
        try:
            deferred: Any = torch.export.export(
                called, inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
            )
            run = deferred.module()
            for more in range(1, 9):
                run(*form.draw({name: axis.near(inputs_size + more) for name, (axis, inputs_size) in found.items()}))
        except (*_NOT_FOR_ALL, RuntimeError, AssertionError) as second:
            raise _refused(form, error) from second
        return deferred


def _refused(form: InferenceForm, error: Exception) -> ConfigError:
    lines = [line.strip(" -") for line in str(error).splitlines() if "L[" in line or "specialized" in line]
    return ConfigError(
        f"export: {form.name} cannot be right at other sizes than it was followed at "
        f"({'; '.join(lines[:2]) or str(error).splitlines()[0]}); fix them with --no-dynamic (dynamic=False)"
    )


def _dim(axis: Axis) -> Any:
    if axis.fixed is not None:
        return None
    units = -(-axis.smallest // axis.multiple)
    if axis.multiple == 1:
        return torch.export.Dim(axis.name, min=units)
    return axis.multiple * torch.export.Dim(f"{axis.name}_units", min=units)


def need(name: str) -> Any:
    """Imports a package of the extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"export: there is no {error.name} here; {EXTRA}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report to the screen and warn of what is checked here afterwards: the file's own results."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
