"""The decoder: from the grown map to pixels."""

from torch import Tensor, nn

from framework.errors import ConfigError
from models.finola.encoder import group_norm


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, around an identity or a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            group_norm(out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        return self.skip(x) + self.body(x)


class Decoder(nn.Sequential):
    """1x1 to `width`, per doubling nearest x2 and a residual block with half the channels, 3x3 to RGB (section 5).

    A map that has the image's size already gets three 3x3 convolutions only.

    Args:
        channels: C of the map.
        map_size: side of the map in cells, 8 to 256.
        image_size: side of the image in pixels, a power of two times `map_size`.
        width: channels after the 1x1 convolution.
        min_width: the channels do not fall below this (nor above `width`).

    Raises:
        ConfigError: sizes without a whole number of doublings between them.
    """

    def __init__(self, channels: int, map_size: int, image_size: int, width: int = 256, min_width: int = 64) -> None:
        ratio = image_size // max(1, map_size)
        if map_size < 1 or map_size * ratio != image_size or ratio < 1 or ratio & (ratio - 1):
            raise ConfigError(
                f"model.map_size: expected model.image_size ({image_size}) divided by 1, 2, 4, ..., got {map_size}"
            )
        if ratio == 1:
            layers: list[nn.Module] = [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            ]
        else:
            layers = [nn.Conv2d(channels, width, 1)]
            for _ in range(ratio.bit_length() - 1):
                narrow = max(width // 2, min(min_width, width))
                layers += [nn.Upsample(scale_factor=2), ResidualBlock(width, narrow)]
                width = narrow
            layers += [nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, C, H, W) -> image (B, 3, image_size, image_size) in about [-1, 1]."""
        return super().forward(z)
