"""K-Origins as it is deployed: every K-Origins layer folded into its convolution, pictures of any size."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from framework.deploy.form import InferenceForm
from framework.nn.padding import in_strides
from models.korigins.network import KOriginsUNet
from models.segmentation import class_words, segmenter_form

if TYPE_CHECKING:
    from models.korigins.method import KOriginsSegmentation

SIXTEEN_BITS = "raw 16-bit intensities need float32; bfloat16 has steps of 128 at 20000, and float16 ends at 65504"


class FoldedSegmenter(nn.Module):
    """The folded network behind the standardisation, if there is one.

    Args:
        network: of the method.
        mean: (1, N, 1, 1), subtracted; None: nothing.
        std: (1, N, 1, 1), divided by.
    """

    mean: Tensor | None
    std: Tensor

    def __init__(self, network: KOriginsUNet, mean: Tensor | None, std: Tensor | None) -> None:
        super().__init__()
        self.network = network.fold()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: Tensor) -> Tensor:
        """(B, N, H, W) float32 -> (B, C, H, W) logits."""
        if self.mean is not None:
            image = (image - self.mean) / self.std
        return in_strides(self.network, image, self.network.stride)


def forms(method: "KOriginsSegmentation") -> list[InferenceForm]:
    """The segmenter, in float32 and int8; what sees raw intensities stays in float32 in both."""
    network, preprocessing = method.network, method.preprocessing
    mean, std = (method.input_mean, method.input_std) if method.standardize_input else (None, None)
    origins = network.origin_parameters()
    raw = (preprocessing or {}).get("normalize", "none") == "none"
    low, high = (0.0, 65535.0) if raw else (-3.0, 3.0)
    if origins:  # where classes differ: there a difference between two networks shows
        first = origins[0].detach()
        low, high = float(first.min()), float(first.max())
        low, high = low - (high - low) / 2 - 1, high + (high - low) / 2 + 1
    form = segmenter_form(
        FoldedSegmenter(network, mean, std).eval(),
        method,
        network.in_channels,
        network.stride,
        (low, high),
        class_words(preprocessing, network.head.out_channels),
        "raw intensities, not normalised" if raw else "normalised as `preprocessing` says",
        refused={"bf16": SIXTEEN_BITS, "fp16": SIXTEEN_BITS},
        apart=(0, -2, -1),  # what sees raw intensities, and the level that tells the classes apart
    )
    return [form]
