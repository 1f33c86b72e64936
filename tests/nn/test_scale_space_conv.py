"""The depthwise layer of operators against its kernel and the plain convolution."""

import copy
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from framework.errors import ConfigError
from framework.nn import ScaleSpaceDepthwiseConv2d, key_filter


def layer(channels: int = 8, size: int | tuple[int, int] = 7, **options) -> ScaleSpaceDepthwiseConv2d:
    return ScaleSpaceDepthwiseConv2d(channels, size, **options)


def test_kernels_are_scaled_key_filters() -> None:
    sigma = torch.rand(8, 2) + 0.4
    ours = layer(sigma=sigma, scale=torch.arange(1.0, 9.0), offset=0.1).kernel()
    for i in range(8):
        second = None if i == 6 else sigma[i, 1]
        expected = (i + 1) * key_filter(i + 1, sigma[i, 0], second, normalize="affine") + 0.1
        torch.testing.assert_close(ours[i, 0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [3, 5, 9, 13])
@pytest.mark.parametrize("geometry", [{}, {"stride": 2}, {"dilation": 2}, {"padding": 0, "bias": False}])
def test_exported_convolution_gives_the_same_output(size: int, geometry: dict) -> None:
    ours = layer(10, size, **geometry)
    x = torch.randn(2, 10, 30, 31)
    assert torch.equal(ours(x), ours.to_conv()(x))


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2}, {"stride": (2, 3)}, {"dilation": 2}, {"stride": 4, "dilation": 3}]
)
@pytest.mark.parametrize("picture", [(14, 14), (15, 14), (16, 17), (3, 2)])
def test_a_convolution_that_pads_as_tensorflow_does_is_taken_over(size: int, geometry: dict, picture: tuple) -> None:
    theirs = Conv2dSame(8, 8, size, groups=8, **geometry)
    ours = ScaleSpaceDepthwiseConv2d.from_conv(theirs, same_padding=True)
    with torch.no_grad():
        theirs.weight.copy_(ours.kernel())
    x = torch.randn(2, 8, *picture)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)
    exported = ours.to_conv()
    torch.testing.assert_close(exported(x), expected, rtol=1e-6, atol=1e-6)
    # what is exported is taken over again
    again = ScaleSpaceDepthwiseConv2d.from_conv(exported)
    assert again(x).shape == expected.shape
    assert again.padding == "same"


def test_where_the_surplus_row_goes_matters() -> None:
    # on an even side a stride of 2 samples another grid than symmetric padding does
    theirs = Conv2dSame(8, 8, 3, stride=2, groups=8)
    ours = layer(8, 3, stride=2)
    with torch.no_grad():
        theirs.weight.copy_(ours.kernel())
        theirs.bias.zero_()
    x = torch.randn(1, 8, 8, 8)
    assert ours(x).shape == theirs(x).shape
    assert not torch.allclose(ours(x), theirs(x), atol=0.1)


def test_torch_s_own_same_and_valid_padding_are_taken_over() -> None:
    x = torch.randn(1, 8, 9, 10)
    for padding in ("same", "valid"):
        conv = nn.Conv2d(8, 8, 5, padding=padding, dilation=2, groups=8)
        ours = ScaleSpaceDepthwiseConv2d.from_conv(conv)
        with torch.no_grad():
            conv.weight.copy_(ours.kernel())
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-6, atol=1e-6)


def test_same_padding_is_right_at_odd_sizes_in_an_exported_file(tmp_path: Path) -> None:
    """An exported file divides towards 0, Python downwards."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    strided, x = layer(8, 3, stride=2, padding="same").eval(), torch.randn(2, 8, 8, 12)
    axes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(strided, (x,), dynamic_shapes=(axes,))
    path = tmp_path / "same.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, f=str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in ((9, 9), (8, 11), (7, 12), (10, 10)):
        other = torch.randn(3, 8, *size)
        (said,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        torch.testing.assert_close(torch.from_numpy(said), strided(other).detach(), rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_same_padding() -> None:
    ours = layer(2, 3, stride=2, padding="same").double()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,))
    ours(x).square().sum().backward()
    assert bool((ours.raw_sigma.grad != 0).any())


def test_default_padding_keeps_the_size() -> None:
    assert layer(8, 5, dilation=3)(torch.zeros(1, 8, 20, 22)).shape == (1, 8, 20, 22)


def test_five_numbers_per_channel() -> None:
    ours = layer(96, bias=False)
    assert sum(p.numel() for p in ours.parameters()) == 4 * 96
    assert ours.operator.numel() == 96


def test_gradients_reach_every_parameter() -> None:
    ours = layer(16, 5).double()
    ours(torch.randn(2, 16, 9, 9, dtype=torch.float64)).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert bool((parameter.grad != 0).any()), name
    # every sigma but filter 7's second one matters
    used = ours.raw_sigma.grad.abs() > 0
    assert bool(used[ours.operator != 7].all())
    assert not bool(used[ours.operator == 7, 1].any())


def test_gradcheck() -> None:
    ours = layer(8, 3, sigma=0.8, padding=0).double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)

    def call(raw: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(ours, {"raw_sigma": raw, "scale": scale, "offset": offset}, (x,))

    assert torch.autograd.gradcheck(call, (ours.raw_sigma, ours.scale, ours.offset))


def test_frozen_layers_train_nothing_but_the_bias() -> None:
    trainable = [name for name, p in layer(trainable=False).named_parameters() if p.requires_grad]
    assert trainable == ["bias"]


def test_a_layer_of_operators_is_found_again() -> None:
    sigma = torch.tensor([0.6, 1.0])
    conv = layer(8, 7, sigma=sigma.expand(8, 2), scale=-2.0, offset=0.05).to_conv()
    again = ScaleSpaceDepthwiseConv2d.from_conv(conv)
    explained = F.cosine_similarity(again.kernel().flatten(1) - 0.05, conv.weight.flatten(1) - 0.05)
    assert float(explained.min()) > 0.99
    assert again.operator.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_state_travels_with_its_operators() -> None:
    first = ScaleSpaceDepthwiseConv2d.from_conv(nn.Conv2d(12, 12, 5, groups=12))
    second = layer(12, 5)
    assert not torch.equal(first.kernel(), second.kernel())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.kernel(), second.kernel())
    assert torch.equal(copy.deepcopy(second).kernel(), first.kernel())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_another_dtype_are_assigned_whole(dtype: torch.dtype) -> None:
    given, ours = layer(8, sigma=0.7).to(dtype), layer(8)
    ours.load_state_dict(given.state_dict(), assign=True)
    assert torch.equal(ours.kernel(), given.kernel())


def test_a_square_pair_is_one_side() -> None:
    pair, side = layer(3, (5, 5), stride=(2, 1)), layer(3, 5, stride=(2, 1))
    x = torch.randn(1, 3, 9, 8)
    assert pair.kernel_size == side.kernel_size == 5
    assert torch.equal(pair(x), side(x))


def test_kernels_stay_in_float32_under_autocast() -> None:
    ours = layer(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.kernel(), layer_kernel_outside(ours))
        assert ours(torch.randn(1, 8, 9, 9)).dtype == torch.bfloat16
    half = copy.deepcopy(ours).bfloat16()
    torch.testing.assert_close(half.kernel().float(), ours.kernel(), rtol=0, atol=2e-2)


def layer_kernel_outside(ours: ScaleSpaceDepthwiseConv2d) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return ours.kernel()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (
                lambda size=size: layer(8, size),
                r"kernel_size: expected an odd number of taps of at least 3, or twice the same, got "
                + re.escape(str(size)),
            )
            for size in (4, 1, (1, 1), (3, 5), (4, 4), (3,), 3.0, None)
        ),
        (lambda: layer(0), "channels: expected at least 1"),
        (lambda: layer(2, operators=[1, 9]), "operators: expected 2 indices from 1 to 8"),
        (lambda: layer(2, sigma=-1.0), "sigma: expected scales of at least 0"),
        (lambda: ScaleSpaceDepthwiseConv2d.from_conv(nn.Conv2d(4, 8, 3)), "expected a depthwise convolution"),
        (lambda: ScaleSpaceDepthwiseConv2d.from_conv(nn.Conv2d(4, 4, 4, groups=4)), "square kernel with an odd side"),
        (
            lambda: ScaleSpaceDepthwiseConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect")),
            "zero padding, got padding_mode 'reflect'",
        ),
        (
            lambda: ScaleSpaceDepthwiseConv2d.from_conv(Conv2dSame(4, 4, 3, groups=4)),
            "plain torch.nn.Conv2d, got Conv2dSame, which may pad by itself; give same_padding=True",
        ),
        *(
            (
                lambda sigma=sigma: layer(2).set_sigma(sigma),
                f"sigma: expected a finite scale above 0 pixels, got {sigma}",
            )
            for sigma in (-1, 0, math.nan, math.inf)
        ),
        (lambda: layer(2, stride=0), "stride: expected a whole number of at least 1 or two of them, got 0"),
        (lambda: layer(2, dilation=(1, 0)), r"dilation: expected a whole number of at least 1 or .*, got \(1, 0\)"),
        (lambda: layer(2, padding=-1), "padding: expected a whole number of at least 0 or two of them, got -1"),
        (lambda: layer(8, sigma=torch.ones(3)), r"sigma: expected scales of at least 0, a number, \(8,\) or \(8, 2\)"),
        (lambda: layer(8, scale=torch.ones(3)), r"scale: expected a number or \(8,\) of them, got \(3,\)"),
        (lambda: layer(2, 3, padding="valid"), "padding: expected pixels, None or 'same', got 'valid'"),
        (lambda: layer(2, 3).match(torch.zeros(3, 1, 3, 3)), r"weight: expected \(2, 1, 3, 3\)"),
    ],
)
def test_bad_values_are_named(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
