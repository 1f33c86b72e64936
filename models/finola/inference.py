"""FINOLA as it is deployed: the encoder and the decoder as a file each."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from framework.deploy.form import Axis, InferenceForm, Port
from framework.nn import Finola
from models.finola.network import FinolaNetwork

BATCH = Axis("batch")
RGB = Axis("channels", fixed=3)


class Encoder(nn.Module):
    """Images to latents.

    Args:
        encoder: of the network.
        pool: of the network.
    """

    def __init__(self, encoder: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, M, C)."""
        return self.pool(self.encoder(2 * image - 1))


class Decoder(nn.Module):
    """Latents to images.

    Args:
        growth: from vectors to a map.
        decoder: from the map to pixels.
        map_size: (H, W) of the map.
        start: where the vectors stand.
    """

    def __init__(
        self, growth: nn.Module, decoder: nn.Module, map_size: tuple[int, int], start: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.growth, self.decoder, self.map_size, self.start = growth, decoder, map_size, start

    def forward(self, latent: Tensor) -> Tensor:
        """(B, M, C) -> (B, 3, S, S) in [0, 1]."""
        grown = (
            self.growth(latent, self.map_size, self.start) if isinstance(self.growth, Finola) else self.growth(latent)
        )
        return ((self.decoder(grown) + 1) / 2).clamp(0, 1)


class Features(nn.Module):
    """The means of an encoder's features: what a linear probe sees.

    Args:
        encoder: of a masked FINOLA.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        return self.encoder(2 * image - 1).mean((2, 3))


def autoencoder_forms(network: FinolaNetwork) -> list[InferenceForm]:
    """Encoder and decoder; both know one size of image."""
    encoder, decoder = Encoder(network.encoder, network.pool), Decoder(
        network.growth, network.decoder, network.map_size, network.start
    )  # fmt: skip
    side = network.image_size
    image = Port("image", (BATCH, RGB, Axis("height", fixed=side), Axis("width", fixed=side)), 0, 1, "RGB in [0, 1]")
    latent_axes = (BATCH, Axis("paths", fixed=network.paths), Axis("latent", fixed=network.channels))
    latent = Port("latent", latent_axes, -2, 2, "as the encoder gives it")

    def decode(q: Tensor) -> Tensor:
        return network.decode(q).float().clamp(0, 1)

    return [
        InferenceForm("encoder", encoder.eval(), (image,), latent, network.encode),
        InferenceForm("decoder", decoder.eval(), (latent,), image, decode),
    ]


def features_form(encoder: nn.Module, stride: int, reference: Callable[[Tensor], Tensor]) -> InferenceForm:
    """The encoder of a masked FINOLA, for pictures whose sides its strides divide."""
    sides = tuple(Axis(name, 2 * stride, stride) for name in ("height", "width"))
    image = Port("image", (BATCH, RGB, *sides), 0, 1, "RGB in [0, 1]; sides multiples of the stride")
    features = Port("features", (BATCH, Axis("features")), -10, 10, "mean over the cells of the encoder's map")
    return InferenceForm("encoder", Features(encoder).eval(), (image,), features, reference)
