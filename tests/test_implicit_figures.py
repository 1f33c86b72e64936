from typing import cast

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from framework.errors import DataError
from framework.figures import (
    derivative_panel,
    error_panel,
    psnr_over_time,
    reconstruction_panel,
    segmentation_map_panel,
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_error_panel_states_each_images_errors() -> None:
    a = [np.full((8, 12, 3), 100, np.uint8), np.full((12, 8, 3), 100, np.uint8)]
    b = [a[0].copy(), a[1] + 4]
    figure = error_panel(a, b, ["same", "off"])
    titles = [axis.get_title() for axis in figure.axes[:2]]
    assert titles == ["same: mean 0.00, 99th percentile 0", "off: mean 4.00, 99th percentile 4"]


def test_reconstruction_panel_shows_the_psnr_and_the_pixels_themselves() -> None:
    a = picture(16, 24)
    b = a.copy()
    b[0, 0, 0] ^= 16
    figure = reconstruction_panel([a], [b], ["one"])
    psnr = 10 * np.log10(255**2 / (256 / a.size))
    assert figure.axes[1].get_xlabel() == f"{psnr:.2f} dB"
    assert np.array_equal(figure.axes[0].images[0].get_array(), a)
    assert np.array_equal(figure.axes[1].images[0].get_array(), b)
    assert reconstruction_panel([a], [a], ["one"]).axes[1].get_xlabel() == "inf dB"


def test_segmentation_panel_shows_shares() -> None:
    labels = np.zeros((4, 4), int)
    labels[0] = 2
    figure = segmentation_map_panel([picture(4, 4)], [labels], 3, ["one"], ["0.5 bits"])
    bars = [cast(Rectangle, bar) for bar in figure.axes[2].patches]
    assert [bar.get_height() for bar in bars] == [0.75, 0, 0.25]
    assert figure.axes[1].get_xlabel() == "0.5 bits"


@pytest.mark.parametrize("images", [3, 9])
def test_psnr_over_time_draws_every_image_and_the_mean(images: int) -> None:
    values = np.random.default_rng(0).uniform(20, 40, (5, images))
    figure = psnr_over_time(range(5), values, [f"i{i}" for i in range(images)])
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    assert np.array_equal(drawn[images], values.mean(1))
    assert all(np.array_equal(drawn[i], values[:, i]) for i in range(images))


@pytest.mark.parametrize("images", [3, 9])
def test_psnr_over_time_takes_steps_at_which_no_image_was_evaluated(images: int) -> None:
    values = np.arange(3.0 * images).reshape(3, images)
    values[2], values[1, 0] = np.nan, np.nan
    figure = psnr_over_time(range(3), values, [f"i{i}" for i in range(images)])
    lines = figure.axes[0].lines
    assert np.array_equal(lines[images].get_ydata(), [values[0].mean(), values[1, 1:].mean(), np.nan], equal_nan=True)
    if images > 6:  # those that were the worst and the best when they were last evaluated
        assert [line.get_label() for line in lines[images + 1 :]] == ["i1", f"i{images - 1}"]
    psnr_over_time(range(3), np.full((3, images), np.nan), [f"i{i}" for i in range(images)])


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="expected equally many"):
        reconstruction_panel([picture(4, 4)], [], ["one"])
    with pytest.raises(DataError, match=r"\(2, 3\) values for 2 steps and 1 images"):
        psnr_over_time([1, 2], np.zeros((2, 3)), ["one"])


def test_derivative_panel_shows_what_was_given_and_the_psnr_of_what_came_of_it() -> None:
    original, given = picture(6, 9), np.linspace(-1, 1, 54).reshape(6, 9)
    said = original.copy()
    said[0, 0, 0] ^= 16
    figure = derivative_panel([given], [said], [original], ["one"], "laplacian, given")
    assert np.array_equal(figure.axes[0].images[0].get_array(), given)
    assert figure.axes[0].get_title() == "laplacian, given"
    assert figure.axes[0].get_ylabel() == "one"
    assert figure.axes[1].get_xlabel() == f"{10 * np.log10(255**2 * original.size / 256):.2f} dB"
    with pytest.raises(DataError, match="equally many"):
        derivative_panel([given, given], [said], [original], ["one"], "gradient")
