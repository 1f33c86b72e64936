"""The limits and correlations beside K-Origins' heat maps, against sampling and closed forms."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.heat_maps import correlation, grid, heat_maps
from benchmarks.korigins_limits import figures, first_origin, pair_accuracy
from datamodules import SquaresDataModule
from framework.nn import KOrigins, bayes_accuracy
from models import KOriginsSegmentation


@pytest.mark.parametrize("second", [(20500, 1000), (20500, 1500), (20000, 1500), (21500, 500)])
@pytest.mark.parametrize("pixels", [1, 5])
def test_the_best_accuracy_is_that_of_sampled_likelihood_ratios(second, pixels):
    (m1, s1), (m2, s2) = (20000, 1000), second
    generator = np.random.default_rng(0)

    def ratio(x):
        return (np.log(s2 / s1) - 0.5 * ((x - m1) / s1) ** 2 + 0.5 * ((x - m2) / s2) ** 2).sum(1)

    first = ratio(generator.normal(m1, s1, (100_000, pixels))) > 0
    other = ratio(generator.normal(m2, s2, (100_000, pixels))) < 0
    sampled = (first.mean() + other.mean()) / 2
    assert pair_accuracy(m1, s1, m2, s2, pixels) == pytest.approx(sampled, abs=4e-3)
    if pixels == 1:
        assert pair_accuracy(m1, s1, m2, s2, 1) == pytest.approx(bayes_accuracy([m1, m2], [s1, s2]), abs=1e-9)


def test_classes_without_noise_are_told_apart_or_not_at_all():
    assert pair_accuracy(1, 0, 2, 0, 9) == 1.0
    assert pair_accuracy(1, 0, 1, 0, 9) == 0.5
    assert pair_accuracy(1, 0, 1, 3, 9) == 1.0
    assert pair_accuracy(1, 2, 1, 2, 9) == 0.5


def test_the_closest_pair_counts_and_colours_multiply_their_overlaps():
    data = SquaresDataModule(preset="mixed", mean=[20000, 21000, 30000], std=[1000, 1000, 1000],
                             shapes_per_class=[1, 1])  # fmt: skip
    found = figures(KOriginsSegmentation(rfl=14, num_classes=3, width=2), data)
    assert found["hellinger_squared"] == pytest.approx(0.1175, abs=1e-4)  # d = 1: the golden value
    assert found["bayes_pixel"] == pytest.approx(0.6915, abs=1e-4)
    colour = SquaresDataModule(preset="mixed", mean=[[0, 0, 0], [1000, 1000, 0]], std=[[1000] * 3] * 2,
                               shapes_per_class=[1])  # fmt: skip
    found = figures(KOriginsSegmentation(rfl=14, num_classes=2, in_channels=3, width=2), colour)
    assert found["hellinger_squared"] == pytest.approx(1 - (1 - 0.1175) ** 2, abs=2e-4)


def test_correlations_average_seeds_and_name_an_interval_that_holds_the_value():
    rows = [
        {"distance": str(d), "noise": str(n), "seed": str(s), "iou": str(0.1 * d + 0.01 * s), "hellinger": str(d + n)}
        for d in range(4)
        for n in range(3)
        for s in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    d, n = (a.ravel() for a in np.meshgrid(np.arange(4.0), np.arange(3.0), indexing="ij"))
    value, low, high = correlation(frame, "iou", "hellinger")
    assert value == pytest.approx(np.corrcoef(d, d + n)[0, 1])
    assert low < value < high
    values, distances, noises = grid(frame, "iou")
    assert values.shape == (3, 4)
    assert distances == [0, 1, 2, 3]
    assert noises == [0, 1, 2]
    assert values[0, 2] == pytest.approx(0.205)
    shown = heat_maps(pd.concat([frame.assign(network=name) for name in ("KRFL14", "RFL14", "RFL14 BatchNorm")]))
    assert [a.get_title() for a in shown.axes][4:] == ["KRFL14 - RFL14", "KRFL14 - BatchNorm"]


def test_the_first_origin_and_whether_it_lies_between_the_means():
    data = SquaresDataModule(preset="template")
    model = KOriginsSegmentation(rfl=8, num_classes=2, width=2, origins="random", first_origins=1)
    layer = next(m for m in model.modules() if isinstance(m, KOrigins))
    for origin, between in ((19999.0, 0), (22000.0, 1), (25001.0, 0)):
        layer.weight.data.fill_(origin)
        assert first_origin(model, data) == {"origin": origin, "between": between}
