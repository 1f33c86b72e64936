"""Figures show what they are given, and refuse what does not belong together."""

import numpy as np
import pandas as pd
import pytest

from framework.errors import DataError
from framework.figures import origin_paths, segmentation_panel, separability, training_curves


def test_a_segmentation_panel_has_a_row_per_image_and_states_error_and_iou() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (2, 16, 16))
    preds = target.copy()
    preds[0, 0, :4] = (preds[0, 0, :4] + 1) % 3
    figure = segmentation_panel(rng.normal(20000, 100, (2, 1, 16, 16)), target, preds, 3)
    axes = np.array(figure.axes).reshape(2, 5)
    assert axes[0, 3].get_xlabel() == f"{4 / 256:.2%} of the pixels"
    assert axes[1, 3].get_xlabel() == "0.00% of the pixels"
    np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), target[0])
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), preds[0])
    assert [t.get_text() for t in axes[1, 4].texts] == ["1.000"] * 3


def test_an_absent_class_is_called_absent() -> None:
    zeros = np.zeros((1, 4, 4), int)
    figure = segmentation_panel(np.zeros((1, 3, 4, 4)), zeros, zeros, 2)
    assert [t.get_text() for t in figure.axes[4].texts] == ["1.000", "absent"]


def test_training_curves_take_the_last_value_of_an_epoch() -> None:
    log = pd.DataFrame(
        {
            "epoch": [0, 0, 1, 1],
            "train/loss": [3.0, 2.0, np.nan, 1.0],
            "val/loss": [np.nan, 2.5, np.nan, 1.5],
            "train/loss_step": [9.0, 9.0, 9.0, 9.0],
        }
    )
    axis = training_curves(log).axes[0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"train": [2.0, 1.0], "val": [2.5, 1.5]}
    assert axis.get_title() == "loss"


def test_origin_paths_end_where_the_origins_are() -> None:
    paths = np.array([[1.0, 5.0], [2.0, 4.0]])
    figure = origin_paths(paths, np.array([0.0, 1.0]), np.ones((2, 4)), np.linspace(0, 8, 5))
    ends = [line.get_ydata()[-1] for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert ends == [2.0, 4.0]


def test_separability_shows_both_distances_and_the_bayes_limit() -> None:
    # golden values from the closed form: equal deviations one and two deviations apart
    figure = separability(np.array([[0.0], [1.0], [2.0]]), np.ones((3, 1)))
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts[0] == "H 0.000\n$H^2$ 0.000"
    assert texts[1] == "H 0.343\n$H^2$ 0.118"
    assert texts[2] == "H 0.627\n$H^2$ 0.393"
    two = separability(np.array([[0.0], [2.0]]), np.ones((2, 1)))
    assert "accuracy 0.8413" in two.axes[0].get_title()


def test_separability_multiplies_the_overlap_of_independent_channels() -> None:
    figure = separability(np.array([[0.0, 0.0], [1.0, 2.0]]), np.ones((2, 2)))
    squared = 1 - (1 - 0.1175) * (1 - 0.3935)
    assert f"$H^2$ {squared:.3f}" in figure.axes[0].texts[1].get_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: segmentation_panel(np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 5)), 2),
            "segmentation_panel",
        ),
        (lambda: separability(np.zeros((2, 1)), np.zeros((3, 1))), "separability"),
        (lambda: training_curves(pd.DataFrame({"epoch": [0]})), "no 'split/name' column"),
        (lambda: origin_paths(np.zeros((2, 2)), np.zeros(3), np.zeros((1, 4)), np.zeros(5)), "origin_paths"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(call, message) -> None:
    with pytest.raises(DataError, match=message):
        call()
