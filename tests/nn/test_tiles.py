"""Experts as tiles: the same numbers as run by run, in as many launches for any pictures and runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.device.count import Launches
from framework.errors import DataError
from framework.nn import ExpertLinear, coordinate_grid, nested_sort, tile_index
from framework.nn.coordinates.tiles import LENGTHS, ROOM, TilePlan, tile_plan
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from tests.helpers.accelerator import Accelerator


def rows_of(side: int, tilings: list[float], pictures: int, classes: bool) -> tuple[Tensor, list]:
    """Sorted coordinates (pictures, N, 2) and every layer's runs; with `classes` the last layer has uneven ones."""
    coords = coordinate_grid(side, side).flatten(0, 1)
    inputs, runs = [], []
    for picture in range(pictures):
        index = [tile_index(coords, a) for a in tilings]
        if classes:
            index[-1] = ((coords * (1 + picture)).sin().sum(1) * 1.9).long().clamp(0, 3)
        sort = nested_sort(index)
        inputs.append(coords[sort.order])
        runs.append(sort.segments)
    return torch.stack(inputs), [[own[level] for own in runs] for level in range(len(tilings))]


def gradients(network: LevelsOfExpertsNetwork, x: Tensor, segments: Any) -> tuple[Tensor, list[Tensor]]:
    out = network(x, segments)
    return out, list(torch.autograd.grad((out * out.detach().cos()).sum(), list(network.parameters())))


@pytest.mark.parametrize("bias", ["shared", "per_expert", "none"])
@pytest.mark.parametrize("classes", [False, True])
def test_tiles_equal_the_runs(bias: Any, classes: bool) -> None:
    x, runs = rows_of(96, [4.0, 2.0, 1.0, 0.5], 2, classes)
    network = LevelsOfExpertsNetwork([4] * 4, ["a", "b"], width=8, bias=bias).double()
    plan = tile_plan(runs, [4] * 4, x.shape[1], x.device)
    assert (plan.fill is not None) == classes
    expected, found = (gradients(network, x.double(), form) for form in (runs, plan))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_filling_up_keeps_every_row_and_stays_small() -> None:
    x, runs = rows_of(256, [16.0, 4.0, 2.0, 1.0], 2, True)
    plan = tile_plan(runs, [4] * 4, x.shape[1], x.device)
    assert plan.fill is not None
    assert plan.fill.shape[1] <= (1 + ROOM) * x.shape[1]
    assert {tiles.length for tiles in plan.layers} <= set(LENGTHS)
    assert plan.layers[1].length >= plan.layers[0].length
    torch.testing.assert_close(plan.kept(plan.filled(x)), x, rtol=0, atol=0)
    for layer, tiles in zip(runs, plan.layers, strict=True):
        for b, own in enumerate(layer):
            expert = torch.cat([torch.full((stop - start,), e) for start, stop, e in own])
            assert torch.equal(expert[plan.fill[b]], tiles.indicator[b].argmax(1).repeat_interleave(tiles.length))


def test_layers_without_experts_take_part() -> None:
    x, runs = rows_of(16, [2.0, 1.0], 2, False)
    network = LevelsOfExpertsNetwork([4, 1], ["a", "b"], width=8).double()
    segments = [runs[0], None]
    plan = tile_plan(segments, [4, 1], x.shape[1], x.device)
    torch.testing.assert_close(network(x.double(), plan), network(x.double(), segments), rtol=1e-12, atol=1e-12)


def launches(pictures: int, tilings: list[float], device: str) -> int:
    """Of the second step; the first one makes the plan."""
    x, runs = rows_of(32, tilings, pictures, classes=True)
    network = LevelsOfExpertsNetwork([4] * 4, [str(i) for i in range(pictures)], width=8).to(device)
    x = x.to(device)
    network(x, runs)
    with Launches() as seen:
        network(x, runs).square().mean().backward()
    return seen.total


@pytest.mark.cpu
def test_the_number_of_launches_depends_on_neither_pictures_nor_tiles() -> None:
    coarse, fine = [1.0, 1.0, 0.5, 0.5], [8.0, 4.0, 2.0, 1.0]
    with Accelerator():
        once, more = launches(1, coarse, "cuda"), launches(3, fine, "cuda")
    assert once == more
    assert launches(3, fine, "cpu") > 10 * more


def test_tiles_of_other_rows_are_refused() -> None:
    x, runs = rows_of(16, [2.0], 1, False)
    plan: TilePlan = tile_plan(runs, [4], x.shape[1], x.device)
    layer = ExpertLinear(2, 3, 4, num_networks=1)
    with pytest.raises(DataError, match="tiles of"):
        layer(x[:, :-1], segments=plan.layers[0])
    with pytest.raises(DataError, match="at least one layer"):
        tile_plan([None], [1], 4, x.device)
