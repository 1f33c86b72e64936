"""`framework bench`: a row for every form, measured in a process of its own, and the picture of them."""

import pytest

import framework
from framework.commands.bench import COLUMNS, kinds_of, measure
from framework.errors import ConfigError
from framework.figures import deployment
from tests.deploy.test_export import OLD

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_every_form_is_measured_or_left_out_with_its_reason() -> None:
    said: list[str] = []
    module = framework.load(OLD / "korigins" / "last.ckpt")
    kinds = (("onnx", "fp32"), ("onnx", "fp16"))
    rows = list(measure(module, None, kinds=kinds, batch=2, size=(24, 24), seconds=0.05, say=said.append))
    assert [(row["format"], row["precision"]) for row in rows] == [("eager", "fp32"), ("onnx", "fp32")]
    assert "65504" in said[0]
    eager, file = rows
    assert set(COLUMNS) <= set(file)
    assert all(float(row[key]) > 0 for row in rows for key in ("latency_ms", "cpu_ms", "per_second"))
    assert 0 < float(file["memory_mib"]) < 1000
    assert float(file["bytes"]) > 1000
    assert float(file["share"]) < 1e-5
    assert eager["score"] == ""
    figure = deployment(rows)
    assert [axis.get_xlabel() for axis in figure.axes] == ["one sample, processors' ms", "bytes of the file"]


def test_a_form_that_there_is_not_is_named() -> None:
    assert kinds_of(["onnx:fp32"]) == [("onnx", "fp32")]
    with pytest.raises(ConfigError, match="there are pt2:fp32"):
        kinds_of(["onnx:fp64"])
