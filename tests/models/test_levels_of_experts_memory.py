"""Memory of Levels-of-Experts: the formula against measured allocations, and what `rows_at_once: auto` makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from framework.errors import ConfigError
from framework.nn import coordinate_grid, nested_sort, tile_index
from models.levels_of_experts import memory
from models.levels_of_experts.memory import bytes_of_a_row, rows_that_fit, step_bytes
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from tests.models.loe_tools import fit, make_model, write_pictures

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def peak(network: LevelsOfExpertsNetwork, x: torch.Tensor, runs: Any) -> int:
    """Bytes allocated at the highest point of forward and backward, above the start."""
    target = torch.zeros(*x.shape[:2], 3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        (network(x, runs) - target).square().mean().backward()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now, highest = 0, 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize("depth", [2, 4])
def test_the_formula_is_the_measured_peak(depth: int) -> None:
    coords = coordinate_grid(64, 64).flatten(0, 1)
    order, runs = nested_sort([tile_index(coords, a) for a in (4.0, 2.0, 1.0, 0.5)[:depth]])
    network = LevelsOfExpertsNetwork([4] * depth, ["a", "b"], width=64)
    x = coords[order].expand(2, -1, -1).contiguous()
    measured = peak(network, x, [[r, r] for r in runs])
    predicted = 2 * len(coords) * bytes_of_a_row(network, CPU)
    assert measured == pytest.approx(predicted, rel=0.1)


def test_the_paper_fits_a_24_gb_card() -> None:
    network = LevelsOfExpertsNetwork([4] * 4, [str(i) for i in range(24)], width=256)
    free, rows = 24 * 10**9, 512 * 768
    assert step_bytes(network, rows, rows, CPU) > 93e9
    at_once = rows_that_fit(network, rows, CUDA, free)
    assert 0.5 * free < step_bytes(network, rows, at_once, CUDA) <= memory.SHARE * free
    assert rows_that_fit(network, rows, CUDA, None) == rows
    with pytest.raises(ConfigError, match=r"data\.images.*model\.width"):
        rows_that_fit(network, rows, CUDA, 10**9)


def test_auto_takes_parts_where_memory_is_short_and_the_losses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "pictures", ["a", "b"])
    whole = make_model()
    fit(whole, folder, steps=3, epochs=1)
    assert whole._pass.chosen == 16 * 24
    monkeypatch.setattr(memory, "LEAST_ROWS", 8)
    needed = step_bytes(whole.network, 16 * 24, 100, CPU)  # type: ignore[arg-type]
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(needed / memory.SHARE) + 1)
    parts = make_model()
    with caplog.at_level("INFO"):
        fit(parts, folder, steps=3, epochs=1)
    assert parts._pass.chosen == 96  # four passes of one size
    assert "96 at a time (model.rows_at_once)" in caplog.text
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-6)
