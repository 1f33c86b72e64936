"""Networks with experts beside plain SIREN: a training step's forward and backward.

Products of width 256 over all rows are the operations; the least bytes are every layer's output written and read once
per direction.
"""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.device.measure import DTYPES, Table
from framework.nn import coordinate_grid, nested_sort, tile_index
from framework.nn.coordinates.tiles import tile_plan
from models.levels_of_experts.network import LevelsOfExpertsNetwork

TILINGS = (128.0, 8.0, 4.0, 2.0)


class Siren(nn.Module):
    """The reference: B plain networks side by side, one batched product a layer."""

    def __init__(self, pictures: int, width: int) -> None:
        super().__init__()
        sizes = [2, *[width] * 4, 3]
        self.weights = nn.ParameterList(
            nn.Parameter((torch.rand(pictures, i, o) - 0.5) / i**0.5) for i, o in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor, segments: Any = None) -> Tensor:
        """(B, N, 2) -> (B, N, 3)."""
        for weight in list(self.weights)[:-1]:
            x = torch.sin(torch.bmm(x, weight.to(x.dtype)))
        return torch.bmm(x, self.weights[-1].to(x.dtype))


def rows(table: Table, smoke: bool) -> None:
    """Every form, picture count and number of coordinates."""
    width = 16 if smoke else 256
    sizes = [(8, 8)] if smoke else [(256, 256), (512, 768)]
    for pictures in (1, 2) if smoke else (1, 24):
        for height, columns in sizes:
            coords = coordinate_grid(height, columns).flatten(0, 1)
            tilings = (4.0, 2.0, 1.0, 0.5) if smoke else TILINGS
            order, runs = nested_sort([tile_index(coords, a) for a in tilings])
            x = coords[order].expand(pictures, -1, -1).to(table.device).contiguous()
            segments = [[r] * pictures for r in runs]
            plan = tile_plan(segments, [4] * 4, len(coords), table.device)
            for form, build in forms(pictures, width, smoke).items():
                runs_of = {"siren": [None] * 4, "one expert": [None] * 4, "segments": segments}
                chosen = runs_of.get(form.removesuffix(", compiled"), plan)
                for dtype in ("fp32", "bf16"):
                    add(table, form, build, x, chosen, width, dtype, f"{pictures} x {len(coords)}")


def forms(pictures: int, width: int, smoke: bool) -> dict[str, Callable[[], nn.Module]]:
    """Networks by name."""

    def network(experts: int) -> nn.Module:
        return LevelsOfExpertsNetwork([experts] * 4, [str(i) for i in range(pictures)], width=width)

    made: dict[str, Callable[[], nn.Module]] = {
        "siren": lambda: Siren(pictures, width),
        "one expert": lambda: network(1),
        "tiles": lambda: network(4),
    }
    if pictures == 1:  # thousands of launches a picture
        made["segments"] = lambda: Segmented(network(4))
    if not smoke:
        made["siren, compiled"] = lambda: compiled(Siren(pictures, width))
        made["tiles, compiled"] = lambda: compiled(network(4))
    return made


class Segmented(nn.Module):
    """The form that a CPU takes: a product per run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor, segments: Any) -> Tensor:
        """(B, N, 2) -> (B, N, 3)."""
        for layer, runs in zip(self.network.layers, segments, strict=True):
            x = layer(x, segments=runs)
        return self.network.last(x)


def compiled(module: nn.Module) -> nn.Module:
    """The module compiled for one size."""
    return cast(nn.Module, torch.compile(module, dynamic=False))


def add(
    table: Table, form: str, build: Callable[[], nn.Module], x: Tensor, segments: Any, width: int, dtype: str, case: str
) -> None:
    """One row."""
    module = build().to(table.device)
    autocast = None if dtype == "fp32" else DTYPES[dtype]

    def step() -> None:
        module.zero_grad()
        with torch.autocast(table.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            y = module(x, segments)
        y.float().square().mean().backward()

    count = x.shape[0] * x.shape[1]
    operations = 3 * 2 * count * width * (2 + 3 * width + 3)
    least = 4 * 2 * count * width * (4 if dtype == "fp32" else 2) * 2
    table.add(step, operations, least, dtype, case=case, form=form)
