"""Every full recipe says whether it fits a card of 24 GB, and with what; the rows are those that the program counts."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, scale
from benchmarks.memory import CARD
from benchmarks.tables.common import read
from framework.commands.precedence import sections
from framework.memory import SHARE

ROOT = Path(__file__).parents[2] / "configs"
PAPERS = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("*/paper.yaml"))
#: methods without a paper.yaml -> the configuration that is their published recipe
OTHERS = ["kmunet/slides", "master_key/convnextv2_tiny_frozen", "finola/masked_block"]
LIMIT = SHARE * CARD


def row(name: str) -> dict[str, str]:
    rows: list[Any] = read("memory").to_dict("records")
    return next(r for r in rows if r["recipe"] == name)


def test_there_is_a_recipe_of_every_method() -> None:
    assert {name.split("/")[0] for name in [*PAPERS, *OTHERS]} == {p.name for p in ROOT.iterdir() if p.is_dir()} - {
        "trainer",
        "__pycache__",
    }
    assert sorted(read("memory")["recipe"]) == sorted([*PAPERS, *OTHERS])


@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
def test_a_recipe_fits_24_gb_or_says_what_it_needs(name: str) -> None:
    said = row(name)
    fast, lean = float(said["bytes_fast"]), float(said["bytes_lean"])
    if said["fits"] == "as it is":
        assert fast <= LIMIT
    elif said["fits"].startswith("with "):
        assert lean <= LIMIT < fast
    else:
        assert min(fast, lean) > LIMIT
        samples, _, rest = said["fits"].partition(" samples at a time, or a card of ")
        assert 1 <= int(samples) < int(said["samples"])
        assert float(rest.removesuffix(" GB")) == pytest.approx(min(fast, lean) / SHARE / 1e9, abs=1)


@pytest.mark.parametrize("name", [name for name in [*PAPERS, *OTHERS] if not name.startswith("levels")])
def test_samples_are_those_of_the_configuration(name: str) -> None:
    assert int(row(name)["samples"]) == sections(name, "data")["init_args"]["batch_size"]


@pytest.mark.parametrize("name", ["korigins/paper", "levels_of_experts/paper"])
def test_rows_are_counted_again(name: str) -> None:
    recipe = next(r for r in scale.RECIPES if r.name == name)
    counted = memory.experts(LIMIT) if name.startswith("levels") else memory.words(recipe, LIMIT)
    assert {key: str(value) for key, value in counted.items()} == {key: row(name)[key] for key in counted}
