"""Every layer out of Python: right at another batch and size, or a message; never wrong in silence."""

import pandas as pd
import pytest

from benchmarks.layers import HABITS, WRONG, verdict
from benchmarks.tables.common import RESULTS
from tests.helpers.layers import LAYERS

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_runs_in_onnxruntime_at_other_sizes(name) -> None:
    assert verdict("onnx", name) == "yes"


@pytest.mark.parametrize("habit", ["onnx_by_tracing", "script", "trace", "half", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_is_right_or_says_so(name, habit) -> None:
    assert verdict(habit, name) != WRONG


@pytest.mark.parametrize("name", LAYERS)
def test_scripting_says_what_does_work(name) -> None:
    assert verdict("script", name).startswith("ConfigError: ")
    assert "torch.export" in verdict("script", name)


def test_the_table_has_every_layer_and_nothing_wrong_in_it() -> None:
    frame = pd.read_csv(RESULTS / "layers.csv", dtype=str)
    assert list(frame["layer"]) == list(LAYERS)
    assert not (frame[list(HABITS)] == WRONG).any(axis=None)
    for habit in ("export", "onnx", "compile", "trace", "vmap", "second_derivatives", "channels_last", "empty_batch"):
        assert (frame[habit] == "yes").all(), habit
