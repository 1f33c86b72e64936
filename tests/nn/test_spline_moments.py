"""Moments of what layers see, in every mode that a batch may run in."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch

from framework.nn import KANConv2d, KANLinear, observe
from framework.nn.splines.bspline import greville, projection_error, projection_matrix, refinement_matrix
from framework.nn.splines.moments import CrossMoments, SplineMoments, histogram_range

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_batches_of_all_modes_add_up(first: str, second: str) -> None:
    torch.manual_seed(0)
    layer, batches = KANLinear(3, 2), torch.randn(2, 6, 3)
    with observe({"layer": layer}) as found:
        for mode, batch in zip((first, second), batches, strict=True):
            with MODES[mode]():
                layer(batch)
    cross = CrossMoments(layer, 7)
    with MODES[first]():
        copied = SplineMoments.from_tensors(found["layer"].tensors())
        other = CrossMoments(layer, 7)
        other.add(batches[0])
    with MODES[second]():
        copied.add(layer, batches[0])
        other.add(batches[1])
    with observe({"layer": layer}) as expected:
        layer(batches.flatten(0, 1))
    cross.add(batches.flatten(0, 1))
    for name, value in expected["layer"].tensors().items():
        torch.testing.assert_close(found["layer"].tensors()[name], value)
    assert float(copied.weight) == 18
    torch.testing.assert_close(other.gram_sum, cross.gram_sum)
    torch.testing.assert_close(other.cross_sum, cross.cross_sum)


def test_sums_lie_on_the_cpu_whatever_the_default_device_is() -> None:
    torch.manual_seed(0)
    layer, x = KANConv2d(2, 3, 3), torch.randn(2, 2, 6, 6)
    with observe({"layer": layer}) as expected:
        layer(x)
    strength, grown = layer.edge_strength(expected["layer"]), copy.deepcopy(layer)
    even = layer.edge_strength()
    with torch.device("meta"):
        with observe({"layer": layer}) as found:
            layer(x)
        assert torch.equal(layer.edge_strength(found["layer"]), strength)
        assert torch.equal(layer.edge_strength(), even)
        cross = CrossMoments(grown, 4)
        cross.add(x)
        matrix = cross.refit()
        made = KANLinear(3, 2, max_grid_size=10, device="cpu")
        made.extend_grid()
        ranked = KANLinear(3, 2, rank=2, device="cpu")
        tables = [greville(layer.grid), refinement_matrix(layer.grid, 2), projection_matrix(layer.grid, grown.grid)]
        error = projection_error(layer.grid, grown.grid, tables[2])
    for name, value in expected["layer"].tensors().items():
        assert torch.equal(found["layer"].tensors()[name], value)
    assert matrix.isfinite().all()
    assert 0 < error < 1
    assert {t.device.type for t in [*tables, *made.state_dict().values(), *ranked.state_dict().values()]} == {"cpu"}


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_histogram_is_numpys(deterministic: bool) -> None:
    torch.manual_seed(0)
    layer, x = KANLinear(3, 2), 4 * torch.randn(2000, 3)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with observe({"layer": layer}) as found:
            layer(x)
    finally:
        torch.use_deterministic_algorithms(False)
    low, high = histogram_range(layer)
    counts, _ = np.histogram(x.clamp(low, high).numpy(), 60, (low, high))
    assert np.abs(found["layer"].histogram.numpy() - counts).sum() <= 2  # of 6000, on the borders of bins
    assert float(found["layer"].histogram.sum()) == x.numel()
