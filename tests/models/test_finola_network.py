"""Encoder, pooling, decoder, controls and the counting of floats and parameters."""

import pytest
import timm
import torch

from framework.errors import ConfigError
from framework.nn import Finola
from models.finola.decoder import Decoder
from models.finola.encoder import AttentionalPool, ConvEncoder, LinearPool, MobileFormerEncoder, TimmEncoder, build_pool
from models.finola.network import FinolaNetwork, RepeatMap, latent_counts
from models.finola.options import FinolaOptions


def network(**kwargs) -> FinolaNetwork:
    torch.manual_seed(0)
    small = {"channels": 8, "image_size": 16, "map_size": 8, "encoder_width": 8, "encoder_depth": 1, "stride": 4}
    return FinolaNetwork(FinolaOptions(**{**small, "decoder_width": 8, **kwargs}))


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_the_encoder_has_the_stride_it_is_asked_for(stride) -> None:
    for encoder in (MobileFormerEncoder(4, stride, token_dim=8, depth=1), ConvEncoder(4, stride, depth=2)):
        out = encoder(torch.rand(2, 3, 32, 48))
        assert out.shape == (2, encoder.out_channels, 32 // stride, 48 // stride)


def test_the_plain_encoder_keeps_contrast() -> None:
    """No normalisation: a far brighter picture gives far larger features."""
    torch.manual_seed(0)
    encoder = ConvEncoder(8, 4)
    image = torch.rand(1, 3, 16, 16)
    assert encoder(100 * image).norm() > 10 * encoder(image).norm()


def test_linear_pooling_is_one_product_over_all_cells() -> None:
    torch.manual_seed(0)
    pool = LinearPool(6, 12, 2, 5).double()
    x = torch.randn(3, 6, 3, 4, dtype=torch.float64)
    weight = pool.linear.weight.view(2, 5, 6, 3, 4)
    written_out = torch.einsum("mckij,bkij->bmc", weight, x) + pool.linear.bias.view(2, 5)
    torch.testing.assert_close(pool(x), written_out, rtol=1e-12, atol=1e-12)


def test_a_pooling_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="model.pooling: expected attentional or linear, got 'mean'"):
        build_pool("mean", 4, 16, 1, 8, 1)  # type: ignore[arg-type]


def test_tokens_carry_information_across_the_whole_image() -> None:
    """Convolutions alone cannot reach the far corner of a large map; the global tokens can."""
    torch.manual_seed(0)
    encoder = MobileFormerEncoder(width=4, stride=2, token_dim=8, depth=2)
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(image)[..., -1, -1].sum(), image)
    assert gradient[..., :8, :8].abs().max() > 0


def test_a_timm_backbone_is_cut_at_the_wanted_stride() -> None:
    encoder = TimmEncoder("resnet10t", stride=16)
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, encoder.out_channels, 4, 4)


@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_a_cut_timm_backbone_has_no_parameter_that_does_not_learn(name, stride) -> None:
    encoder = TimmEncoder(name, stride)
    features = encoder(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, encoder.out_channels, 64 // stride, 64 // stride)
    features.square().sum().backward()
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_a_cut_timm_backbone_gives_the_whole_ones_features() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("mobilenetv3_small_050", stride=8).eval()
    whole = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    weights = {key.removeprefix("backbone.model."): value for key, value in encoder.state_dict().items()}
    assert not whole.load_state_dict(weights, strict=False).unexpected_keys
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(encoder(image), whole(image)[2])


def test_channels_come_first_from_a_backbone_that_has_them_last() -> None:
    encoder = TimmEncoder("swin_s3_tiny_224", stride=4)
    assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, encoder.out_channels, 56, 56)


def test_pretrained_weights_are_fetched_once(monkeypatch) -> None:
    create, asked = timm.create_model, []

    def offline(*args, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    TimmEncoder("resnet10t", stride=8, pretrained=True)
    assert asked.count(True) == 1


def test_timm_names_and_strides_that_do_not_exist_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model.encoder: expected mobile_former, cnn or a timm model.*'resnet10x'"):
        TimmEncoder("resnet10x")
    with pytest.raises(ConfigError, match=r"model.stride: resnet10t has feature maps of stride \[2, 4, 8, 16, 32\]"):
        TimmEncoder("resnet10t", stride=3)


@pytest.mark.parametrize(("vectors", "channels", "seeds"), [(1, 16, 1), (4, 6, 2), (8, 3, 2), (1, 7, 1)])
def test_seeds_and_vectors_are_independent(vectors, channels, seeds) -> None:
    pool = AttentionalPool(12, vectors, channels, seeds)
    assert pool(torch.randn(3, 12, 4, 5)).shape == (3, vectors, channels)


def test_pooling_sees_where_things_are() -> None:
    torch.manual_seed(0)
    pool = AttentionalPool(6, 1, 16)
    x = torch.randn(1, 6, 4, 4)
    assert not torch.allclose(pool(x), pool(x.flip(3)), atol=1e-4)


def test_pooled_vectors_are_not_confined_to_the_features_dimensions() -> None:
    torch.manual_seed(0)
    pool = AttentionalPool(4, 1, 32).double()
    q = pool(torch.randn(64, 4, 4, 4, dtype=torch.float64))[:, 0]
    assert torch.linalg.matrix_rank(q - q.mean(0), rtol=1e-8) > 16


def test_seeds_that_do_not_divide_the_latent_are_named() -> None:
    with pytest.raises(ConfigError, match="model.seeds: 3 seeds do not divide the latent of 2 x 8 = 16"):
        AttentionalPool(4, 2, 8, 3)


@pytest.mark.parametrize("map_size", [8, 16, 32, 64, 128, 256])
def test_decoders_reach_the_image_from_maps_of_8_to_256(map_size) -> None:
    decoder = Decoder(4, map_size, 256, width=8, min_width=4)
    convolutions = [m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    doublings = {8: 5, 16: 4, 32: 3, 64: 2, 128: 1, 256: 0}[map_size]
    # at the image's own size three 3x3 convolutions, else two per doubling and the head
    assert len(convolutions) == (2 * doublings + 1 if doublings else 3)
    with torch.no_grad():
        assert decoder(torch.randn(1, 4, map_size, map_size)).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("map_size", [0, 5, 12, 64])
def test_maps_that_no_doubling_takes_to_the_image_are_named(map_size) -> None:
    with pytest.raises(ConfigError, match=r"model.map_size: expected model.image_size \(32\) divided by 1, 2, 4"):
        Decoder(4, map_size, 32)


def test_the_counts_of_section_6() -> None:
    single, many = latent_counts(16384), latent_counts(1024, 16)
    assert single["floats"] == many["floats"] == 16384
    assert (single["one_matrix"], many["one_matrix"]) == (268_435_456, 1_048_576)
    assert (single["a_and_b"], many["a_and_b"]) == (536_870_912, 2_097_152)
    assert (single["recursion"], many["recursion"]) == (1_073_741_824, 4_194_304)
    assert single["one_matrix"] // many["one_matrix"] == 16**2


@pytest.mark.parametrize(("matrices", "paths"), [(4, 1), (4, 3), (2, 3), (1, 3)])
def test_paths_share_the_matrices(matrices, paths) -> None:
    net = network(matrices=matrices, paths=paths)
    counts = latent_counts(8, paths, matrices)
    assert sum(p.numel() for p in net.growth.parameters()) == counts["recursion"]
    assert net.encode(torch.rand(2, 3, 16, 16))[0].numel() == counts["floats"]


@pytest.mark.parametrize("expansion", ["finola", "repeat", "repeat_position"])
@pytest.mark.parametrize("paths", [1, 3])
def test_every_expansion_maps_an_image_to_an_image(expansion, paths) -> None:
    net = network(expansion=expansion, paths=paths)
    image = torch.rand(2, 3, 16, 16)
    out = net(image)
    assert out.shape == image.shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_repeat_holds_all_floats_in_every_cell() -> None:
    q = torch.randn(2, 3, 4)
    z = RepeatMap(12, (5, 6), positions=False)(q)
    assert z.shape == (2, 12, 5, 6)
    assert torch.equal(z[:, :, 0, 0], q.flatten(1))
    assert torch.equal(z[:, :, 4, 5], q.flatten(1))


def test_the_position_table_tells_cells_apart() -> None:
    torch.manual_seed(0)
    z = RepeatMap(4, (3, 3), positions=True)(torch.zeros(1, 1, 4))
    assert len({tuple(z[0, :, r, c].tolist()) for r in range(3) for c in range(3)}) == 9


def test_the_map_has_the_vector_at_its_start() -> None:
    net = network(start=[1, 6])
    q = net.encode(torch.rand(2, 3, 16, 16))
    assert isinstance(net.growth, Finola)
    torch.testing.assert_close(net.grow(q)[:, :, 1, 6], q[:, 0])


def test_constant_images_give_finite_images_and_gradients() -> None:
    net = network()
    for value in (0.0, 0.5, 1.0):
        out = net(torch.full((1, 3, 16, 16), value))
        assert out.isfinite().all()
        out.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": 1}, "model.channels: expected at least 2"),
        ({"paths": 0}, "model.paths: expected at least 1"),
        ({"image_size": 18}, r"model.image_size: expected a multiple of model.stride \(4\), got 18"),
        ({"start": [8, 0]}, r"model.start: expected \[row, column\] inside the 8 x 8 map, got \[8, 0\]"),
        ({"start": [1]}, "model.start"),
        ({"expansion": "copy"}, "model.expansion: expected finola, repeat or repeat_position"),
        ({"stride": 3, "image_size": 24}, "model.stride: expected 2, 4, 8, 16 or 32, got 3"),
        ({"encoder_depth": 0}, "model.encoder_width and model.encoder_depth"),
    ],
)
def test_bad_arguments_are_named(kwargs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        network(**kwargs)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 4, 16, 16), (2, 3, 20, 16), (3, 16, 16)])
def test_grey_rgba_and_other_sizes_are_named(shape) -> None:
    with pytest.raises(ConfigError, match=r"image: expected \(B, 3, 16, 16\).*grey or RGBA"):
        network()(torch.rand(shape))


@pytest.mark.parametrize("shape", [(2, 1, 9), (2, 2, 8), (2, 8)])
def test_latents_of_another_model_are_named(shape) -> None:
    with pytest.raises(ConfigError, match=r"latent: expected \(B, 1, 8\).*with the model that wrote them"):
        network().decode(torch.rand(shape))
