"""Edge strength against brute force, what pruning removes and keeps, and smaller networks of the same function."""

from pathlib import Path
from typing import TypeVar

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import SplinePruning
from framework.compat import averaged_models
from framework.distributed import checksum
from framework.errors import CheckpointError, ConfigError
from framework.nn import KANConv2d, KANLinear, SplineMoments, observe, spline_layers
from framework.nn.splines.moments import histogram_range
from framework.nn.splines.pruning import add_group_lasso_gradient, choose_edges, edge_scores, group_lasso
from models import KMUNet
from tests.callbacks.test_grid_extension import AVERAGES, Foreign, cells, quiet, resumed, small
from tests.kmunet_words import TINY_KMUNET

Module = TypeVar("Module", bound=torch.nn.Module)


def noisy(module: Module) -> Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return module


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("base", [None, "silu"])
def test_edge_strength_is_the_deviation_of_every_edge(groups, base) -> None:
    layer = noisy(KANConv2d(4, 6, 3, groups=groups, base=base, dtype=torch.float64))
    x = 2 * torch.randn(3, 4, 9, 9, dtype=torch.float64)
    with observe({"layer": layer}) as moments:
        layer(x)
    strength = layer.edge_strength(moments["layer"])
    for o, c, i, j in ((0, 0, 0, 0), (5, 1, 2, 1), (3, 1, 1, 2)):
        channel = o // (6 // groups) * (4 // groups) + c
        with torch.no_grad():
            outputs = layer.edge_values(x[:, channel].flatten())[:, o, c, i, j]
        assert abs(float(strength[o, c, i, j] - outputs.std(unbiased=False))) < 1e-5 * float(outputs.std())
        assert abs(float(moments["layer"].edge_means(layer)[o, c, i, j] - outputs.mean())) < 1e-6
    assert moments["layer"].outside_fraction() == pytest.approx(float((x.abs() > 3).double().mean()), abs=1e-9)


def test_without_data_the_input_is_spread_evenly() -> None:
    layer = noisy(KANLinear(3, 2, dtype=torch.float64))
    points = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    with torch.no_grad():
        brute = layer.edge_values(points).std(0, unbiased=False)
    assert torch.allclose(layer.edge_strength(), brute, rtol=1e-4)


def test_the_histogram_of_inputs_reaches_half_a_grid_beyond_it() -> None:
    assert histogram_range(KANLinear(1, 1, grid_range=(-1.0, 3.0))) == (-3.0, 5.0)
    assert histogram_range(KANLinear(1, 1, grid_range=(-3.0, -1.0))) == (-4.0, 0.0)


def test_moments_of_parts_add_up() -> None:
    layer = KANConv2d(2, 2, 3)
    x = torch.randn(4, 2, 6, 6)
    with observe({"a": layer}) as parts:
        layer(x[:1])
        layer(x[1:])
    with observe({"a": layer}) as whole:
        layer(x)
    assert torch.allclose(parts["a"].covariance(), whole["a"].covariance(), atol=1e-6)
    assert not layer._forward_pre_hooks
    assert whole["a"].outside_fraction() == pytest.approx(float((x.abs() > 3).double().mean()), abs=1e-9)
    assert SplineMoments(2, layer.basis).outside_fraction() == 0


def test_the_group_lasso_gradient_is_autograds() -> None:
    layer = noisy(KANConv2d(3, 2, 3, base="silu", dtype=torch.float64))
    keep = torch.rand(layer.mask.shape) > 0.3
    layer.prune_edges(keep)
    with observe({"a": layer}) as moments:
        layer(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    layer.zero_grad(set_to_none=False)
    covariance = moments["a"].covariance()
    with torch.no_grad():  # a pruned edge costs nothing, not even the smoothing
        edges = layer.edge_coefficients()
        energy = [
            float(edges[:, o, c, i, j] @ covariance[c].to(edges) @ edges[:, o, c, i, j])
            for o, c, i, j in keep.nonzero()
        ]
    expected = sum((e + 1e-8) ** 0.5 for e in energy)
    assert float(group_lasso(layer, covariance)) == pytest.approx(expected, rel=1e-9)
    add_group_lasso_gradient(layer, covariance, 0.7)
    by_hand = [layer.coefficients.grad.clone(), layer.base_weight.grad.clone()]
    layer.zero_grad()
    (0.7 * group_lasso(layer, covariance)).backward()
    for expected, got in zip((layer.coefficients.grad, layer.base_weight.grad), by_hand, strict=True):
        assert torch.allclose(expected, got, atol=1e-10)


def test_pruned_edges_have_no_gradient_no_momentum_and_never_come_back() -> None:
    torch.manual_seed(0)
    layer = KANConv2d(3, 4, 3, padding=1, base="silu")
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    from framework.nn.splines.optimizer import stop_momentum

    def step():
        optimizer.zero_grad()
        (layer(torch.randn(2, 3, 8, 8)) - 1).square().mean().backward()
        optimizer.step()

    step()
    keep = torch.rand(layer.mask.shape) > 0.5
    layer.prune_edges(keep)
    stop_momentum(optimizer, layer)
    for _ in range(3):
        step()
        assert layer.coefficients.grad[:, ~keep].abs().sum() == 0
    assert layer.coefficients[:, ~keep].abs().sum() == 0
    assert layer.base_weight[~keep].abs().sum() == 0
    assert optimizer.state[layer.coefficients]["exp_avg"][:, ~keep].abs().sum() == 0
    assert layer.coefficients[:8, keep].abs().min() > 0


def test_the_mean_of_a_removed_edge_moves_into_a_survivor_of_its_output() -> None:
    def means(layer, x):
        with torch.no_grad():
            return layer(x).mean((0, 2, 3))

    # every edge of a 1x1 convolution sees every pixel, and every edge of a constant image sees the same value
    constant = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 7, 7)
    for size, x in ((1, torch.randn(4, 3, 9, 9, dtype=torch.float64)), (3, constant)):
        layer = noisy(KANConv2d(3, 2, size, dtype=torch.float64))
        with observe({"a": layer}) as moments:
            before = means(layer, x)
        keep = torch.zeros_like(layer.mask)
        keep[0, 1, 0, 0] = keep[1, 2, -1, 0] = True
        twin = noisy(KANConv2d(3, 2, size, dtype=torch.float64))
        twin.prune_edges(keep)
        layer.prune_edges(keep, moments["a"])
        assert (means(twin, x) - before).abs().max() > 0.01
        assert (means(layer, x) - before).abs().max() < 1e-6


def test_choices_reach_the_fraction_and_spare_the_strongest_of_every_output() -> None:
    layers = spline_layers(noisy(small(width=4).network))
    moments = {name: layer.uniform_moments() for name, layer in layers.items()}
    scores = edge_scores(layers, moments)
    total = sum(layer.mask.numel() for layer in layers.values())
    keep = choose_edges(layers, scores, 0.99)
    assert all(mask.flatten(1).any(1).all() for mask in keep.values())
    keep = choose_edges(layers, scores, 0.6)
    assert sum(int((~m).sum()) for m in keep.values()) == round(0.6 * total)
    removed = torch.cat([scores[n][~keep[n]] for n in layers])
    assert all((scores[n].flatten(1).max(1).values >= 0).all() for n in layers)
    kept = torch.cat([scores[n][keep[n]] for n in layers])
    assert removed.max() <= kept.quantile(0.2)
    kernel = choose_edges(layers, scores, 0.4, "kernel")
    for mask in kernel.values():
        flat = mask.flatten(2)
        assert (flat.all((0, 1)) | ~flat.any(1).any(0)).all()


def test_a_unit_that_overshoots_stays_and_channels_of_grouped_layers_too() -> None:
    layers = {"a": KANConv2d(4, 2, 3), "b": KANConv2d(4, 4, 1, groups=2)}
    scores = {name: torch.rand(layer.mask.shape) + 1 for name, layer in layers.items()}
    scores["a"][:, 2] = 0.1  # the weakest channel, 18 of 80 edges
    scores["b"][:] = 0.01
    for fraction, removed in ((0.1, 0), (0.12, 18), (0.225, 18), (0.3, 18)):
        keep = choose_edges(layers, scores, fraction, "channel")
        assert [int((~mask).sum()) for mask in keep.values()] == [removed, 0], fraction
    assert not keep["a"][:, 2].any()
    # channels that leave together: not where one of them is the last of its layer, nor in a grouped one
    groups = [[(layers["a"], 2), (layers["b"], 1)], [(layers["a"], 0)], [(layers["a"], 1), (layers["a"], 3)]]
    scores["a"][:, 3] = 9.0
    keep = choose_edges(layers, scores, 0.9, "channel", groups)
    assert [bool(keep["a"][:, c].any()) for c in range(4)] == [False, True, True, True]
    assert keep["b"].all()


@pytest.mark.parametrize("granularity", ["edge", "kernel", "channel"])
def test_resume_between_two_prunings_equals_the_uninterrupted_run(tmp_path, granularity) -> None:
    def make() -> KMUNet:
        torch.manual_seed(0)
        return small()

    def callback() -> SplinePruning:
        return SplinePruning(epochs=[1, 2], fraction=0.4, granularity=granularity, sparsity=1e-4)

    whole, rest, _, _ = resumed(tmp_path, make, callback)
    assert checksum(whole.state_dict()) == checksum(rest.state_dict())
    layers = spline_layers(rest).values()
    removed = 1 - sum(int(x.mask.sum()) for x in layers) / sum(x.mask.numel() for x in layers)
    assert 0.3 < removed < 0.45
    for layer in layers:
        assert layer.coefficients[:, ~layer.live].abs().sum() == 0


def test_the_event_is_logged(tmp_path) -> None:
    logger = CSVLogger(tmp_path)
    callback = SplinePruning(epochs=[1, 2], fraction=0.4)
    quiet(tmp_path, max_epochs=3, callbacks=[callback], logger=logger).fit(small(), cells())
    log = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert log["prune/removed"].dropna().tolist() == pytest.approx([0.2, 0.4], abs=0.01)
    assert log["prune/live_parameters"].dropna().is_monotonic_decreasing
    assert log["prune/function_change"].dropna().between(0, 0.5).all()


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@pytest.mark.parametrize("spline_stages", [None, [1, 2]])
def test_structural_removal_keeps_the_function_and_makes_the_network_smaller(up, spline_stages) -> None:
    torch.manual_seed(0)
    model = noisy(KMUNet(num_classes=3, width=4, stages=2, up=up, spline_stages=spline_stages, base="silu"))
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad(), observe(spline_layers(model.network)) as moments:
        model(x)
    layers = spline_layers(model.network)
    scores = edge_scores(layers, moments)
    keep = choose_edges(layers, scores, 0.4, "channel", model.channel_groups())
    for name, layer in layers.items():
        layer.prune_edges(keep[name], moments[name])
    positions = choose_edges(layers, edge_scores(layers, moments), 0.7, "kernel")
    for name, layer in layers.items():
        layer.prune_edges(positions[name], moments[name])
    model.eval()
    smaller = model.shrunk().eval()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    assert sizes[1] < 0.7 * sizes[0]
    assert (smaller(x) - model(x)).abs().max() < 1e-4 * model(x).abs().max()
    again = KMUNet(**dict(smaller.hparams))
    again.load_state_dict(smaller.state_dict())


def test_kernel_borders_without_edges_are_cut_off() -> None:
    model = noisy(KMUNet(width=2, stages=1))
    layer = model.network.units["down_1_b"].conv
    keep = torch.zeros_like(layer.mask)
    keep[..., 1, :] = True
    layer.prune_edges(keep)
    x = torch.randn(1, 1, 8, 8)
    model.eval()
    smaller = model.shrunk().eval()
    assert smaller.network.units["down_1_b"].conv.kernel_size == (1, 3)
    assert (smaller(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()


def test_the_structural_step_writes_a_checkpoint_that_the_command_line_tests(run, tmp_path) -> None:
    callback = SplinePruning(epochs=[1], fraction=0.4, granularity="channel", structural=True)
    model, logger = small(width=4), CSVLogger(tmp_path)
    quiet(tmp_path, max_epochs=2, callbacks=[callback], logger=logger).fit(model, cells())
    path = Path(logger.log_dir) / "checkpoints" / "shrunk.ckpt"
    words = [*TINY_KMUNET, "--model.width=4", "--trainer.logger=false", "--trainer.callbacks", "[]"]
    tested = run("test", *words, "--ckpt_path", str(path))
    assert sum(p.numel() for p in tested.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert "test/dice" in tested.trainer.callback_metrics


@pytest.mark.parametrize("structural", [False, True])
def test_the_smaller_network_is_written_where_it_is_asked_for_and_whole(tmp_path, structural) -> None:
    logger = CSVLogger(tmp_path)
    callback = SplinePruning(epochs=[1], fraction=0.4, granularity="channel", structural=structural)
    trainer = quiet(tmp_path, max_epochs=2, callbacks=[callback], logger=logger)
    folder = Path(logger.log_dir) / "checkpoints"
    (folder / "shrunk.ckpt" / "in the way").mkdir(parents=True)
    if structural:
        with pytest.raises(CheckpointError, match=r"shrunk\.ckpt: cannot be written .*; nothing was replaced"):
            trainer.fit(small(), cells())
    else:
        trainer.fit(small(), cells())
    assert [path.name for path in folder.iterdir()] == ["shrunk.ckpt"]


def test_it_acts_on_any_module(tmp_path) -> None:
    model = Foreign()
    quiet(tmp_path, max_epochs=2, callbacks=[SplinePruning(epochs=[1])]).fit(model, cells())
    assert 0.4 < 1 - model.inner[0].mask.float().mean() < 0.6


class ComparesCopies(SplinePruning):
    """Keeps the averaged copy's edge means and coefficients from before and after the event."""

    def prune(self, trainer, pl_module, fraction) -> None:
        (copy,) = averaged_models(trainer)
        self.seen = []
        for _ in range(2):
            layers = spline_layers(copy)
            means = {name: self._moments[name].edge_means(layer) for name, layer in layers.items()}
            self.seen.append((means, {name: layer.coefficients.detach().clone() for name, layer in layers.items()}))
            if len(self.seen) == 1:
                super().prune(trainer, pl_module, fraction)
        self.masks = [{n: x.live.clone() for n, x in spline_layers(m).items()} for m in (copy, pl_module)]


@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_copies_lose_the_same_edges_and_keep_their_own_means(tmp_path, average) -> None:
    callback = ComparesCopies(epochs=[2], fraction=0.4)
    quiet(tmp_path, max_epochs=3, callbacks=[callback, AVERAGES[average]()]).fit(small(), cells())
    assert torch.cat([mask.flatten() for mask in callback.masks[0].values()]).float().mean() < 0.65
    (means, before), (means_after, after) = callback.seen
    for name, mask in callback.masks[0].items():
        assert torch.equal(mask, callback.masks[1][name])
        assert after[name][:, ~mask].abs().sum() == 0
        # a survivor moves by a constant at most, and the mean of every output stays
        moved = (after[name] - before[name])[:8, mask]
        assert (moved - moved[0]).abs().max() < 1e-6
        assert torch.allclose(means[name].flatten(1).sum(1), means_after[name].flatten(1).sum(1), atol=1e-6)


def test_a_grid_that_has_just_grown_is_observed_before_it_is_pruned(tmp_path) -> None:
    from callbacks import GridExtension

    model, pruning = small(), SplinePruning(epochs=[1])
    callbacks = [GridExtension(milestones=[1]), pruning]
    quiet(tmp_path, max_epochs=3, callbacks=callbacks).fit(model, cells())
    assert pruning.done == [1]
    masks = [layer.live for layer in spline_layers(model).values()]
    assert sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) < 0.55


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": []}, "SplinePruning.epochs: expected different epochs"),
        ({"epochs": [0]}, "1 or more"),
        ({"epochs": [1], "fraction": 1.0}, "1 would remove everything"),
        ({"epochs": [1], "granularity": "row"}, "granularity: expected edge, kernel or channel"),
        ({"epochs": [1], "score": "l1"}, "score"),
        ({"epochs": [1], "sparsity": -1}, "sparsity"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SplinePruning(**arguments)


def test_pruning_everything_is_refused() -> None:
    layer = KANConv2d(2, 2, 3)
    with pytest.raises(ConfigError, match="no edge of the layer would be left"):
        layer.prune_edges(torch.zeros_like(layer.mask))
    with pytest.raises(ConfigError, match="expected a bool tensor"):
        layer.prune_edges(torch.ones(2, 2))
    with pytest.raises(ConfigError, match="1 would remove everything"):
        choose_edges({"a": layer}, {"a": layer.edge_strength()}, 1.0)


def test_modules_it_cannot_work_on_are_told(tmp_path) -> None:
    with pytest.raises(ConfigError, match="has no framework.nn spline layer"):
        quiet(tmp_path, max_epochs=1, callbacks=[SplinePruning(epochs=[1])]).fit(small(baseline=2), cells())
    trainer = quiet(tmp_path, max_epochs=2, callbacks=[SplinePruning(epochs=[1])])
    with pytest.raises(ConfigError, match="share 2 shapes, so that neither the grid nor single edges"):
        trainer.fit(small(rank=2), cells())
    assert trainer.global_step == 0
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[SplinePruning(epochs=[1], structural=True)])
    with pytest.raises(ConfigError, match=r"Foreign has no method shrunk\(\)"):
        trainer.fit(Foreign(), cells())
