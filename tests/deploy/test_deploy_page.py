"""docs/deploy.md is run as it is written, on a network of a second."""

import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
FIRST = PAGE.partition("## bioimage.io")[0]


def play(text: str, run: Any, tiny: list[str], found: dict[str, Any]) -> None:
    """Runs the blocks of a part of the page in order."""
    for language, block in re.findall(r"```(python)?\n(.*?)```", text, re.S):
        if language:
            exec(block, found)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)[1:]
            small = [*tiny[2:], "--trainer.max_epochs=1"] if words[0] == "fit" else []
            if words[0] == "bench":
                small = ["--size", "24", "24", "--batch", "2", "--seconds", "0.05"]
            run(*words, *small)


def test_the_page_runs_as_it_is_written(run, tiny) -> None:
    found: dict[str, Any] = {}
    play(FIRST, run, tiny, found)
    assert found["classes"].shape == (1, 37, 53)
    assert sorted(p.name for p in Path("runs/squares/version_0/export").iterdir()) == ["onnx", "pt2"]


@pytest.mark.slow
def test_the_rest_of_the_page_runs_as_it_is_written(run, tiny) -> None:
    pytest.importorskip("bioimageio.core", reason="the extra `export` is not installed")
    found: dict[str, Any] = {}
    play(PAGE, run, tiny, found)
    table = pd.read_csv("runs/squares/version_0/export/bench/bench.csv", keep_default_na=False)
    assert list(table["precision"]) == ["fp32", "fp32", "int8"]
    assert (table["score"].astype(float) >= 0).all()
    assert Path("runs/squares/version_0/export/bench/bench.png").is_file()
