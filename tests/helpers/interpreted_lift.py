"""Runs the lift's Triton kernels in Triton's interpreter on the CPU and compares them with the `scatter` route."""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from framework.nn.splines import triton_lift
from framework.nn.splines.bspline import SplineGrid
from framework.nn.splines.scatter import scatter_gradient, scatter_values

TAILS, BASES = ("linear", "clamp", "zero"), (None, "silu", "linear")


def check(grid: SplineGrid, base: Any, dtype: torch.dtype, x: torch.Tensor) -> None:
    """Values and gradients of one case, NaN included."""
    x, out = x.to(dtype), torch.promote_types(dtype, torch.float32)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    expected = scatter_values(x, grid, base, out)
    g = torch.randn_like(expected)
    pairs = (
        (triton_lift.values(x, grid, base, out), expected),
        (triton_lift.gradient(x, grid, base, g), scatter_gradient(x, grid, base, g)),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(
            ours, theirs, rtol=rtol, atol=rtol, equal_nan=True, msg=lambda m: f"{grid} {base} {dtype}: {m}"
        )


def main() -> None:
    torch.manual_seed(0)
    special = torch.tensor([0.0, float("nan"), 1e4, -1e4, -3.0, 3.0])
    x = torch.cat([3 * torch.randn(97), torch.linspace(-6, 6, 25), special])
    cases = [
        (SplineGrid(size, order, -3.0, 3.0, tail), base, torch.float32)  # type: ignore[arg-type]
        for order, (tail, base), size in itertools.product((1, 2, 3), zip(TAILS, BASES, strict=True), (1, 5))
    ]
    for tail, base, dtype in itertools.product(TAILS, BASES, (torch.float64, torch.bfloat16)):
        cases.append((SplineGrid(4, 3, -2.0, 3.0, tail), base, dtype))  # type: ignore[arg-type]
    for grid, base, dtype in cases:
        check(grid, base, dtype, x)
    print(len(cases), "cases equal")


if __name__ == "__main__":
    main()
