"""Operations and bytes of the full recipes against formulas and published counts."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scale
from benchmarks.tables.common import read
from framework.nn import Finola


def test_a_coordinate_networks_step_is_counted_as_by_hand() -> None:
    recipe = next(r for r in scale.RECIPES if r.name == "levels_of_experts/paper")
    pixels = 12
    part = dataclasses.replace(recipe.parts[0], shape=(pixels, 2))
    first, hidden, last = 2 * 256, 256 * 256, 256 * 3
    forward = first + 3 * hidden + last
    backward = 2 * forward - first  # coordinates need no gradient
    operations, _, trained = scale.count(part)
    assert operations == 2 * pixels * (forward + backward)
    assert trained == 2 * 198_915  # two networks; the count is SIREN's published one


def test_bytes_are_those_of_every_operators_inputs_and_outputs() -> None:
    x, weight = torch.zeros(5, 3), torch.zeros(3, 7)
    with scale.BytesMoved() as moved:
        (x @ weight).relu().t()
    assert moved.total == 4 * (15 + 21 + 35 + 2 * 35)


def test_convnext_has_its_published_count() -> None:
    recipe = next(r for r in scale.RECIPES if r.name == "master_key/convnextv2_tiny_frozen")
    operations, _, trained = scale.count(recipe.parts[0], batch=1)
    # timm's list: 28.64 million parameters, 4.47 G multiply-adds; three products a layer in training, the first layer's
    # input and the frozen filters need two
    assert operations == pytest.approx(3 * 2 * 4.47e9, rel=0.03)
    frozen = 49 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)
    assert trained + frozen == pytest.approx(28.64e6, abs=5e3)


def test_hours_follow_from_the_table_itself() -> None:
    for _, row in read("scale").iterrows():
        peak = scale.PEAK[row["precision"]]
        seconds = max(float(row["flops"]) / peak, float(row["bytes"]) / scale.BANDWIDTH) / float(row["share_expected"])
        assert float(row["hours_1"]) == pytest.approx(seconds / 3600, rel=0.01)
        assert float(row["flops"]) == pytest.approx(float(row["flops_per_sample"]) * int(row["samples"]), rel=0.01)
        assert float(row["hours_1"]) >= float(row["hours_8"]) >= float(row["hours_64"])


def test_every_method_has_a_recipe_in_the_table() -> None:
    recipes = [r.name for r in scale.RECIPES]
    assert sorted(read("scale")["recipe"]) == sorted(recipes)
    assert {name.split("/")[0] for name in recipes} == {
        "korigins",
        "kmunet",
        "levels_of_experts",
        "master_key",
        "finola",
    }


@pytest.mark.parametrize(("checkpoint", "times"), [(False, 2), (True, 3)])
def test_finolas_products_are_counted_as_by_hand(checkpoint, times) -> None:
    channels, side, paths, batch = 16, 8, 3, 2
    layer = Finola(channels, checkpoint=checkpoint)
    q = torch.randn(batch, paths, channels, requires_grad=True)
    # two maps, each with every cell but the first out of its neighbour
    forward = 2 * (side**2 - 1) * 2 * channels**2 * paths * batch
    with FlopCounterMode(display=False, custom_mapping=scale.IN_PLACE) as counted:
        grown = layer(q, (side, side))
    assert counted.get_total_flops() == forward
    with FlopCounterMode(display=False, custom_mapping=scale.IN_PLACE) as counted:
        grown.sum().backward()
    assert counted.get_total_flops() == times * forward
