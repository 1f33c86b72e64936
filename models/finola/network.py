"""The autoencoder's network in plain torch: encoder, pooling, growth of the map, decoder."""

from typing import cast, get_args

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.nn import Finola
from models.finola.decoder import Decoder
from models.finola.encoder import build_pool, named_encoder
from models.finola.options import Expansion, FinolaOptions


class RepeatMap(nn.Module):
    """The control without recursion: the same vector in every cell, with or without a learned table of positions.

    M vectors are laid side by side in the channels, so that all M C floats reach the decoder.

    Args:
        channels: M C.
        size: (H, W) of the map.
        positions: add a learned (M C, H, W) table.
    """

    def __init__(self, channels: int, size: tuple[int, int], positions: bool) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(0.02 * torch.randn(channels, *size)) if positions else None

    def forward(self, q: Tensor) -> Tensor:
        """(B, M, C) -> (B, M C, H, W)."""
        z = q.flatten(1)[:, :, None, None].expand(-1, -1, *self.size)
        return z if self.table is None else z + self.table


class FinolaNetwork(nn.Module):
    """Image -> M vectors -> map -> image.

    Args:
        options: sizes, encoder, pooling, growth and decoder.

    Raises:
        ConfigError: sizes that do not go together, or values outside those above.
    """

    def __init__(self, options: FinolaOptions) -> None:
        super().__init__()
        _check(options)
        channels, paths = options.channels, options.paths
        self.channels, self.paths, self.image_size = channels, paths, options.image_size
        self.map_size = (options.map_size, options.map_size)
        start = options.start
        self.start = None if start is None else (int(start[0]), int(start[1]))
        self.encoder = build_encoder(options)
        cells = (options.image_size // options.stride) ** 2
        self.pool = build_pool(
            options.pooling, cast(int, self.encoder.out_channels), cells, paths, channels, options.seeds
        )
        if options.expansion == "finola":
            self.growth: Finola | RepeatMap = options.growth()
            map_channels = channels
        else:
            map_channels = channels * paths
            self.growth = RepeatMap(map_channels, self.map_size, options.expansion == "repeat_position")
        self.decoder = Decoder(map_channels, options.map_size, options.image_size, options.decoder_width)

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> (B, M, C).

        Raises:
            ConfigError: images of another size or number of channels.
        """
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"image: expected (B, 3, {self.image_size}, {self.image_size}), got {tuple(image.shape)}; set "
                "model.image_size and data.image_size to the same value, and convert grey or RGBA pictures to RGB"
            )
        return self.pool(self.encoder(2 * image - 1))

    def grow(self, q: Tensor) -> Tensor:
        """(B, M, C) -> map (B, C, h, w) float32.

        Raises:
            ConfigError: latents of another model.
        """
        if q.dim() != 3 or q.shape[1:] != (self.paths, self.channels):
            raise ConfigError(
                f"latent: expected (B, {self.paths}, {self.channels}) from this model (M x C), got {tuple(q.shape)}; "
                "decode latents with the model that wrote them"
            )
        if isinstance(self.growth, Finola):
            return self.growth(q, self.map_size, self.start)
        return self.growth(q)

    def decode(self, q: Tensor) -> Tensor:
        """(B, M, C) -> (B, 3, image_size, image_size), [0, 1] up to over- and undershoot."""
        return (self.decoder(self.grow(q)) + 1) / 2

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> its reconstruction."""
        return self.decode(self.encode(image))


def build_encoder(options: FinolaOptions) -> nn.Module:
    """The encoder of this name; all have `out_channels`."""
    return named_encoder(
        options.encoder, options.encoder_width, options.encoder_depth, options.stride, options.pretrained
    )


def _check(options: FinolaOptions) -> None:
    image_size, stride, map_size, start = options.image_size, options.stride, options.map_size, options.start
    check_channels(options.channels)
    if options.paths < 1:
        raise ConfigError(f"model.paths: expected at least 1, got {options.paths}")
    if image_size < 1 or image_size % stride:
        raise ConfigError(
            f"model.image_size: expected a multiple of model.stride ({stride}), got {image_size}; resize the "
            "images with data.image_size, or take another stride"
        )
    if options.expansion not in get_args(Expansion):
        raise ConfigError(f"model.expansion: expected finola, repeat or repeat_position, got {options.expansion!r}")
    if start is not None and not (len(start) == 2 and all(0 <= s < map_size for s in start)):
        raise ConfigError(
            f"model.start: expected [row, column] inside the {map_size} x {map_size} map, got {list(start)}"
        )


def check_channels(channels: int) -> None:
    """Raises ConfigError for a map that normalises to zero."""
    if channels < 2:
        raise ConfigError(f"model.channels: expected at least 2 (one channel normalises to zero), got {channels}")


def latent_counts(channels: int, paths: int = 1, matrices: int = 4) -> dict[str, int]:
    """Floats of the latent and parameters of the recursion (docs/finola.md, "Multi-path").

    Args:
        channels: C.
        paths: M; they share the matrices.
        matrices: directional matrices that are learned: 4, 2 or 1.

    Returns:
        `floats` (M C), `one_matrix` (C^2, what the paper quotes), `a_and_b` (2 C^2) and `recursion` (matrices x C^2).
    """
    square = channels * channels
    return {"floats": channels * paths, "one_matrix": square, "a_and_b": 2 * square, "recursion": matrices * square}
