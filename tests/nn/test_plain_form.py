"""A spline convolution as an ordinary one over centred functions, which deployed networks hold, against the layer."""

from typing import Any

import pytest
import torch
from torch import nn

from framework.nn import KANConv2d, KANConvTranspose2d
from framework.nn.splines.plain import PlainSplineConv, can_be_plain

RANGE = (-1.5, 2.0)


def layer(**words: Any) -> KANConv2d:
    torch.manual_seed(0)
    return KANConv2d(4, 6, 3, grid_size=5, grid_range=RANGE, **words)


def inputs() -> torch.Tensor:
    """Values on either side of the grid and on its ends."""
    x = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1)) * 2
    x[0, :, 0, :3] = torch.tensor([RANGE[0], RANGE[1], 0.2])
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
@pytest.mark.parametrize("base", [None, "linear", "silu"])
def test_it_gives_what_the_layer_gives(order: int, tail: Any, base: Any) -> None:
    conv = layer(spline_order=order, tail=tail, base=base, padding=1)
    x = inputs()
    torch.testing.assert_close(PlainSplineConv(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        {"stride": 2}, {"padding": 2, "dilation": 2}, {"groups": 2, "bias": True},
        {"padding": 1, "padding_mode": "mask"},
        {"padding": "same"},
    ],
)  # fmt: skip
def test_it_has_the_layers_geometry(words: Any) -> None:
    conv, x = layer(**words), inputs()
    assert can_be_plain(conv)
    torch.testing.assert_close(PlainSplineConv(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_a_normalisation_before_it_is_taken_in(affine: bool) -> None:
    conv, norm, x = layer(padding=1, base="silu"), nn.BatchNorm2d(4, affine=affine), inputs()
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if values is not None:
                values.copy_(torch.rand(4) + 0.5)
    norm.eval()
    torch.testing.assert_close(PlainSplineConv(conv, norm)(x), conv(norm(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_so_is_its_transpose(order: int) -> None:
    torch.manual_seed(0)
    conv = KANConvTranspose2d(4, 3, 3, stride=2, output_padding=1, padding=1, spline_order=order, grid_range=RANGE)
    torch.testing.assert_close(PlainSplineConv(conv)(inputs()), conv(inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same", "kernel": 2}])
def test_borders_that_an_ordinary_convolution_does_not_have_are_left_to_the_layer(words: Any) -> None:
    kernel = words.pop("kernel", 3)
    assert not can_be_plain(KANConv2d(4, 6, kernel, **words))
    assert not can_be_plain(nn.Conv2d(4, 6, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_no_number_stays_none(value: float) -> None:
    conv, x = layer(), inputs()
    x[0, 0, 3, 3] = value
    plain, spline = PlainSplineConv(conv)(x), conv(x)
    assert torch.equal(plain.isfinite(), spline.isfinite())
