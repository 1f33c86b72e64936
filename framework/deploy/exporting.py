"""`framework.export`: every form of a method as a file, run and compared before it is given away."""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from framework import provenance
from framework.deploy import running, writing
from framework.deploy.form import Format, InferenceForm, Precision, forms_of
from framework.errors import ConfigError
from framework.outputs import refuse_taken

REPORT = "export.json"


def export(
    module: nn.Module,
    out: str | Path,
    format: Format = "pt2",
    *,
    precision: Precision = "fp32",
    dynamic: bool = True,
    sizes: Mapping[str, int] | None = None,
    example: Any = None,
    calibration: Iterable[Sequence[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Writes a method's inference forms, runs every file in its own runtime, and compares it with the method.

    The module stays as it is. Files appear when all of them are right; nothing that is there is replaced.

    Args:
        module: a method, or any module that gives back one tensor, with `example`.
        out: folder of the files and of `export.json`.
        format: `pt2` (torch.export), `onnx`, `torchscript`, or `bioimageio` for segmenters.
        precision: `fp32`, `bf16`, `fp16`, or `int8` (`onnx` only).
        dynamic: leave batch, height and width open where the form can be right at any; False fixes them.
        sizes: with `dynamic=False`, sizes by axis name (`batch`, `height`, `width`); None: small ones.
        example: input of a module without forms, or a tuple of inputs.
        calibration: for `int8`: batches of the method's inputs, from which the ranges of activations are taken.

    Returns:
        the report, as in `export.json`: for every file its bytes, inputs, output, differences and times.

    Raises:
        ConfigError: a module, format or precision that cannot be; a file that would be wrong, or is there already.
    """
    check_choice(format, precision, calibration is not None)
    folder = Path(out)
    module = copy.deepcopy(module).cpu().eval()
    report: dict[str, Any] = {
        "method": type(module).__name__,
        "format": format,
        "precision": precision,
        "dynamic": dynamic,
        "preprocessing": getattr(module, "preprocessing", None),
        **provenance.environment(),
        "files": [],
    }
    batches = [[np.asarray(array) for array in batch] for batch in calibration or []]
    with torch.random.fork_rng([]):  # a form may be built anew, which draws
        named = {file_name(form, format, precision): form for form in forms_of(module, example)}
    refuse_taken(*(folder / name for name in (*named, REPORT)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staged, torch.random.fork_rng([]):
        for name, form in named.items():
            start, compare = _sizes(form, dynamic, sizes)
            if format == "bioimageio":
                found = _package(form, Path(staged, name), report, start, compare)
            else:
                found = _export_form(form, Path(staged, name), format, precision, dynamic, start, compare, batches)
            found["bytes"] = Path(staged, name).stat().st_size
            report["files"].append({"file": name, **contract(form), **found})
        Path(staged, REPORT).write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        _put(Path(staged), folder)
    return report


def _put(staged: Path, folder: Path) -> None:
    """Moves the files to where they belong, replacing none."""
    folder.mkdir(exist_ok=True)
    for path in sorted(staged.iterdir()):
        refuse_taken(folder / path.name)
        shutil.move(path, folder / path.name)


def check_choice(format: str, precision: str, calibrated: bool) -> None:
    """Refuses words that are not known, and what no runtime has.

    Raises:
        ConfigError: says what there is.
    """
    if format not in get_args(Format):
        raise ConfigError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "int8" and format != "onnx":
        raise ConfigError(f"precision: int8 is made by onnxruntime's quantisation, so for --format onnx, not {format}")
    if precision == "int8" and not calibrated:
        raise ConfigError(
            "precision: int8 needs pictures to take the ranges of activations from: --calibration CONFIG, a "
            "configuration with the data (calibration= in Python)"
        )
    if precision == "bf16" and format == "onnx":
        raise ConfigError("precision: onnxruntime has no bf16 on the CPU, so it could not be checked; take fp16 or pt2")
    if format == "bioimageio" and precision != "fp32":
        raise ConfigError(f"precision: a bioimage.io package is written in fp32, got {precision}")


def file_name(form: InferenceForm, format: Format, precision: Precision) -> str:
    """Name of a form's file."""
    if format == "bioimageio":
        return f"{form.name}.zip"
    middle = "" if precision == "fp32" else f".{precision}"
    return f"{form.name}{middle}.{writing.SUFFIX[format]}"


def _sizes(
    form: InferenceForm, dynamic: bool, sizes: Mapping[str, int] | None
) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Sizes to export at, and to compare at."""
    start, compare = form.sizes(dynamic)
    if sizes is None:
        return start, compare
    if dynamic:
        raise ConfigError("sizes: only with --no-dynamic (dynamic=False); a dynamic file takes any")
    start = {name: axis.near(sizes.get(name, start[name])) for name, axis in form.axes().items()}
    if wrong := {name: n for name, n in sizes.items() if name not in start or start[name] != n}:
        raise ConfigError(f"sizes: {form.name} does not take {wrong}; its axes are {describe(form)}")
    return start, [start, start]


def _package(
    form: InferenceForm,
    path: Path,
    report: Mapping[str, Any],
    start: Mapping[str, int],
    compare: Sequence[Mapping[str, int]],
) -> dict[str, Any]:
    """A bioimage.io package."""
    from framework.deploy.bioimageio import write_package

    if not report["dynamic"]:
        raise ConfigError("format: a bioimageio package takes pictures of any size; leave --no-dynamic out")
    return write_package(form, path, str(report["method"]), report["preprocessing"], start, compare)


def _export_form(
    form: InferenceForm,
    path: Path,
    format: Format,
    precision: Precision,
    dynamic: bool,
    start: Mapping[str, int],
    compare: Sequence[Mapping[str, int]],
    calibration: list[list[np.ndarray]],
) -> dict[str, Any]:
    """Writes one file, runs it and compares it."""
    if reason := form.refused.get(precision):
        raise ConfigError(f"precision: {form.name} is not written in {precision}: {reason}")
    called = writing.Called(copy.deepcopy(form.module).eval(), writing.DTYPES.get(precision))
    writing.write(form, called, path, format, start, dynamic)
    if precision == "int8":
        from framework.deploy.quantization import quantise

        quantise(path, form, calibration)
    run = running.opened(path)
    rows = running.compared(form, run, compare)
    running.check(form, rows, precision, dynamic and format == "torchscript")
    return {"compared": rows, "speed": running.speeds(form, run, compare[-1])}


def contract(form: InferenceForm) -> dict[str, Any]:
    """What goes in and comes out, in plain values."""
    found: dict[str, Any] = {
        "inputs": [port.plain() for port in form.inputs],
        "output": {
            "name": form.output.name,
            "axes": [a.name for a in form.output.axes],
            "meaning": form.output.meaning,
        },
    }
    return found | ({} if form.classes is None else {"classes": list(form.classes)}) | dict(form.extra)


def describe(form: InferenceForm) -> str:
    """The axes in words."""
    words = []
    for name, axis in form.axes().items():
        rule = f"{axis.fixed} only" if axis.fixed is not None else f"from {axis.smallest}"
        words.append(f"{name} {rule}{f', multiples of {axis.multiple}' if axis.multiple > 1 else ''}")
    return "; ".join(words)
