"""The networks of the K-Origins paper: sizes, receptive fields, initial values, folding and precision."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import FoldedKOrigins, KOrigins
from models.korigins.network import FAMILIES, KOriginsUNet, full_receptive_field, receptive_field

ORIGINS = [16000.0, 24000.0, 21000.0, 29000.0, 20700.0, 32700.0]  # augmentation preset: mu -+ 2 sigma of 3 classes


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(batch: int, side: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Raw 16-bit images with brighter and darker squares."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.full((batch, channels, side, side), 20000.0)
    means[..., 3 : side // 2, 5 : side // 2] = 25000.0
    means[..., side // 2 :, side // 4 : -2] = 16500.0
    return (means + 1500.0 * torch.randn(means.shape, generator=generator)).round()


# of the authors' networks: name -> counts
PLAIN = {
    8: (11522, 11539, 11590),
    18: (56706, 56723, 56774),
    38: (237186, 237203, 237254),
    78: (958594, 958611, 958662),
    14: (25410, 25427, 25478),
    32: (116770, 116787, 116838),
    68: (481762, 481779, 481830),
    140: (1940834, 1940851, 1940902),
}
# (K1 or None for 2 C, K_deep) -> name -> counts for C = 2, 3
WITH_ORIGINS = {
    (None, 1): {
        8: (16726, 17033),
        18: (80374, 80681),
        38: (334646, 334953),
        14: (30614, 30921),
        32: (140438, 140745),
        68: (579222, 579529),
    },
    (None, 3): {
        8: (25974, 26281),
        18: (126550, 126857),
        38: (528406, 528713),
        14: (39862, 40169),
        32: (186614, 186921),
        68: (772982, 773289),
    },
    (None, 4): {
        8: (30598, 30905),
        18: (149638, 149945),
        38: (625286, 625593),
        14: (44486, 44793),
        32: (209702, 210009),
        68: (869862, 870169),
    },
    (1, 1): {
        8: (16291, 16308),
        18: (79939, 79956),
        38: (334211, 334228),
        14: (30179, 30196),
        32: (140003, 140020),
        68: (578787, 578804),
    },
}


@pytest.mark.parametrize("rfl", PLAIN)
def test_golden_parameter_counts_of_the_plain_networks(rfl: int) -> None:
    assert tuple(parameters(KOriginsUNet(rfl, num_classes=c)) for c in (2, 3, 6)) == PLAIN[rfl]


@pytest.mark.parametrize(
    ("first", "deep", "rfl"), [(first, deep, rfl) for (first, deep), table in WITH_ORIGINS.items() for rfl in table]
)
def test_golden_parameter_counts_with_origins(first: int | None, deep: int, rfl: int) -> None:
    counts = tuple(
        parameters(KOriginsUNet(rfl, num_classes=c, origins=[20000.0] * (first or 2 * c), deep_origins=deep))
        for c in (2, 3)
    )
    assert counts == WITH_ORIGINS[first, deep][rfl]


@pytest.mark.parametrize(
    ("rfl", "classes", "count"),
    [(14, 2, 81234), (14, 3, 141507), (32, 2, 338610), (32, 3, 417315), (68, 2, 1330546), (68, 3, 1409251)],
)
def test_golden_parameter_counts_of_the_widened_networks(rfl: int, classes: int, count: int) -> None:
    assert parameters(KOriginsUNet(rfl, num_classes=classes, widen=(2 * classes, 3))) == count


@pytest.mark.parametrize(("rfl", "count"), [(14, 71587), (32, 236739)])
def test_golden_parameter_counts_of_the_networks_widened_as_committed(rfl: int, count: int) -> None:
    assert parameters(KOriginsUNet(rfl, num_classes=3, widen=(6, 3), widened="last")) == count


@pytest.mark.parametrize(("rfl", "count"), [(8, 30970), (14, 44858), (32, 191610)])
def test_golden_parameter_counts_in_colour(rfl: int, count: int) -> None:
    assert parameters(KOriginsUNet(rfl, 3, 6, origins=torch.full((12, 3), 20000.0), deep_origins=3)) == count


def test_rows_of_the_widened_68_network() -> None:
    network = KOriginsUNet(68, num_classes=3, widen=(6, 3))
    rows = [parameters(m) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    encoder = [960, 83040, 83040, 83040, 166080, 331968, 221312, 147584]
    up, decoder = [32832, 8224, 2064], [147520, 36928, 36896, 9248, 16144, 2320]
    assert rows == encoder + up + decoder + [51]


@pytest.mark.parametrize(("rfl", "deep"), [(8, 1), (18, 1), (38, 1), (14, 3), (32, 3), (68, 3)])
def test_default_deep_origins_are_one_or_three_by_family(rfl: int, deep: int) -> None:
    network = KOriginsUNet(rfl, origins=[1.0, 2.0])
    assert {w.shape[0] for w in network.origin_parameters()[1:]} == {deep}
    assert len(network.origin_parameters()) == FAMILIES[rfl][1] + 1


def test_origins_can_stand_before_the_first_level_alone() -> None:
    network = KOriginsUNet(32, origins=[1.0, 2.0], deep_origins=0)
    assert [w.shape for w in network.origin_parameters()] == [(2, 1)]


# ---------------------------------------------------------------------------------------------------- receptive fields

FULL_FIELDS = {
    8: (10, 10),
    14: (18, 18),
    18: (22, 26),
    32: (44, 44),
    38: (46, 54),
    68: (92, 100),
    78: (94, 110),
    140: (188, 204),
}


@pytest.mark.parametrize("rfl", FULL_FIELDS)
def test_receptive_fields_are_those_of_the_names(rfl: int) -> None:
    assert receptive_field(rfl) == rfl
    assert full_receptive_field(rfl) == FULL_FIELDS[rfl]


def transparent(rfl: int) -> KOriginsUNet:
    """A network whose every path passes a positive gradient: positive kernels, averages instead of maxima."""
    network = KOriginsUNet(rfl, width=1).double()
    network.pool = nn.AvgPool2d(2)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
    return network


@pytest.mark.parametrize("rfl", [8, 14, 18, 32])
def test_receptive_fields_measured_by_gradient(rfl: int) -> None:
    network = transparent(rfl)
    features: list[Tensor] = []
    network.encoder[-1].register_forward_hook(lambda module, args, output: features.append(output))
    side, step = 96, 2 ** FAMILIES[rfl][1]
    x = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    logits = network(x)

    def seen(value: Tensor) -> int:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        columns = gradient[0, 0].abs().sum(0).nonzero().flatten()
        return int(columns[-1] - columns[0]) + 1

    centre = side // 2
    assert seen(features[0][0, 0, centre // step, centre // step]) == receptive_field(rfl)
    sides = [seen(logits[0, 0, centre, centre + phase]) for phase in range(step)]
    assert (min(sides), max(sides)) == full_receptive_field(rfl)


# ------------------------------------------------------------------------------------------------------ initial values


def test_kernels_are_glorot_uniform_with_the_fans_of_keras_and_biases_zero() -> None:
    network = KOriginsUNet(68, num_classes=3, width=16, seed=0)
    for module in network.modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        # Keras: fan_in = kh kw in, fan_out = kh kw out, also for transposed kernels (kh, kw, out, in)
        area = math.prod(module.kernel_size)
        limit = math.sqrt(6 / (area * module.in_channels + area * module.out_channels))
        weight = module.weight.detach()
        assert weight.abs().max() <= limit
        if weight.numel() > 2000:
            assert weight.abs().max() > 0.99 * limit
            assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert not module.bias.any()


def test_first_origins_are_given_and_deeper_ones_drawn() -> None:
    network = KOriginsUNet(68, num_classes=3, origins=ORIGINS, deep_origins=16, seed=0)
    first, *deeper = network.origin_parameters()
    assert first.flatten().tolist() == ORIGINS
    drawn = torch.cat([w.detach().flatten() for w in deeper])
    assert drawn.mean().item() == pytest.approx(20000, abs=5 * 5000 / math.sqrt(len(drawn)))
    assert drawn.std().item() == pytest.approx(5000, rel=0.1)
    other = KOriginsUNet(8, origins=ORIGINS, deep_mean=1.0, deep_std=0.0)
    assert set(other.origin_parameters()[1].flatten().tolist()) == {1.0}


def test_seed_decides_every_initial_value_whatever_the_global_generator_does() -> None:
    torch.manual_seed(1)
    first = KOriginsUNet(32, origins=ORIGINS, seed=7).state_dict()
    torch.manual_seed(2)
    second = KOriginsUNet(32, origins=ORIGINS, seed=7).state_dict()
    other = KOriginsUNet(32, origins=ORIGINS, seed=8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


# ------------------------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("rfl", sorted(FAMILIES))
@pytest.mark.parametrize("origins", [None, [18000.0, 22000.0]])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(rfl: int, origins: list[float] | None) -> None:
    network = KOriginsUNet(rfl, 3, 4, width=2, origins=origins, seed=3)
    logits = network(images(2, 32, 3))
    assert logits.shape == (2, 4, 32, 32)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float64])
def test_any_input_type_gives_the_same_logits(dtype: torch.dtype) -> None:
    network = KOriginsUNet(8, width=4, origins=ORIGINS, seed=0)
    x = images(1, 16)
    if dtype == torch.float64:
        network, x = network.double(), x.double()
    assert torch.equal(network(x.to(dtype)), network(x))


def test_batch_norm_follows_every_3x3_convolution() -> None:
    network = KOriginsUNet(32, width=2, batch_norm=True)
    names = [type(m).__name__ for m in network.modules() if not list(m.children())]
    convolutions = [i for i, m in enumerate(names) if m == "Conv2d"][:-1]  # without the head
    assert len(convolutions) == 10
    assert all(names[i + 1] == "BatchNorm2d" and names[i + 2] == "ReLU" for i in convolutions)


def test_parameters_are_split_into_origins_and_the_rest() -> None:
    network = KOriginsUNet(32, num_classes=3, origins=ORIGINS)
    assert sum(p.numel() for p in network.origin_parameters()) == 150
    assert sum(p.numel() for p in network.other_parameters()) == 186921 - 150
    assert not KOriginsUNet(32).origin_parameters()


def test_frozen_origins_stay_while_the_rest_learns() -> None:
    network = KOriginsUNet(8, width=2, origins=ORIGINS, trainable_origins=False, seed=1)
    network(images(1, 16)).square().mean().backward()
    assert all(p.grad is None for p in network.origin_parameters())
    assert all(p.grad is not None for p in network.other_parameters())


def test_forward_passes_without_a_graph_break() -> None:
    network = KOriginsUNet(14, width=2, origins=ORIGINS, seed=0)
    x = images(1, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))


# ---------------------------------------------------------------------------------------------- folding and precision


def trained(rfl: int, steps: int = 12, **options) -> KOriginsUNet:
    network = KOriginsUNet(rfl, num_classes=3, width=8, seed=0, **options)
    x = images(2, 32)
    mask = (x[:, 0] > 22500).long() + 2 * (x[:, 0] < 18000).long()
    groups = [{"params": network.other_parameters(), "lr": 1e-3}]
    if network.origin_parameters():
        groups.append({"params": network.origin_parameters(), "lr": 100.0})
    optimizer = torch.optim.Adam(groups, eps=1e-7)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), mask).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("rfl", [8, 18, 14, 32])
@torch.no_grad()
def test_folded_network_equals_the_trained_one(rfl: int, batch_norm: bool) -> None:
    with torch.enable_grad():
        network = trained(rfl, origins=ORIGINS, batch_norm=batch_norm)
    folded, x = network.fold(), images(2, 48, seed=1)
    logits = network(x)
    assert (folded(x) - logits).abs().max() < 1e-5 * logits.abs().max()
    exact = copy.deepcopy(network).double()
    logits = exact(x.double())
    torch.testing.assert_close(exact.fold()(x.double()), logits, rtol=0, atol=1e-12 * logits.abs().max().item())


def test_folded_network_has_the_plain_convolutions_and_no_origins() -> None:
    network = KOriginsUNet(32, num_classes=3, origins=ORIGINS)
    folded = network.fold()
    assert parameters(folded) == parameters(KOriginsUNet(32, num_classes=3))
    assert not any(isinstance(m, KOrigins) for m in folded.modules())
    assert sum(isinstance(m, FoldedKOrigins) for m in folded.modules()) == 3
    assert parameters(network) == 186921


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("origins", [None, ORIGINS], ids=["plain", "origins"])
@pytest.mark.parametrize("rfl", [8, 18, 38, 14, 32])
@torch.no_grad()
def test_bfloat16_autocast_stays_within_a_percent_of_the_largest_logit(
    rfl: int, origins: list[float] | None, training: bool
) -> None:
    if training:
        with torch.enable_grad():
            network = trained(rfl, origins=origins)
    else:
        network = KOriginsUNet(rfl, num_classes=3, origins=origins, seed=0)
    x = images(1, 64, seed=2)
    for candidate in [network] if origins is None else [network, network.fold()]:
        logits = candidate(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = candidate(x)
        assert rounded.dtype == torch.float32
        assert (rounded - logits).abs().max() < 0.01 * logits.abs().max()


@pytest.mark.parametrize("frozen", [False, True])
def test_channels_last_changes_neither_logits_nor_gradients(frozen: bool) -> None:
    network = KOriginsUNet(14, num_classes=3, origins=ORIGINS, trainable_origins=not frozen, seed=0)
    x, found = images(1, 32, seed=2), []
    for layout in (torch.contiguous_format, torch.channels_last):
        same: Any = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
        logits = same(x.to(memory_format=layout))
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad for p in same.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


# ---------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rfl": 9}, r"model\.rfl: expected one of 8, 14, 18, 32, 38, 68, 78, 140, got 9"),
        ({"rfl": 8, "num_classes": 0}, "model.num_classes: expected at least 1, got 0"),
        ({"rfl": 8, "width": 0}, "model.width: expected at least 1, got 0"),
        ({"rfl": 8, "in_channels": 0}, "model.in_channels: expected at least 1, got 0"),
        ({"rfl": 8, "deep_origins": 2}, "model.deep_origins: got 2 without origins"),
        (
            {"rfl": 8, "origins": [1.0], "deep_origins": -1},
            "model.deep_origins, model.deep_std: expected 0 or more, got -1",
        ),
        ({"rfl": 8, "origins": [1.0], "deep_std": -1.0}, r"model\.deep_std: expected 0 or more, got None and -1\.0"),
        ({"rfl": 8, "origins": [1.0], "widen": (2, 3)}, "model.widen: only a network without origins"),
        ({"rfl": 8, "widen": (0, 3)}, "model.widen: expected two factors"),
        ({"rfl": 8, "in_channels": 3, "origins": [[1.0, 2.0]]}, r"weights: expected .*, got shape \(1, 2\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KOriginsUNet(**arguments)


def test_sides_that_cannot_be_pooled_are_named_with_the_nearest_that_can() -> None:
    network = KOriginsUNet(78, width=1)
    with pytest.raises(
        ConfigError,
        match="expected sides divisible by 16 for 4 poolings, got 200 x 7; use a height of 192 or 208",
    ):
        network(torch.zeros(1, 1, 200, 7))
    with pytest.raises(ConfigError, match="a height of 192 or 208 and a width of 400"):
        network(torch.zeros(1, 1, 200, 400))
    with pytest.raises(ConfigError, match=r"image: expected \(B, in_channels=1, H, W\), got \(1, 3, 16, 16\)"):
        network(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="a height of 16 and a width of 16"):
        network(torch.zeros(1, 1, 0, 16))
    assert KOriginsUNet(38, width=1)(torch.zeros(1, 1, 200, 200)).shape == (1, 2, 200, 200)


@pytest.mark.parametrize("function", [receptive_field, full_receptive_field])
def test_unknown_names_have_no_receptive_field(function) -> None:
    with pytest.raises(ConfigError, match="model.rfl: expected .*, got 10"):
        function(10)
