"""The convolution behind frozen origins, folded while it trains: values and gradients of the unfolded form."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.device.count import Launches
from framework.nn import KOrigins
from framework.nn.origins.korigins import convolve_folded
from models.korigins.network import KOriginsConv
from tests.helpers.accelerator import Accelerator


def gradients(out: Tensor, x: Tensor, conv: nn.Conv2d) -> list[Tensor]:
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), [x, *conv.parameters()]))


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": (2, 0), "stride": 2}, {"padding": 2, "dilation": 2}, {"bias": False, "padding": 1}],
    ids=str,
)
@pytest.mark.parametrize("concat", [True, False])
def test_values_and_gradients_are_those_of_the_unfolded_form(options: dict, concat: bool) -> None:
    torch.manual_seed(0)
    layer = KOrigins(2, [10000.0, 20000.0, 30000.0], concat_input=concat, trainable=False)
    conv = nn.Conv2d(layer.out_channels, 3, 3, **options).double()
    x = (20000 + 5000 * torch.randn(2, 2, 7, 8, dtype=torch.float64)).requires_grad_()
    folded, plain = convolve_folded(x, layer, conv), conv(layer(x))
    torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-7)
    for ours, theirs in zip(gradients(folded, x, conv), gradients(plain, x, conv), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-7)


def test_in_float32_the_gradients_are_as_near_to_the_exact_ones_as_the_unfolded_ones() -> None:
    torch.manual_seed(0)
    layer = KOrigins(1, [10000.0, 20000.0], trainable=False)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = (20000 + 5000 * torch.randn(2, 1, 40, 40)).requires_grad_()
    exact = gradients(conv.double()(layer(x.double())), x, conv)[1]
    conv.float()
    errors = [
        float((gradients(out, x, conv)[1].double() - exact).norm() / exact.norm())
        for out in (convolve_folded(x, layer, conv), conv(layer(x)))
    ]
    assert errors[0] < max(1e-5, 10 * errors[1])


@pytest.mark.parametrize("trainable", [True, False])
def test_an_accelerator_folds_in_training_where_origins_are_frozen(trainable: bool) -> None:
    torch.manual_seed(0)
    layer = KOrigins(1, [100.0, 200.0], trainable=trainable)
    block = KOriginsConv(layer, nn.Conv2d(3, 4, 3, padding=1)).train()
    x = 150 + 50 * torch.randn(1, 1, 6, 6)
    expected = block(x)
    with Accelerator(), Launches() as seen:
        found = block.to("cuda")(x.to("cuda"))
    torch.testing.assert_close(found.held, expected, rtol=1e-4, atol=1e-3)  # type: ignore[attr-defined]
    assert ("aten::einsum" in seen.counts or seen.counts["aten::bmm"] > 0) is not trainable
