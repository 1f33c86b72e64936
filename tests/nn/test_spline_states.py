"""Spline layers and what is loaded, normed, pruned and copied: by the layer that wrote it, or by name refused."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from framework.errors import CheckpointError, ConfigError
from framework.nn import KANConv2d, KANLinear
from framework.nn.splines import stored


def filled(**options: Any) -> KANLinear:
    torch.manual_seed(0)
    layer = KANLinear(3, 2, **options)
    with torch.no_grad():
        for name in ("shapes", "coefficients"):
            if name in dict(layer.named_parameters()):
                getattr(layer, name)[: layer.basis].normal_()
        if layer.rank is not None:
            layer.mix.normal_()
    return layer


# ---------------------------------------------------------------------- shapes of another grid


@pytest.mark.parametrize("other", [{"grid_size": 7}, {"grid_range": (-1, 1)}, {"grid_size": 10}])
def test_shapes_of_equal_size_and_another_grid_are_taken_over(other: Any) -> None:
    written = filled(rank=2, grid_size=5, max_grid_size=10)
    read = filled(rank=2, **{"grid_size": 5, "max_grid_size": 10, **other})
    assert read.shapes.shape == written.shapes.shape
    read.load_state_dict(written.state_dict())
    whole = KANLinear(3, 2, **{"grid_size": 5, "max_grid_size": 10, **other})
    whole.load_state_dict(written.state_dict())  # by the edges' own coefficients
    x = torch.linspace(-0.99, 0.99, 60).view(-1, 3) * min(whole.grid.high, 3)
    torch.testing.assert_close(read(x), whole(x), rtol=1e-4, atol=1e-4)
    assert read.grid == whole.grid
    if other.get("grid_size") != 7:  # seven cells cannot hold five
        torch.testing.assert_close(read(x), written(x), rtol=1e-4, atol=1e-4)


def test_shapes_of_equal_size_and_another_degree_are_refused() -> None:
    written = filled(rank=2, grid_size=6, spline_order=2)
    with pytest.raises(CheckpointError, match="spline_order: the checkpoint's layer has degree 2, the layer has 3"):
        nn.ModuleDict({"layer": filled(rank=2, grid_size=5)}).load_state_dict(
            nn.ModuleDict({"layer": written}).state_dict()
        )


@pytest.mark.parametrize("way", ["weight_norm", "older", "prune"])
@pytest.mark.parametrize("rank", [None, 2])
def test_computed_coefficients_of_another_grid_are_refused(way: str, rank: int | None) -> None:
    layers = [filled(rank=rank, grid_range=r) for r in ((-1, 1), (-3, 3))]
    name = "coefficients" if rank is None else "mix"
    for layer in layers:
        if way == "weight_norm":
            parametrizations.weight_norm(layer, name)
        elif way == "older":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own deprecation
                nn.utils.weight_norm(layer, name)
        else:
            prune.l1_unstructured(layer, name, 0.5)
    with pytest.raises(RuntimeError, match=r"stored on 5 cells of \(-1.0, 1.0\)"):
        layers[1].load_state_dict(layers[0].state_dict())

    layers[0].load_state_dict(layers[0].state_dict())


# ---------------------------------------------------------------------- a state without its grid, or on another device


def test_a_state_without_the_grids_numbers_is_known_by_its_code() -> None:
    written, read = filled(grid_range=(-1, 1)), filled()
    state = {name: value for name, value in written.state_dict().items() if name != "_extra_state"}
    with pytest.raises(RuntimeError, match="grid_code: expected that of the layer's grid"):
        read.load_state_dict(state, strict=False)
    written.load_state_dict(state, strict=False)
    own = filled()
    own.load_state_dict({n: v for n, v in read.state_dict().items() if n != "_extra_state"}, strict=False)
    del state["grid_code"]  # of before the code: nothing to know it by
    read.load_state_dict(state, strict=False)


def test_assigned_tensors_stay_on_their_device_whatever_the_default() -> None:
    state = filled().state_dict()
    with torch.device("meta"):
        layer = KANLinear(3, 2)
        layer.load_state_dict(state, assign=True)
    assert {t.device.type for t in [*layer.parameters(), *layer.buffers()]} == {"cpu"}
    torch.testing.assert_close(layer(torch.ones(1, 3)), filled()(torch.ones(1, 3)))


# ---------------------------------------------------------------------- ranks


def parametrised(layer: KANLinear) -> KANLinear:
    return parametrizations.weight_norm(layer, "mix")  # type: ignore[return-value]


def pruned(layer: KANLinear) -> KANLinear:
    return prune.identity(layer, "mix")  # type: ignore[no-any-return]


def replica(layer: KANLinear) -> KANLinear:
    """As torch.nn.DataParallel makes them: parameters become plain attributes."""
    made = layer._replicate_for_data_parallel()
    for name, parameter in layer._parameters.items():
        if parameter is None:
            made._parameters[name] = None
        else:
            setattr(made, name, parameter.detach().clone())
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("change", [parametrised, pruned, replica])
def test_a_computed_mixture_is_a_mixture(change: Any) -> None:
    layer, x = filled(rank=2), torch.randn(5, 3)
    before, coefficients = layer(x).detach(), layer.coefficients.detach()
    changed = change(layer)
    torch.testing.assert_close(changed(x).detach(), before)
    torch.testing.assert_close(changed.coefficients.detach(), coefficients)


def test_a_layer_of_a_low_rank_does_not_compose_its_edges_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = filled(rank=2)
    monkeypatch.setattr(stored, "compose", None)
    assert layer(torch.randn(2, 3)).dtype == torch.float32
    assert layer.double()(torch.randn(2, 3)).dtype == torch.float64
    monkeypatch.undo()
    assert layer.edge_values(torch.zeros(4)).shape == (4, 2, 3)


def test_shapes_that_a_file_does_not_need_can_learn() -> None:
    whole, layer = filled(), KANLinear(3, 2, rank=8)
    layer.load_state_dict(whole.state_dict())
    x = torch.randn(64, 3)
    torch.testing.assert_close(layer(x), whole(x), rtol=1e-4, atol=1e-5)
    assert (layer.mix[2:] == 0).all()  # two outputs need two shapes of a channel
    torch.testing.assert_close(layer.shapes[:, 2:], KANLinear(3, 2, rank=8).shapes[:, 2:])
    (layer(x).sin().sum()).backward()
    assert (layer.mix.grad.flatten(1).abs().amax(1) > 0).all()


# ---------------------------------------------------------------------- room to grow


def test_a_norm_of_every_row_and_room_to_grow_exclude_each_other() -> None:
    x = torch.randn(4, 3)
    for norm in (parametrizations.weight_norm, nn.utils.weight_norm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecation
            layer = norm(KANLinear(3, 2, max_grid_size=10), "coefficients")
            tight, other = (
                norm(KANLinear(3, 2), "coefficients"),
                norm(KANLinear(3, 2, max_grid_size=10), "coefficients", 1),
            )
        with pytest.raises(ConfigError, match="max_grid_size: expected 5, the cells in use"):
            layer(x)
        assert layer.eval()(x).isfinite().all()
        for fine in (tight, other):
            fine(x).sum().backward()
            assert all(bool(p.grad.isfinite().all()) for p in fine.parameters())


@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
def test_a_finer_grid_is_the_same_function_where_it_says_so(tail: Any) -> None:
    layer = filled(max_grid_size=10, tail=tail)
    x = torch.linspace(-8, 8, 300).view(-1, 3)
    before, inside = layer(x).detach(), (x.abs() <= 3).all(1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layer.extend_grid()
    off = (layer(x) - before).abs().amax(1)
    assert off[inside].max() < 1e-5
    assert (off.max() > 0.01) == (tail == "zero") == any("tail: with zero" in str(w.message) for w in said)


# ---------------------------------------------------------------------- the code of a grid on an accelerator


def test_an_unchanged_code_is_not_looked_at_again() -> None:
    layer = filled()
    code = layer.grid_code
    assert [layer._found_right(code) for _ in range(3)] == [False, True, True]

    def changed(change: Any) -> bool:
        with torch.no_grad():
            change()
        return not layer._found_right(layer.grid_code)

    def in_inference() -> None:
        with torch.inference_mode():
            layer.grid_code.add_(1)

    assert changed(lambda: layer.grid_code.mul_(0.5))
    assert changed(lambda: torch._foreach_lerp_([layer.grid_code], [torch.ones(4)], 0.1))
    assert changed(lambda: layer.grid_code.copy_(torch.ones(4)))
    assert changed(in_inference)
    assert changed(lambda: layer.load_state_dict(filled().state_dict()))
    assert changed(lambda: layer.load_state_dict(filled(grid_range=(-1, 1)).state_dict(), assign=True))
    assert changed(lambda: setattr(layer, "grid", filled(tail="zero").grid))
    assert not changed(lambda: None)
    assert not copy.deepcopy(layer)._found_right(layer.grid_code)
    layer.grid_code.add_(1)
    assert layer._found_right(layer.grid_code) is False
    with pytest.raises(ConfigError, match="another grid"):
        layer.check_grid()
    assert layer._found_right(layer.grid_code) is False  # what was refused was not found right


def test_nothing_is_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice:
        is_cuda = True

    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: asked.append(True) or True)
    assert stored.capturing(OnDevice())  # type: ignore[arg-type]
    assert not stored.capturing(torch.zeros(4))
    assert asked == [True]


def test_grouped_shapes_of_equal_size_and_another_grid_are_taken_over() -> None:
    """Groups and kernels too: the edges of the file are those of the layer that reads it."""
    torch.manual_seed(0)
    written = KANConv2d(4, 4, 3, groups=2, rank=2, grid_size=5, max_grid_size=10)
    with torch.no_grad():
        written.shapes[: written.basis].normal_()
        written.mix.normal_()
    read = KANConv2d(4, 4, 3, groups=2, rank=2, grid_size=10)
    read.load_state_dict(written.state_dict())
    x: Tensor = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(read(x), written(x), rtol=1e-4, atol=1e-4)
    assert read.grid_size == 10
