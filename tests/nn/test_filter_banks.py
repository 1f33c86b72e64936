"""Matching, random control, k-lines and refitted scales, each against a written-out reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from framework.errors import ConfigError, DataError
from framework.nn import (
    BANKS,
    approximate,
    bank_parameters,
    depthwise_convolutions,
    depthwise_weights,
    idealised_bank,
    key_filter,
    key_lines,
    make_bank,
    match_filters,
    random_bank,
    refit_bank,
    remove_mean,
)
from framework.nn.filters.dictionaries import dictionary, dictionary_parameters, refit
from framework.nn.filters.key_filters import METHODS, published_fits

quick = settings(max_examples=20, deadline=None)


def filters(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(n=st.integers(1, 6), k=st.sampled_from([3, 5, 7]), seed=st.integers(0, 99))
def test_the_match_is_the_least_squares_fit_of_the_best_bank_filter(n: int, k: int, seed: int) -> None:
    y, bank = filters(n, k, seed), idealised_bank("B", k)
    match = match_filters(y, bank)
    for i in range(n):
        residuals = []
        for x in bank:
            design = np.stack([x.numpy().ravel(), np.ones(k * k)], 1)
            residuals.append(float(np.linalg.lstsq(design, y[i].numpy().ravel(), rcond=None)[1][0]))
        best = int(np.argmin(residuals))
        assert best == int(match.index[i])
        design = np.stack([bank[best].numpy().ravel(), np.ones(k * k)], 1)
        a, b = np.linalg.lstsq(design, y[i].numpy().ravel(), rcond=None)[0]
        np.testing.assert_allclose([match.scale[i], match.offset[i]], [a, b], atol=1e-12)
        error = float((approximate(match, bank)[i] - y[i]).square().sum())
        np.testing.assert_allclose(error, residuals[best], atol=1e-12)
        np.testing.assert_allclose(1 - match.energy[i], error / float((y[i] - y[i].mean()).square().sum()), atol=1e-12)


def test_sign_and_scale_are_free_and_a_filter_of_the_bank_is_found() -> None:
    bank = idealised_bank("A")
    match = match_filters(torch.stack([-3 * bank[4] + 0.2, 0.01 * bank[6]]), bank)
    assert match.index.tolist() == [4, 6]
    np.testing.assert_allclose(match.scale, [-3, 0.01], atol=1e-12)
    np.testing.assert_allclose(match.energy, [1, 1], atol=1e-12)


def test_constant_filters_have_no_energy_and_stay_constant() -> None:
    y = torch.stack([torch.full((3, 3), 0.1), torch.zeros(3, 3)])
    match = match_filters(y, idealised_bank("B", 3))
    assert bool(match.energy.isnan().all())
    torch.testing.assert_close(approximate(match, idealised_bank("B", 3)), y.double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", [*BANKS, "random-3"])
@pytest.mark.parametrize("size", [3, 5])
def test_every_bank_is_normalised_and_deterministic(name: str, size: int) -> None:
    weights = {"a": filters(40, size).float(), "b": filters(20, size, 1).float()}
    learned = filters(8, 7, 2)
    banks = make_bank(name, weights, learned)
    again = make_bank(name, weights, learned)
    for layer, bank in banks.items():
        assert bank.shape[1:] == (size, size)
        match_filters(weights[layer], bank)  # refuses a bank that is not normalised
        assert torch.equal(bank, again[layer])


def test_random_seeds_draw_other_banks() -> None:
    assert not torch.equal(random_bank(3, 0), random_bank(3, 1))
    weights = {"a": filters(9, 3)}
    assert torch.equal(make_bank("random-2", weights)["a"], random_bank(3, 2))


def test_k_lines_find_planted_directions_of_either_sign() -> None:
    planted = remove_mean(filters(4, 5, 3))
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(4, (200,), generator=generator)
    sign = torch.where(torch.rand(200, generator=generator) < 0.5, -1.0, 1.0)
    y = planted[which] * sign[:, None, None] + 0.01 * filters(200, 5, 4)
    lines = key_lines(y, 4)
    assert float((lines.flatten(1) @ planted.flatten(1).T).abs().amax(0).min()) > 0.999


def test_k_lines_beat_the_fixed_and_the_random_bank_on_their_own_filters() -> None:
    y = remove_mean(filters(300, 3))
    explained = [match_filters(y, bank).explained() for bank in (key_lines(y), idealised_bank("B", 3), random_bank(3))]
    assert explained[0] > max(explained[1:])


@pytest.mark.parametrize("index", [1, 2, 5, 8])
def test_refitting_recovers_planted_scales(index: int) -> None:
    y = torch.stack([key_filter(index, 1.3, 0.6, normalize="affine") * s for s in (1.0, -2.0, 0.5)])
    bank, scales = refit(y)
    assert abs(float(scales[index - 1, 0]) - 1.3) < 0.02
    assert abs(float(scales[index - 1, 1]) - 0.6) < 0.02
    assert match_filters(y, bank).explained() > 0.9999


def test_refitted_scales_explain_at_least_what_method_b_does() -> None:
    for seed in range(3):
        y = remove_mean(filters(60, 5, seed))
        assert match_filters(y, refit_bank(y)).explained() >= match_filters(y, idealised_bank("B", 5)).explained()


def test_the_dictionary_holds_key_filters() -> None:
    entries = dictionary(7)
    for index in (3, 5, 7):
        first, second = dictionary_parameters(index, 7)
        at = 87
        expected = (
            key_filter(7, first[at], alpha=second[at]) if index == 7 else key_filter(index, first[at], second[at])
        )
        torch.testing.assert_close(entries[index - 1, at], remove_mean(expected), rtol=0, atol=1e-12)


def test_depthwise_layers_are_found_in_networks_and_in_bare_weights() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 16, 3, groups=8)
    )
    assert list(depthwise_convolutions(network)) == ["1", "3"]
    found = depthwise_weights(network.state_dict())
    assert {name: tuple(w.shape) for name, w in found.items()} == {"1.weight": (8, 5, 5), "3.weight": (16, 3, 3)}


def test_parameter_counts() -> None:
    weights = {"a": filters(10, 3), "b": filters(20, 5)}
    assert bank_parameters("original", weights) == 10 * 9 + 20 * 25
    for method in METHODS:
        fits = published_fits(method)
        free = sum(len({fit.sigma_x, fit.sigma_y}) + (fit.alpha is not None) for fit in fits)
        assert free == (9 if method in ("C2", "D2") else 16)
        assert bank_parameters(method, weights) == 2 * 30 + free
    assert bank_parameters("learned", weights) == 2 * 30 + 8 * 49
    assert bank_parameters("random-1", weights) == 2 * 30 + 8 * (9 + 25)
    assert bank_parameters("sigma-layer", weights) == 2 * 30 + 2 * 16
    assert bank_parameters("sigma-network", weights) == 2 * 30 + 2 * 16
    assert bank_parameters("sigma-filter", weights) == 4 * 30


def test_bad_networks_and_banks_are_named() -> None:
    with pytest.raises(ConfigError, match="Linear has no depthwise convolution"):
        depthwise_convolutions(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="0: its kernel is 4x4; key filters need square kernels with an odd side"):
        depthwise_convolutions(nn.Sequential(nn.Conv2d(4, 4, 4, groups=4)))
    with pytest.raises(ConfigError, match="its kernel is 3x5"):
        depthwise_convolutions(nn.Sequential(nn.Conv2d(4, 4, (3, 5), groups=4)))
    with pytest.raises(ConfigError, match="none of the 1 tensors is a depthwise kernel"):
        depthwise_weights({"x": torch.zeros(3)})
    with pytest.raises(ConfigError, match="banks: expected some of learned, A, B"):
        make_bank("E", {"a": filters(9, 3)})
    with pytest.raises(ConfigError, match="'learned' needs the extracted filters.*filters_file"):
        make_bank("learned", {"a": filters(9, 3)})
    with pytest.raises(ConfigError, match=r"one size, got \(9, 3, 3\) and \(8, 5, 5\)"):
        match_filters(filters(9, 3), idealised_bank("B", 5))
    with pytest.raises(ConfigError, match="mean 0 and unit l2 norm"):
        match_filters(filters(9, 3), filters(8, 3))
    with pytest.raises(DataError, match="finite weights"):
        match_filters(torch.full((1, 3, 3), float("nan")), idealised_bank("B", 3))
    with pytest.raises(DataError, match="0 filters that are not constant are too few for 8"):
        key_lines(torch.ones(20, 3, 3))
