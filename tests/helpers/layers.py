"""Every layer as a module of one input, for the tests of `tests/nn` and the table of `benchmarks.layers`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from framework.nn import (
    ExpertLinear,
    Finola,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    KOrigins,
    ScaleSpaceDepthwiseConv2d,
    SineLayer,
    fold_korigins,
)


class Grown(Finola):
    """A rollout as a layer of one input: (B, C) or (B, M, C) -> (B, C, 3, 4)."""

    def forward(self, q: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(q, (3, 4))


def folded(**kwargs: Any) -> nn.Module:
    """Two origins on two channels folded into a 3 x 3 convolution; `kwargs` as `nn.Module.to` takes them."""
    layer = fold_korigins(KOrigins(2, [3.0, -7.0]), nn.Conv2d(6, 3, 3, padding=1))
    return layer.to(**kwargs) if kwargs else layer  # torch's own `to` fails on fake tensors


class Chosen(nn.Module):
    """Experts by a column of the input, so that the index is data."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.layer = ExpertLinear(4, 3, 3, "per_expert", **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())

    def reset_parameters(self) -> None:
        self.layer.reset_parameters()


Build = Callable[..., nn.Module]
# how it is built, the shape of its input, and of another one: (batch, ..., height, width) or (batch, features)
LAYERS: dict[str, tuple[Build, tuple[int, ...], tuple[int, ...]]] = {
    "KANLinear": (lambda **k: KANLinear(4, 3, True, base="silu", **k), (5, 4), (7, 4)),
    "KANConv2d": (lambda **k: KANConv2d(4, 3, 3, padding=1, stride=2, **k), (2, 4, 6, 8), (3, 4, 7, 5)),
    "KANConv2d-uneven": (lambda **k: KANConv2d(4, 3, 2, padding="same", **k), (2, 4, 6, 8), (3, 4, 7, 5)),
    "KANConvTranspose2d": (lambda **k: KANConvTranspose2d(4, 3, 2, stride=2, **k), (2, 4, 6, 8), (3, 4, 7, 5)),
    "KOrigins": (lambda **k: KOrigins(2, [3.0, -7.0], **k), (2, 2, 6, 8), (3, 2, 7, 5)),
    "FoldedKOrigins": (folded, (2, 2, 6, 8), (3, 2, 7, 5)),
    "ExpertLinear": (lambda **k: ExpertLinear(4, 3, 1, **k), (5, 4), (7, 4)),
    "ExpertLinear-index": (Chosen, (5, 4), (7, 4)),
    "SineLayer": (lambda **k: SineLayer(4, 3, w0=3.0, **k), (5, 4), (7, 4)),
    "ScaleSpaceDepthwiseConv2d": (lambda **k: ScaleSpaceDepthwiseConv2d(8, 5, **k), (2, 8, 6, 8), (3, 8, 7, 5)),
    "Finola": (lambda **k: Grown(4, **k), (5, 4), (7, 4)),
    "Finola-wavefront": (lambda **k: Grown(4, "wavefront", **k), (5, 4), (7, 4)),
}


def built(name: str, **kwargs) -> tuple[nn.Module, Tensor, Tensor]:
    """The layer in evaluation mode, an input, and one of another batch and size."""
    torch.manual_seed(0)
    build, shape, other = LAYERS[name]
    return build(**kwargs).eval(), torch.randn(shape), torch.randn(other)
