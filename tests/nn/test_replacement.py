"""Weights come back bitwise, recalibration does what it says, the shared prefix changes nothing."""

import pytest
import torch
from torch import nn

from framework.errors import ConfigError
from framework.nn import SharedPrefix, evaluating, recalibrated, reference_statistics, swapped


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 1), *([nn.BatchNorm2d(8)] if norm else [])]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return net.eval()


def depthwise(net: nn.Module) -> list[nn.Conv2d]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def state(net: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_weights_come_back_bitwise_whatever_happens(error: type[BaseException]) -> None:
    net = network()
    depthwise(net)[0].weight.data[0, 0, 0, 0] = float("nan")
    depthwise(net)[0].weight.data[0, 0, 0, 1] = -0.0
    before = state(net)
    changes = [(conv.weight, torch.randn_like(conv.weight)) for conv in depthwise(net)]

    def evaluate() -> None:
        with swapped(changes):
            assert torch.equal(depthwise(net)[1].weight, changes[1][1])
            raise error

    with pytest.raises(error):
        evaluate()
    assert state(net) == before


def test_a_value_of_the_wrong_shape_leaves_nothing_behind() -> None:
    net = network()
    before = state(net)
    first, second = depthwise(net)
    with pytest.raises(RuntimeError), swapped([(first.weight, torch.ones(8, 1, 3, 3)), (second.weight, torch.ones(5))]):
        pass
    assert state(net) == before


def test_modes_come_back_module_by_module() -> None:
    net = network().train()
    net[3].eval()
    modes = [m.training for m in net.modules()]
    with evaluating(net):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in net.modules()] == modes


@pytest.mark.parametrize("norm", [True, False])
def test_affine_recalibration_restores_mean_and_std_of_every_pre_activation(norm: bool) -> None:
    net, x = network(norm), torch.randn(16, 3, 9, 9)
    before = state(net)
    convs = depthwise(net)
    reference = reference_statistics(net, net, convs, x)
    changes = [(c.weight, 0.3 * torch.randn_like(c.weight) + 0.1) for c in convs]
    tuned = recalibrated(net, net, changes, reference, x)
    assert state(net) == before
    assert len(reference.layers) == (4 if norm else 2)
    with swapped(tuned), evaluating(net):
        again = reference_statistics(net, net, convs, x)
        assert convs[0].weight.any()
    for (mean, std), (wanted, wanted_std) in zip(again.moments, reference.moments, strict=True):
        torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std, wanted_std, rtol=1e-4, atol=1e-4)
    if not norm:
        # direction of the bank is kept: only the gain of a channel changes
        kept = {id(target): value for target, value in tuned}
        for conv, (_, value) in zip(convs, changes, strict=True):
            cosine = torch.cosine_similarity(kept[id(conv.weight)].flatten(1), value.flatten(1))
            torch.testing.assert_close(cosine, torch.ones(8), rtol=0, atol=1e-5)


def test_recalibrating_the_untouched_network_changes_nothing() -> None:
    net, x = network(), torch.randn(16, 3, 9, 9)
    reference = reference_statistics(net, net, depthwise(net), x)
    expected = net(x)
    with swapped(recalibrated(net, net, [], reference, x)):
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_statistics_recalibration_is_what_training_mode_would_normalise_by() -> None:
    net, x = network(), torch.randn(16, 3, 9, 9)
    reference = reference_statistics(net, net, depthwise(net), x)
    tuned = recalibrated(net, net, [], reference, x, "statistics")
    with swapped(tuned), torch.no_grad():
        ours = net(x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        torch.testing.assert_close(ours, net(x), rtol=1e-4, atol=1e-4)


def test_recalibration_says_what_is_missing() -> None:
    bare = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, bias=False))
    with pytest.raises(ConfigError, match="nothing to recalibrate with"):
        reference_statistics(bare, bare, depthwise(bare), torch.randn(2, 3, 5, 5))
    net, x = network(norm=False), torch.randn(4, 3, 9, 9)
    reference = reference_statistics(net, net, depthwise(net), x)
    with pytest.raises(ConfigError, match="'statistics' needs batch norms"):
        recalibrated(net, net, [], reference, x, "statistics")


def test_shared_prefix_gives_bitwise_the_same_output_and_saves_its_part() -> None:
    net, x = network(), torch.randn(2, 3, 9, 9)
    calls: list[nn.Module] = []
    net[0].register_forward_hook(lambda m, i, o: calls.append(m))
    prefix = SharedPrefix(net, depthwise(net))
    other = [(c.weight, torch.randn_like(c.weight)) for c in depthwise(net)]
    with torch.no_grad():
        with swapped(other):
            expected = net(x)
        with prefix.record():
            net(x)
        calls.clear()
        stem = net[0].forward
        with swapped(other), prefix.replay():
            assert torch.equal(net(x), expected)
            # the hook still runs, the convolution does not
            assert torch.equal(net[0](torch.zeros(1)), net[0](torch.ones(1)))
        assert net[0].forward == stem
        assert torch.equal(net(x), network()(x))
