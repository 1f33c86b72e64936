"""The K-Origins layer against its equation, and its folded form against the layer and the convolution."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import KOrigins, fold_korigins
from framework.nn.origins.korigins import convolve_folded

quick = settings(max_examples=25, deadline=None)


def intensities(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole 16-bit intensities around 20000."""
    generator = torch.Generator().manual_seed(seed)
    return torch.normal(20000.0, 3000.0, shape, generator=generator).round().to(dtype)


def origins(k: int, n: int, seed: int = 1) -> Tensor:
    return torch.normal(20000.0, 5000.0, (k, n), generator=torch.Generator().manual_seed(seed))


@quick
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 4),
    k=st.integers(1, 4),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    concat=st.booleans(),
)
def test_layer_is_the_written_out_loop(batch: int, n: int, k: int, size: tuple[int, int], concat: bool) -> None:
    w, x = origins(k, n).double(), intensities(batch, n, *size, dtype=torch.float64)
    y = KOrigins(n, w, concat_input=concat).double()(x)
    w = w.float().double()
    expected = np.empty((batch, n * (k + concat), *size))
    for b, row, col, c in np.ndindex(batch, *size, n):
        if concat:
            expected[b, c, row, col] = x[b, c, row, col]
        for i in range(k):
            expected[b, n * concat + i * n + c, row, col] = x[b, c, row, col] - w[i, c]
    np.testing.assert_array_equal(y.detach().numpy(), expected)


def test_one_origin_per_row_is_shared_by_all_channels() -> None:
    layer = KOrigins(3, [10.0, 20.0])
    assert layer.weight.shape == (2, 3)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[10.0] * 3, [20.0] * 3]), rtol=0, atol=0)
    assert layer.out_channels == 9
    assert sum(p.numel() for p in layer.parameters()) == 6


def test_layer_copies_the_given_weights() -> None:
    w = torch.ones(2, 1)
    layer = KOrigins(1, w)
    w.zero_()
    assert layer.weight.detach().flatten().tolist() == [1.0, 1.0]


@quick
@given(shift=st.integers(-15000, 40000), n=st.integers(1, 3), k=st.integers(1, 3))
def test_shifting_image_and_origins_together_leaves_the_shifted_maps(shift: int, n: int, k: int) -> None:
    w, x = origins(k, n).round(), intensities(2, n, 4, 5)
    before = KOrigins(n, w, concat_input=False)(x)
    after = KOrigins(n, w + shift, concat_input=False)(x + shift)
    assert torch.equal(before, after)


@quick
@given(n=st.integers(1, 4), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_permuting_channels_permutes_every_group_of_maps_alike(n: int, k: int, seed: int) -> None:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    w, x = origins(k, n), intensities(1, n, 3, 3)
    y = KOrigins(n, w)(x).unflatten(1, (1 + k, n))
    permuted = KOrigins(n, w[:, order])(x[:, order]).unflatten(1, (1 + k, n))
    assert torch.equal(permuted, y[:, :, order])


def test_gradient_of_an_origin_is_minus_the_sum_of_its_maps_gradient() -> None:
    layer = KOrigins(2, origins(3, 2)).double()
    upstream = torch.randn(4, 8, 5, 6, dtype=torch.float64)
    layer(intensities(4, 2, 5, 6, dtype=torch.float64)).backward(upstream)
    expected = -upstream[:, 2:].sum((0, 2, 3)).view(3, 2)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("concat", [True, False])
def test_gradcheck(concat: bool) -> None:
    layer = KOrigins(2, [[0.3, -0.2], [1.0, 0.5]], concat_input=concat).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    assert torch.autograd.gradcheck(call, (x, layer.weight))


def test_frozen_origins_get_no_gradient() -> None:
    layer = KOrigins(1, [5.0], trainable=False)
    assert not layer.weight.requires_grad
    assert not layer(torch.rand(1, 1, 2, 2)).requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32])
def test_every_input_type_is_subtracted_in_float32_under_autocast(dtype: torch.dtype) -> None:
    x = (
        torch.tensor([1, 101, 201, 255] if dtype == torch.uint8 else [1, 19999, 20001, 65535])
        .to(dtype)
        .view(1, 1, 2, 2)
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = KOrigins(1, [20000.0])(x)
    assert y.dtype == torch.float32
    assert torch.equal(y[:, 1:].double(), x.double() - 20000)


def test_bfloat16_input_leaves_as_float32_and_float64_stays() -> None:
    layer = KOrigins(1, [0.5])
    assert layer(torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert layer(torch.ones(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"weights: expected \(K,\) or \(K, in_channels\) = \(K, 2\), .* got shape \(0,\)"),
        ([[1.0, 2.0, 3.0]], r"weights: expected .*, got shape \(1, 3\)"),
        (7.0, r"weights: expected .*, got shape \(\)"),
        ([float("nan")], "weights: they hold NaN"),
        ([[1.0], [1.0, 2.0]], "could not be read"),
        ("abc", "could not be read"),
    ],
)
def test_bad_weights_are_named(weights: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KOrigins(2, weights)  # type: ignore[arg-type]


def test_bad_channels_and_inputs_are_named() -> None:
    with pytest.raises(ConfigError, match="in_channels: expected at least 1, got 0"):
        KOrigins(0, [1.0])
    with pytest.raises(ConfigError, match=r"image: expected \(B, in_channels=2, H, W\) or .*, got \(1, 3, 4, 4\)"):
        KOrigins(2, [1.0])(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match=r"got \(3, 4, 4\)"):
        KOrigins(2, [1.0])(torch.zeros(3, 4, 4))


# ---------------------------------------------------------------------------------------------------------- folding

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 1},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"kernel_size": 3, "padding": 4},
    {"kernel_size": (3, 5), "padding": (2, 1), "stride": (1, 3), "dilation": (2, 1)},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": "same", "dilation": 3},
    {"kernel_size": 3, "padding": "valid", "bias": False},
    {"kernel_size": 2, "stride": 2, "padding": 1},
    {"kernel_size": 7, "padding": 3},
]


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("size", [(12, 9), (7, 16)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_folded_equals_layer_and_convolution_on_the_whole_image(
    options: dict, concat: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = KOrigins(2, origins(3, 2), concat_input=concat).double()
    conv = nn.Conv2d(layer.out_channels, 4, **options).double()
    x = intensities(2, 2, *size, dtype=torch.float64)
    expected = conv(layer(x))
    folded = fold_korigins(layer, conv)
    for _ in range(2):  # the second time from the cache
        torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@quick
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 4),
)
def test_folding_any_geometry(size: tuple[int, int], kernel: int, stride: int, dilation: int, padding: int) -> None:
    if min(size) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    layer = KOrigins(1, origins(2, 1)).double()
    conv = nn.Conv2d(3, 2, kernel, stride, padding, dilation).double()
    x = intensities(1, 1, *size, dtype=torch.float64)
    expected = conv(layer(x))
    torch.testing.assert_close(
        fold_korigins(layer, conv)(x), expected, rtol=0, atol=1e-12 * max(expected.abs().max().item(), 1.0)
    )


def test_folded_float32_is_exact_to_a_millionth_of_the_largest_response() -> None:
    torch.manual_seed(0)
    layer = KOrigins(16, origins(3, 16))
    conv = nn.Conv2d(64, 32, 3, padding=1)
    x = intensities(1, 16, 32, 32)
    exact = copy.deepcopy(conv).double()(copy.deepcopy(layer).double()(x.double()))
    error = (fold_korigins(layer, conv)(x).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-6


def test_folded_has_the_parameters_of_the_plain_convolution_and_leaves_the_originals_alone() -> None:
    layer, conv = KOrigins(2, origins(6, 2)), nn.Conv2d(14, 8, 3, padding=1)
    before = [p.clone() for p in (*layer.parameters(), *conv.parameters())]
    folded = fold_korigins(layer, conv)
    assert [p.shape for p in folded.parameters()] == [(8, 2, 3, 3), (8,)]
    with torch.no_grad():
        for p in folded.parameters():
            p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (*layer.parameters(), *conv.parameters()), strict=True))


def test_folded_needs_no_correction_away_from_the_border() -> None:
    layer, conv = KOrigins(1, origins(2, 1)).double(), nn.Conv2d(3, 2, 3, padding=1).double()
    folded, x = fold_korigins(layer, conv), intensities(1, 1, 8, 8, dtype=torch.float64)
    expected = conv(layer(x))
    plain = folded.conv(x)
    torch.testing.assert_close(plain[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert not torch.allclose(plain[..., 0, :], expected[..., 0, :])


def test_folded_follows_size_dtype_state_and_grad_mode() -> None:
    torch.manual_seed(0)
    layer, conv = KOrigins(1, origins(2, 1)), nn.Conv2d(3, 2, 3, padding=1)
    other_conv = nn.Conv2d(3, 2, 3, padding=1)
    folded, other = fold_korigins(layer, conv), fold_korigins(layer, other_conv)
    small, large = intensities(1, 1, 6, 6), intensities(1, 1, 9, 6)
    tolerance = {"rtol": 0, "atol": 1e-2}  # of responses near 10^4
    with torch.inference_mode():
        for x in (small, large, small):
            torch.testing.assert_close(folded(x), conv(layer(x)), **tolerance)
    x = small.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(folded(x).square().sum(), x)
    (expected,) = torch.autograd.grad(conv(layer(x)).square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    other.load_state_dict(folded.state_dict())
    torch.testing.assert_close(other(small), conv(layer(small)), **tolerance)
    folded.load_state_dict(fold_korigins(layer, other_conv).state_dict())
    torch.testing.assert_close(folded(small), other_conv(layer(small)), **tolerance)
    double = copy.deepcopy(other).double()
    assert double(small.double()).dtype == torch.float64
    stream = io.BytesIO()
    torch.save(other, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(small), other(small))


def test_folded_keeps_raw_intensities_under_autocast() -> None:
    layer, conv = KOrigins(1, origins(2, 1)), nn.Conv2d(3, 2, 3, padding=1)
    folded, x = fold_korigins(layer, conv), intensities(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = folded(x)
    assert torch.equal(y, folded(x))


def test_what_cannot_be_folded_is_named() -> None:
    layer = KOrigins(2, [1.0])
    with pytest.raises(ConfigError, match="conv: expected padding_mode 'zeros' to fold, got 'reflect'"):
        fold_korigins(layer, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ConfigError, match="conv: expected groups 1 to fold, got 2"):
        fold_korigins(layer, nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ConfigError, match="conv: expected in_channels 4, .*, got 5"):
        fold_korigins(layer, nn.Conv2d(5, 4, 3))
    with pytest.raises(ConfigError, match=r"conv: expected a torch\.nn\.Conv2d to fold, got a ConvTranspose2d"):
        fold_korigins(layer, nn.ConvTranspose2d(4, 4, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("tracks", [False, True])
def test_a_folded_convolution_takes_one_picture_as_a_convolution_does(tracks: bool) -> None:
    torch.manual_seed(0)
    korigins, conv = KOrigins(2, [3.0, -7.0]), nn.Conv2d(6, 3, 3, padding=1)
    folded, x = fold_korigins(korigins, conv), 10 * torch.rand(2, 6, 7)
    alone = torch.jit.trace(folded, (x,))(x) if tracks else folded(x)
    torch.testing.assert_close(alone, conv(korigins(x[None]))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_one_picture_is_taken_as_a_convolution_takes_it(concat: bool, dtype: torch.dtype) -> None:
    layer = KOrigins(2, [3.0, -7.0], concat_input=concat)
    x = torch.randint(0, 200, (2, 6, 7)).to(dtype)
    expected = torch.stack([x[c].float() - w for w in [0.0, 3.0, -7.0][not concat :] for c in range(2)])
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x[None]), expected[None])
    conv = nn.Conv2d(layer.out_channels, 3, 3, padding=1)
    torch.testing.assert_close(convolve_folded(x, layer, conv), conv(layer(x[None]))[0], rtol=1e-4, atol=1e-3)
    for shape in ((6, 7), (1, 1, 2, 6, 7), (3, 6, 7)):
        with pytest.raises(ConfigError, match=r"image: expected \(B, in_channels=2, H, W\) or \(2, H, W\), got"):
            layer(torch.zeros(shape))


def test_origins_without_values_make_a_layer_without_values() -> None:
    with torch.device("meta"):
        layer = KOrigins(2, torch.zeros(3, 2))
    assert layer.weight.is_meta
    layer.load_state_dict(KOrigins(2, [1.0, 2.0, 3.0]).state_dict(), assign=True)
    assert layer.weight.tolist() == [[1.0] * 2, [2.0] * 2, [3.0] * 2]


def test_folding_works_on_the_meta_device() -> None:
    folded = fold_korigins(KOrigins(2, [3.0, -7.0], device="meta"), nn.Conv2d(6, 3, 3, device="meta"))
    assert folded.weight.is_meta
    assert folded(torch.empty(1, 2, 9, 9, device="meta")).shape == (1, 3, 7, 7)
