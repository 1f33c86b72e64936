"""What FINOLA's networks are built from: one definition for the autoencoder and for masked pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from framework.nn import Finola
from framework.nn.waves.options import Rollout
from models.finola.encoder import Pooling

Expansion = Literal["finola", "repeat", "repeat_position"]


@dataclass(frozen=True, kw_only=True)
class FinolaOptions(Rollout):
    """The arguments of both methods that decide their network, beside those of the rollout.

    Attributes:
        channels: C of a vector.
        paths: M vectors, each rolled out by itself with the same matrices, and summed.
        image_size: side of the images in pixels.
        map_size: side of the map in cells.
        expansion: `finola`, or the controls `repeat` and `repeat_position`.
        start: (row, column) of the vectors in the map; None: its centre.
        encoder: `mobile_former`, `cnn` or a timm model's name.
        encoder_width: channels after the first convolution of the first two.
        encoder_depth: their blocks per halving.
        stride: input pixels per feature cell.
        pooling: `attentional` or `linear`.
        seeds: of the attentional pooling.
        decoder_width: channels behind the decoder's first convolution.
        pretrained: timm's weights for a timm encoder.
    """

    channels: int = 128
    paths: int = 1
    image_size: int = 64
    map_size: int = 16
    expansion: Expansion = "finola"
    start: Sequence[int] | None = None
    encoder: str = "mobile_former"
    encoder_width: int = 32
    encoder_depth: int = 2
    stride: int = 16
    pooling: Pooling = "attentional"
    seeds: int = 1
    decoder_width: int = 256
    pretrained: bool = False

    def growth(self) -> Finola:
        """The rollout."""
        return Finola(self.channels, **{f.name: getattr(self, f.name) for f in fields(Rollout)})
