"""The classifier as it is deployed: scale-space filters as plain depthwise convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from framework.deploy.form import Axis, InferenceForm, Port
from framework.nn import ScaleSpaceDepthwiseConv2d


def plain(network: nn.Module) -> nn.Module:
    """Puts a plain depthwise convolution in the place of every scale-space layer, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, ScaleSpaceDepthwiseConv2d):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.to_conv())
    return network


def smallest_side(network: nn.Module) -> int:
    """A side at which the last map has two cells, by what timm says of the network; 64 where it says nothing."""
    levels: Any = getattr(network, "feature_info", None)
    return 2 * max((int(level["reduction"]) for level in levels or [] if isinstance(level, Mapping)), default=32)


def forms(
    network: nn.Module,
    reference: Callable[[Tensor], Tensor],
    num_classes: int,
    classes: Sequence[str] | None,
) -> list[InferenceForm]:
    """The classifier, in every precision.

    Args:
        network: a copy; it is changed.
        reference: the method.
        num_classes: outputs.
        classes: their names, or None.
    """
    side = smallest_side(network)
    batch = Axis("batch")
    image = Port(
        "image",
        (batch, Axis("channels", fixed=3), Axis("height", side), Axis("width", side)),
        -2,
        2,
        "RGB, normalised as in training",
    )
    logits = Port("logits", (batch, Axis("classes", fixed=num_classes)), -100, 100, "softmax gives probabilities")
    names = list(map(str, range(num_classes))) if classes is None else list(classes)
    return [InferenceForm("classifier", plain(network).eval(), (image,), logits, reference, names)]
