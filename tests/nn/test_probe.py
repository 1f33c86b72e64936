"""The linear probe: separable data, chance on noise, scipy's optimum, bad input."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from framework.errors import DataError
from framework.nn.waves.probe import linear_probe


def blobs(count=200, gap=4.0, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + gap * torch.nn.functional.one_hot(labels, 5), labels


def test_separable_classes_are_told_apart_and_noise_is_not() -> None:
    assert linear_probe(*blobs(), *blobs(seed=1)) > 0.97
    features, _ = blobs(gap=0)
    _, labels = blobs(seed=2)
    test_features, _ = blobs(gap=0, seed=3)
    assert linear_probe(features, labels, test_features, labels) < 0.5


def test_the_accuracy_is_that_of_scipys_optimum() -> None:
    x, y = blobs(gap=1.0)
    test_x, test_y = blobs(gap=1.0, seed=1)
    mean, std = x.mean(0), x.std(0)
    a, b = (((t - mean) / std).double().numpy() for t in (x, test_x))

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:15].reshape(3, 5), flat[15:]
        logits = a @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(a)), y.numpy()]).mean()
        return loss + 1e-3 / 2 * (weight**2).sum()

    best = minimize(objective, np.zeros(18), method="BFGS").x
    predicted = (b @ best[:15].reshape(3, 5).T + best[15:]).argmax(1)
    assert linear_probe(x, y, test_x, test_y) == pytest.approx((predicted == test_y.numpy()).mean(), abs=0.011)


def test_the_scale_of_the_features_does_not_matter() -> None:
    (x, y), (test_x, test_y) = blobs(gap=1.0), blobs(gap=1.0, seed=1)
    scale = torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.1])
    assert linear_probe(x * scale, y, test_x * scale, test_y) == pytest.approx(
        linear_probe(x, y, test_x, test_y), abs=0.02
    )


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_fits_where_gradients_are_off(mode) -> None:
    (x, y), (test_x, test_y) = blobs(gap=1.0), blobs(gap=1.0, seed=1)
    expected = linear_probe(x, y, test_x, test_y)
    with mode():
        made_there = [t.clone() for t in (x, y, test_x, test_y)]
        assert linear_probe(*made_there) == expected
        assert not torch.is_grad_enabled()
    traced = (2 * x.requires_grad_()) / 2  # features with a graph behind them are frozen all the same
    assert linear_probe(traced, y, test_x, test_y) == expected
    assert x.grad is None


def test_bad_features_are_named() -> None:
    x, y = blobs()
    for few, of_test, got in ((1, 9, "1 and 9"), (0, 9, "0 and 9"), (9, 0, "9 and 0")):
        with pytest.raises(DataError, match=f"linear_probe: expected at least 2 features .* 1 for testing, got {got}"):
            linear_probe(x[:few], y[:few], x[:of_test], y[:of_test])
    with pytest.raises(DataError, match=r"expected features \(N, D\) with labels \(N,\)"):
        linear_probe(x, y[:-1], x, y)
    x[0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        linear_probe(x, y, x, y)
