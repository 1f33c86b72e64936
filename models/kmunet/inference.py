"""KM-UNet as it is deployed: without pruned channels, normalisations in the splines' tables, pictures of any size."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from framework.deploy.form import InferenceForm
from framework.nn.splines.forms import spline_form
from framework.nn.splines.plain import PlainSplineConv, can_be_plain
from models.kmunet.network import KMUNetwork, SplineUnit
from models.segmentation import class_words, segmenter_form


def plain(network: KMUNetwork) -> KMUNetwork:
    """Puts a PlainSplineConv in the place of every spline unit that can have one, in place.

    A unit of a low rank keeps its normalisation and lifts every channel to its R shapes.
    """
    for name, unit in network.units.items():
        if isinstance(unit, SplineUnit) and unit.conv.rank is not None:
            unit.conv = cast(Any, spline_form(unit.conv, "low_rank", rank=unit.conv.rank))
        elif isinstance(unit, SplineUnit) and can_be_plain(unit.conv):
            network.units[name] = PlainSplineConv(cast(Any, unit.conv), unit.norm)
    return network


def forms(
    network: KMUNetwork,
    korigins: nn.Module | None,
    reference: Callable[[Tensor], Tensor],
    channels: int,
    preprocessing: Mapping[str, Any] | None,
) -> list[InferenceForm]:
    """The segmenter, in every precision.

    Args:
        network: already shrunk; it is changed.
        korigins: in front of it, or None.
        reference: the method.
        channels: N of the pictures.
        preprocessing: of the method.
    """
    classes = class_words(preprocessing, network.head.out_channels)
    network = plain(network)
    module = network if korigins is None else nn.Sequential(korigins, network)
    raw = korigins is not None
    return [
        segmenter_form(
            module.eval(),
            reference,
            channels,
            network.stride,
            (0.0, 65535.0) if raw else (-3.0, 3.0),
            classes,
            "raw intensities, not normalised" if raw else "normalised as `preprocessing` says",
            refused={"fp16": "raw 16-bit intensities pass float16's largest number"} if raw else {},
        )
    ]
