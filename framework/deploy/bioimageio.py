"""A segmenter as a bioimage.io package: ONNX weights, how pictures are normalised, and test inputs and outputs."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.deploy import running, writing
from framework.deploy.form import InferenceForm
from framework.deploy.writing import need
from framework.errors import ConfigError

PAGE = """# {name}

{meaning}. Output: logits of {classes}; the largest is a pixel's class.

## Validation

The package's own test compares the network with `test_output.npy` on `test_input.npy`. On data of your own, compare the
classes with a mask, e.g. by Dice per class.
"""


def write_package(
    form: InferenceForm,
    path: Path,
    name: str,
    preprocessing: Mapping[str, Any] | None,
    example: Mapping[str, int],
    sizes: Sequence[Mapping[str, int]],
) -> dict[str, Any]:
    """Writes the package and has bioimageio.core test it and predict with it.

    Args:
        form: of a segmenter.
        path: of the package, a `.zip`.
        name: of the method.
        preprocessing: the method's input contract; the package normalises raw pictures as it says.
        example: sizes that the network is followed at.
        sizes: that predictions are compared at.

    Returns:
        `compared`, as of every other file, and the `status` of bioimageio.core's test.

    Raises:
        ConfigError: a form that gives no map of classes, pictures that a package cannot make of raw ones, or a package
            that fails its test.
    """
    if form.classes is None or len(form.inputs) != 1 or len(form.output.axes) != 4:
        raise ConfigError(f"format: bioimageio packages are for segmenters; {form.name} gives no map of classes")
    _refuse_other_reading(preprocessing or {}, form.inputs[0].axes[1].fixed or 1)
    core, spec = need("bioimageio.core"), need("bioimageio.spec")
    with tempfile.TemporaryDirectory() as folder, writing.quiet():
        weights = Path(folder, f"{form.name}.onnx")
        writing.write(form, writing.Called(form.module), weights, "onnx", example, dynamic=True)
        description = _description(form, weights, name, preprocessing or {}, example)
        spec.save_bioimageio_package(description, output_path=path)
        summary = core.test_model(path)
        if summary.status != "passed":
            raise ConfigError(f"export: bioimageio.core's test of {form.name} gives {summary.status}:\n{summary}"[:600])
        pipeline = core.create_prediction_pipeline(core.load_model_description(path))
    rows = running.compared(form, lambda x: _predicted(core, pipeline, x), sizes)
    running.check(form, rows, "fp32", traced=False)
    return {"compared": rows, "status": summary.status}


def _predicted(core: Any, pipeline: Any, pictures: np.ndarray) -> np.ndarray:
    """What the network in a package gives for pictures that are normalised already."""
    found = core.predict(model=pipeline, inputs=pictures, skip_preprocessing=True)
    return np.asarray(next(iter(found.members.values())).data)


def _description(
    form: InferenceForm, weights: Path, name: str, preprocessing: Mapping[str, Any], example: Mapping[str, int]
) -> Any:
    """What the package says of itself; test tensors and page are written beside the weights."""
    v0_5 = need("bioimageio.spec.model.v0_5")
    opset = need("onnx").load(str(weights), load_external_data=False).opset_import[0].version
    meaning = form.inputs[0].meaning.capitalize()
    page = weights.with_name("README.md")
    classes = ", ".join(form.classes or [])
    page.write_text(PAGE.format(name=name, meaning=meaning, classes=classes), encoding="utf-8")
    picture, normalised, steps = _normalised(v0_5, form.draw({**example, "batch": 1})[0].numpy(), preprocessing)
    with torch.no_grad():
        logits = form.module(torch.from_numpy(normalised)).numpy()
    for stem, array in (("test_input", picture), ("test_output", logits)):
        np.save(weights.with_name(f"{stem}.npy"), array.astype(np.float32))
    image, output = _tensors(v0_5, form, weights.parent, steps)
    return v0_5.ModelDescr(
        name=f"Explicit Vision {name}",
        description=f"{name}, a segmenter trained with Explicit Vision. {meaning}.",
        authors=[v0_5.Author(name="The user of Explicit Vision who trained it")],
        documentation=v0_5.FileDescr(source=page),
        license="Apache-2.0",
        inputs=[image],
        outputs=[output],
        weights=v0_5.WeightsDescr(onnx=v0_5.OnnxWeightsDescr(source=weights, opset_version=opset)),
    )


def _tensors(v0_5: Any, form: InferenceForm, folder: Path, steps: Sequence[Any]) -> tuple[Any, Any]:
    """Input and output as the package describes them."""
    axes = form.inputs[0].axes
    channels = v0_5.ChannelAxis(channel_names=[f"channel{i}" for i in range(axes[1].fixed or 1)])
    classes = v0_5.ChannelAxis(channel_names=[f"class_{word}" for word in form.classes or []])
    space, same = [], []
    for letter, axis in zip("yx", axes[2:], strict=True):
        size = v0_5.ParameterizedSize(min=axis.smallest, step=axis.multiple)
        space.append(v0_5.SpaceInputAxis(id=letter, size=size))
        size = v0_5.SizeReference(tensor_id="image", axis_id=letter)
        same.append(v0_5.SpaceOutputAxis(id=letter, size=size))
    image = v0_5.InputTensorDescr(
        id="image",
        axes=[v0_5.BatchAxis(), channels, *space],
        test_tensor=v0_5.FileDescr(source=folder / "test_input.npy"),
        data=v0_5.IntervalOrRatioDataDescr(type="float32"),
        preprocessing=list(steps),
    )
    logits = v0_5.OutputTensorDescr(
        id="logits",
        axes=[v0_5.BatchAxis(), classes, *same],
        test_tensor=v0_5.FileDescr(source=folder / "test_output.npy"),
    )
    return image, logits


def _refuse_other_reading(preprocessing: Mapping[str, Any], channels: int) -> None:
    """Raises ConfigError for what a network's pictures go through that a package's own steps cannot do."""
    how = preprocessing.get("normalize", "none")
    mean, std = (preprocessing.get(key) or [] for key in ("mean", "std"))
    if (factor := preprocessing.get("downscale", 1)) != 1:
        raise ConfigError(
            f"format: expected data.downscale: 1, since a bioimageio package cannot make pictures smaller, got "
            f"{factor}; take onnx, and make them smaller first"
        )
    if how not in ("zscore", "percentile", "depth", "dataset", "none"):
        raise ConfigError(f"format: expected a data.normalize of ours for a bioimageio package, got {how!r}; take onnx")
    if how == "depth" and not _bits(preprocessing):
        raise ConfigError(
            "format: expected training files of one known depth for data.normalize: depth in a bioimageio package, got "
            "a checkpoint that knows none; train again on files of one depth, or take onnx"
        )
    if how == "dataset" and not len(mean) == len(std) == channels:
        raise ConfigError(
            f"format: expected the mean and deviation of {channels} channels for data.normalize: dataset in a "
            f"bioimageio package, got {len(mean)} and {len(std)} in the checkpoint; train again, or take onnx"
        )


def _bits(preprocessing: Mapping[str, Any]) -> int:
    """Bits of the training files' numbers; 0 where they are not known."""
    return int(preprocessing.get("bits_of_files") or preprocessing.get("bit_depth") or 0)


def _normalised(
    v0_5: Any, drawn: np.ndarray, preprocessing: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """A raw picture, the picture as the network takes it, and the package's own steps from one to the other.

    Args:
        v0_5: of bioimageio.spec.
        drawn: (1, C, H, W) random numbers in the network's units.
        preprocessing: the method's input contract.
    """
    how = preprocessing.get("normalize", "none")
    axes, over = ["y", "x"], (2, 3)
    if how == "zscore":
        step = v0_5.ZeroMeanUnitVarianceDescr(kwargs=v0_5.ZeroMeanUnitVarianceKwargs(axes=axes, eps=1e-6))
        made = (drawn - drawn.mean(over, keepdims=True)) / (drawn.std(over, keepdims=True) + 1e-6)
        return drawn, made.astype(np.float32), [step]
    if how == "percentile":
        kwargs = v0_5.ScaleRangeKwargs(axes=axes, min_percentile=0.1, max_percentile=99.9, eps=1e-6)
        low, high = np.percentile(drawn, [0.1, 99.9], axis=over, keepdims=True)
        made = (drawn - low) / (high - low + 1e-6)
        return drawn, made.astype(np.float32), [v0_5.ScaleRangeDescr(kwargs=kwargs)]
    if how == "depth":
        most = 2 ** _bits(preprocessing) - 1
        raw = np.rint(drawn % 1 * most).astype(np.float32)  # whole numbers of all the depth
        return raw, raw / np.float32(most), [v0_5.ScaleLinearDescr(kwargs=v0_5.ScaleLinearKwargs(gain=1 / most))]
    if how == "dataset":
        mean, std = [float(m) for m in preprocessing["mean"]], [max(float(s), 1e-6) for s in preprocessing["std"]]
        given = v0_5.FixedZeroMeanUnitVarianceAlongAxisKwargs(mean=mean, std=std, axis="channel")
        m, s = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
        raw = (drawn * s + m).astype(np.float32)
        return raw, ((raw - m) / s).astype(np.float32), [v0_5.FixedZeroMeanUnitVarianceDescr(kwargs=given)]
    return drawn, drawn, []
