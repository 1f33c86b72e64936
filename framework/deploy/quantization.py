"""int8 by onnxruntime's own quantisation: weights per output channel, activations by ranges seen on real pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.deploy.form import InferenceForm
from framework.deploy.writing import need, quiet
from framework.errors import ConfigError

#: what becomes int8; everything else, the splines' tables among it, stays in float32
PRODUCTS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


class _Batches:
    """What onnxruntime asks for inputs: one batch after the other, then None."""

    def __init__(self, form: InferenceForm, batches: Sequence[Sequence[np.ndarray]]) -> None:
        self._names = [port.name for port in form.inputs]
        self._batches = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch by input name."""
        batch = next(self._batches, None)
        return None if batch is None else dict(zip(self._names, batch, strict=True))


def quantise(path: Path, form: InferenceForm, batches: Sequence[Sequence[np.ndarray]]) -> None:
    """Replaces an ONNX file in float32 by its int8 form (QDQ, weights of 7 bits so that no processor saturates).

    Args:
        path: the file, rewritten.
        form: of the file; the products that it names in `apart` stay in float32.
        batches: inputs in the order of the form's.

    Raises:
        ConfigError: a form without classes, or no picture to look at.
    """
    if form.classes is None:
        raise ConfigError(
            f"precision: int8 is for segmenters and classifiers; {form.name} gives numbers, and 8 bits keep too little"
        )
    if not batches:
        raise ConfigError("calibration: the data has no picture in its validation split; give a larger one")
    onnx, tools = need("onnx"), need("onnxruntime.quantization")
    graph = onnx.load(str(path))
    products = [node.name for node in graph.graph.node if node.op_type in PRODUCTS]
    apart = [products[place] for place in form.apart]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # advice for other devices
    try:
        with quiet():
            tools.quantize_static(
                graph,
                str(path),
                _reader(tools, form, batches),
                op_types_to_quantize=PRODUCTS,
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                nodes_to_exclude=apart,
            )
    finally:
        root.setLevel(level)


def _reader(tools: Any, form: InferenceForm, batches: Sequence[Sequence[np.ndarray]]) -> Any:
    return type("Batches", (_Batches, tools.CalibrationDataReader), {})(form, batches)
