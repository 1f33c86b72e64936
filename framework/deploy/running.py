"""An exported file in its own runtime: what it gives back, whether that is right, and how long it takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.deploy.form import InferenceForm, Precision
from framework.deploy.loading import load_exported
from framework.deploy.worker import milliseconds
from framework.deploy.writing import need, quiet
from framework.errors import ConfigError

Run = Callable[..., np.ndarray]

#: largest difference from the method that a file may have, as a share of the largest value; int8 is measured only
ALLOWED: dict[str, float] = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}


def opened(path: Path) -> Run:
    """A file as a function of arrays; onnxruntime gets as many threads as torch has.

    Raises:
        ConfigError: the runtime refuses the file, in its own words.
    """
    if path.suffix == ".onnx":
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for every code
            raise ConfigError(
                f"export: onnxruntime refuses {path.name}: {' '.join(str(error).split())[:300]}"
            ) from error
        names = [port.name for port in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
    with quiet():
        program: Any = torch.jit.load(str(path)) if path.suffix == ".ts" else load_exported(path)

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(*map(torch.from_numpy, arrays)).numpy()

    return run


def compared(form: InferenceForm, run: Run, sizes: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    """What a file gives beside the method, on random inputs of every size.

    Returns:
        for every size: `sizes`, `largest_difference`, `share` of the largest value, and for classes `agreement`, the
        share of equal decisions.

    Raises:
        ConfigError: it does not run at that size.
    """
    rows = []
    for seed, size in enumerate(sizes, start=1):
        inputs = form.draw(size, seed)
        with torch.no_grad():
            truth = form.reference(*inputs).float().numpy()
        try:
            found = run(*(x.numpy() for x in inputs))
        except Exception as error:  # every runtime has its own
            said = " ".join(str(error).split())
            raise ConfigError(f"export: {form.name} does not run at {dict(size)}: {said[:200]}") from error
        row: dict[str, Any] = {"sizes": dict(size)}
        if found.shape != truth.shape:
            raise ConfigError(
                f"export: {form.name} gives {found.shape} at {dict(size)}, expected {truth.shape}: it kept the size it "
                "was followed at; take --format pt2 or onnx, or --no-dynamic"
            )
        row |= difference(found, truth)
        if form.classes is not None:
            row["agreement"] = float((found.argmax(1) == truth.argmax(1)).mean())
        rows.append(row)
    return rows


def difference(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`largest_difference` and its `share` of the largest value."""
    largest = float(np.abs(found - truth).max(initial=0))
    scale = float(np.abs(truth).max(initial=0))
    return {"largest_difference": largest, "share": largest / scale if scale else largest}


def check(form: InferenceForm, rows: Sequence[Mapping[str, Any]], precision: Precision, traced: bool) -> None:
    """Refuses a file that is not what the method is.

    Args:
        form: what was written.
        rows: of `compared`.
        precision: of the file.
        traced: it was followed at one size and is to hold at all of them.

    Raises:
        ConfigError: it differs by more than its precision explains, at the sizes that it was not followed at or at all.
    """
    if precision not in ALLOWED:
        return
    for row in rows:
        if not row["share"] <= ALLOWED[precision]:  # NaN too
            if traced:
                advice = "it was followed at another size, which it kept; take --format pt2 or onnx, or --no-dynamic"
            elif precision != "fp32":
                advice = f"the method needs more digits than {precision} has; take --precision fp32"
            else:
                advice = "what was written computes something else; take another --format"
            raise ConfigError(
                f"export: expected {form.name} within {ALLOWED[precision]:g} of the largest value in {precision}, got "
                f"{row['share']:.2g} at {row['sizes']}; {advice}"
            )


def speeds(form: InferenceForm, run: Run, size: Mapping[str, int]) -> dict[str, Any]:
    """Milliseconds of the method as it is (`eager_ms`) and of the file, at one size."""
    inputs = form.draw(size)
    arrays = [x.numpy() for x in inputs]

    def eager() -> Tensor:
        with torch.no_grad():
            return form.reference(*inputs)

    return {
        "sizes": dict(size),
        "threads": torch.get_num_threads(),
        "eager_ms": round(milliseconds(eager)[0], 3),
        "file_ms": round(milliseconds(lambda: run(*arrays))[0], 3),
    }
