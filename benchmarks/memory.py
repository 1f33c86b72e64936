"""What one training step of the full recipes takes in memory, and how much of it fits a 24 GB card, without running it.

    python -m benchmarks.memory --out results/memory.csv

A step is tried on tensors without values (`framework.step_memory`), in an accelerator's forms, with one sample and with
two: bytes grow with the samples along a line. Levels-of-Experts has a formula of its own.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import append_row, environment, read_rows
from benchmarks.scale import KODAK, PIXELS, RECIPES, Recipe
from framework.commands.cli import BuildOnly
from framework.memory import SHARE
from framework.nn.waves import finola as waves
from framework.step_memory import activation_bytes, weight_bytes
from models.levels_of_experts.memory import rows_that_fit, step_bytes
from models.levels_of_experts.network import LevelsOfExpertsNetwork

CARD = 24 * 10**9
#: samples that a recipe's configuration puts on one device
BATCH = {"korigins/paper": 3, "kmunet/slides": 2, "master_key/convnextv2_tiny_frozen": 256}
BATCH |= {"finola/paper": 256, "finola/masked_block": 256}


@dataclasses.dataclass(frozen=True)
class Line:
    """Bytes of a step with so many samples."""

    fixed: float
    per_sample: float

    def at(self, samples: int) -> float:
        """Bytes of a step."""
        return self.fixed + self.per_sample * samples

    def fitting(self, limit: float) -> int:
        """The most samples whose step stays below a limit."""
        return int((limit - self.fixed) / self.per_sample)


def sample(recipe: Recipe, count: int) -> dict[str, Any]:
    """A batch of the recipe's shapes."""
    shape = recipe.parts[-1].shape
    batch: dict[str, Any] = {"image": torch.zeros(count, *shape), "index": torch.arange(count)}
    if recipe.name.startswith(("korigins", "kmunet")):
        batch["mask"] = torch.zeros(count, *shape[1:], dtype=torch.int64)
    else:
        batch["label"] = torch.zeros(count, dtype=torch.int64)
    if "masked" in recipe.name:
        batch["corners"] = [(0, 0)] * count
    return batch


def line(method: Any, recipe: Recipe) -> Line:
    """From a step with one sample and one with two."""
    sixteen = recipe.precision != "32"
    one, two = (
        activation_bytes(method, sample(recipe, count), torch.autocast("cpu", torch.bfloat16) if sixteen else None)
        for count in (1, 2)
    )
    return Line(weight_bytes(method) + 2 * one - two, two - one)


def words(recipe: Recipe, limit: float) -> dict[str, object]:
    """The recipe's bytes, fast and lean, and what fits."""
    method: Any = BuildOnly(args=["fit", *recipe.parts[-1].words]).model
    batch = BATCH[recipe.name]
    fast = line(method, recipe)
    how = method.save_memory()
    lean = line(method, recipe) if how else fast
    if fast.at(batch) <= limit:
        fits = "as it is"
    elif lean.at(batch) <= limit:
        fits = f"with {how}"
    else:
        best = max(lean.fitting(limit), fast.fitting(limit))
        fits = f"{best} samples at a time, or a card of {min(fast.at(batch), lean.at(batch)) / SHARE / 1e9:.0f} GB"
    return {
        "samples": batch,
        "bytes_fast": f"{fast.at(batch):.3e}",
        "bytes_lean": f"{lean.at(batch):.3e}",
        "fits": fits,
    }


def experts(limit: float) -> dict[str, object]:
    """Levels-of-Experts: its rows of a pass."""
    network = LevelsOfExpertsNetwork([4] * 4, [str(i) for i in range(KODAK)], width=256)
    device = torch.device("cuda")
    rows = rows_that_fit(network, PIXELS, device, int(limit / SHARE))
    fast, lean = (step_bytes(network, PIXELS, at_once, device) for at_once in (PIXELS, rows))
    fits = f"with model.rows_at_once: auto ({rows} pixels a pass)"
    return {"samples": KODAK, "bytes_fast": f"{fast:.3e}", "bytes_lean": f"{lean:.3e}", "fits": fits}


def main() -> None:
    """Writes the rows that the CSV does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of recipes")
    args = parser.parse_args()
    parts = waves._parts
    waves._parts = lambda plan, device: parts(plan, torch.device("cuda"))  # type: ignore[assignment]
    where = {**environment(), "hardware": "a card of 24 GB; counted, not measured"}
    where["command"] = f"python -m benchmarks.memory --out {args.out}"
    done = {r["recipe"] for r in read_rows(args.out)}
    for recipe in RECIPES:
        if recipe.name not in done and (args.only is None or recipe.name in args.only):
            experts_own = recipe.name.startswith("levels")
            figures = experts(SHARE * CARD) if experts_own else words(recipe, SHARE * CARD)
            row = {"recipe": recipe.name, "precision": recipe.precision, **figures}
            print(row, flush=True)
            append_row(args.out, {**row, **where})


if __name__ == "__main__":
    main()
