"""What a layer keeps beside its parameters follows them, or the layer refuses to run."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from framework.errors import ConfigError
from framework.nn import (
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    KOrigins,
    ScaleSpaceDepthwiseConv2d,
    fold_korigins,
    idealised_bank,
    key_filter,
)
from framework.nn.filters.scale_space import difference_matrix

SPLINES = {
    "KANLinear": (lambda **k: KANLinear(3, 4, **k), (5, 3)),
    "KANConv2d": (lambda **k: KANConv2d(3, 4, 3, padding=1, **k), (2, 3, 5, 6)),
    "KANConvTranspose2d": (lambda **k: KANConvTranspose2d(3, 4, 2, stride=2, **k), (2, 3, 3, 4)),
}


@pytest.fixture(params=SPLINES)
def spline(request):
    torch.manual_seed(0)
    build, shape = SPLINES[request.param]
    layer = build(grid_size=4, max_grid_size=8, base="silu")
    with torch.no_grad():
        layer.coefficients[: layer.basis].normal_()
    return layer, torch.randn(shape)


# ---------------------------------------------------------------------- nothing kept belongs to a mode


def test_a_fake_mode_or_an_export_leaves_nothing_behind() -> None:
    sizes = (23, 25)  # no other test asks for these
    with FakeTensorMode():
        key_filter(5, 1.0, size=sizes[0])
        difference_matrix("central", sizes[0])
    assert type(difference_matrix("central", sizes[0])) is torch.Tensor
    assert key_filter(5, 1.0, size=sizes[0]).isfinite().all()
    torch.export.export(ScaleSpaceDepthwiseConv2d(8, sizes[1]), (torch.randn(1, 8, 30, 30),))
    assert ScaleSpaceDepthwiseConv2d(8, sizes[1])(torch.randn(1, 8, 30, 30)).isfinite().all()
    assert idealised_bank("B", sizes[1]).isfinite().all()


# ---------------------------------------------------------------------- derived from the tensor, not kept


@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 1), (2, 1, (2, 1)), (1, 2, "same"), (3, 2, 3)])
def test_a_folded_border_follows_tap_bias(stride, dilation, padding) -> None:
    torch.manual_seed(0)
    korigins = KOrigins(2, [3.0, -7.0])
    conv = nn.Conv2d(6, 3, (3, 4), stride, padding, dilation).double()
    folded = fold_korigins(korigins, conv)
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    reference = conv(korigins.double()(x))
    torch.testing.assert_close(folded(x), reference, rtol=1e-12, atol=1e-10)
    other = fold_korigins(KOrigins(2, [1.0, 2.0]), conv)
    with torch.no_grad():
        folded.tap_bias.data.copy_(other.tap_bias)
        folded.conv.bias.copy_(other.conv.bias)
    torch.testing.assert_close(folded(x), other(x), rtol=0, atol=0)
    state = fold_korigins(korigins, conv).state_dict()
    torch.testing.assert_close(torch.func.functional_call(folded, state, (x,)), reference, rtol=1e-12, atol=1e-10)
    batched = torch.func.vmap(folded, in_dims=1, out_dims=1)(torch.stack([x, 2 * x], 1))
    torch.testing.assert_close(batched[:, 1], folded(2 * x), rtol=1e-12, atol=1e-10)


def test_scale_space_kernels_follow_their_operators() -> None:
    layer = ScaleSpaceDepthwiseConv2d(8, 7, sigma=torch.linspace(0.4, 2.0, 16).view(8, 2)).double()
    for shift in range(3):
        with torch.no_grad():
            layer.operator.copy_((torch.arange(8) + shift) % 8 + 1)
        for channel, kernel in enumerate(layer.kernel()[:, 0]):
            index, sigma = int(layer.operator[channel]), layer.sigma[channel]
            own = key_filter(index, sigma[0], None if index == 7 else sigma[1], normalize="affine")
            torch.testing.assert_close(kernel, own, rtol=0, atol=1e-12)
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again.kernel(), layer.kernel(), rtol=0, atol=0)


# ---------------------------------------------------------------------- averaged copies


def test_an_averaged_copy_of_another_grid_refuses_to_run(spline) -> None:
    layer, x = spline
    averages = [AveragedModel(layer), AveragedModel(layer, use_buffers=True)]
    averages.append(AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True))
    for average in averages:
        average.update_parameters(layer)
        average.update_parameters(layer)
        torch.testing.assert_close(average(x), layer(x))
    before = layer(x).detach()
    layer.extend_grid(2)
    for average in averages:
        average.update_parameters(layer)
        with pytest.raises(ConfigError, match="another grid"):
            average(x)
    # state_dict values copied one by one, as other libraries' averages do
    own = KANLinear(3, 4, grid_size=4, max_grid_size=8)
    other = copy.deepcopy(own)
    own.extend_grid(2)
    for kept, value in zip(other.state_dict().values(), own.state_dict().values(), strict=True):
        kept.copy_(0.5 * kept + 0.5 * value)
    with pytest.raises(ConfigError, match="another grid"):
        other(torch.randn(2, 3))
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


def test_a_copy_that_is_extended_in_the_same_step_goes_on(spline) -> None:
    layer, x = spline
    average = AveragedModel(layer, use_buffers=True)
    average.update_parameters(layer)
    layer.extend_grid(2)
    average.module.extend_grid(2)
    average.update_parameters(layer)
    torch.testing.assert_close(average(x), layer(x))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_edge_pruned_in_one_average_is_pruned_in_the_copy(spline, use_buffers) -> None:
    layer, x = spline
    average = AveragedModel(layer, use_buffers=use_buffers)
    for _ in range(2):
        average.update_parameters(layer)
    keep = torch.rand(layer.mask.shape) > 0.5
    layer.prune_edges(keep)
    average.update_parameters(layer)
    assert torch.equal(average.module.live, keep)
    assert (average.module.edge_coefficients()[:, ~keep] == 0).all()
    average(x)


# ---------------------------------------------------------------------- computed coefficients, partial states


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def test_computed_coefficients_do_not_change_their_grid(spline) -> None:
    layer, x = spline
    before = layer(x).detach()
    parametrize.register_parametrization(layer, "coefficients", Doubled())
    torch.testing.assert_close(layer(x), before)
    for change in (layer.extend_grid, lambda: layer.refit_grid(3), lambda: layer.prune_edges(layer.live)):
        with pytest.raises(ConfigError, match="coefficients: they are computed"):
            change()
    torch.testing.assert_close(layer(x), before)
    parametrize.remove_parametrizations(layer, "coefficients")
    layer.extend_grid()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


def test_coefficients_pruned_by_torch_do_not_change_their_grid(spline) -> None:
    layer, x = spline
    prune.random_unstructured(layer, "coefficients", 0.5)
    before = layer(x).detach()
    with pytest.raises(ConfigError, match="coefficients: they are computed"):
        layer.extend_grid()
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("kind", ["parametrised", "pruned"])
def test_computed_coefficients_of_another_grid_do_not_load_in_silence(kind) -> None:
    layers = [KANLinear(3, 4, grid_size=g, max_grid_size=8) for g in (4, 8)]
    for layer in layers:
        if kind == "parametrised":
            parametrize.register_parametrization(layer, "coefficients", Doubled())
        else:
            prune.random_unstructured(layer, "coefficients", 0.5)
    with pytest.raises(RuntimeError, match="stored on 8 cells"):
        layers[0].load_state_dict(layers[1].state_dict())


def test_parameters_without_their_grid_do_not_load_in_silence(spline) -> None:
    layer, x = spline
    fresh = copy.deepcopy(layer)
    layer.extend_grid(2)
    with pytest.raises(RuntimeError, match="without their grid"):
        fresh.load_state_dict(dict(layer.named_parameters()), strict=False)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    fixed, own = (KANLinear(3, 4) for _ in range(2))  # without room there is but one grid
    fixed.load_state_dict(dict(own.named_parameters()), strict=False)


def test_states_of_before_the_code_and_with_bool_masks_load(spline) -> None:
    layer, x = spline
    layer.prune_edges(torch.rand(layer.mask.shape) > 0.3)
    layer.extend_grid(2)
    old = layer.state_dict()
    del old["grid_code"]
    old["mask"] = old["mask"].bool()
    fresh = KANLinear(3, 4, grid_size=4, max_grid_size=8, base="silu") if x.ndim == 2 else copy.deepcopy(layer)
    fresh.load_state_dict(old)
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_code_survives_casts_and_copies(spline, dtype) -> None:
    layer, x = spline
    layer.refit_grid(grid_range=(-2.7, 3.1))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied.to(dtype)(x.to(dtype))
