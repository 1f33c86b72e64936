"""What KM-UNet's tables say of a network that lost channels."""

from typing import Any, cast

import torch

from benchmarks.kmunet_figures import figures
from framework.nn import spline_layers
from models import KMUNet


def test_a_network_that_lost_channels_is_counted_as_what_is_left_of_it() -> None:
    model = KMUNet(width=4, stages=1)
    whole = figures(model, cast(Any, None))
    assert whole["live_parameters"] == model.network.live_parameters()
    assert whole["edges_removed"] == 0
    layer = list(spline_layers(model).values())[1]
    keep = torch.ones_like(layer.mask, dtype=torch.bool)
    keep[:, 0] = False
    layer.prune_edges(keep)
    left = figures(model, cast(Any, None))
    assert left["live_parameters"] == model.shrunk().network.live_parameters()
    assert int(cast(int, left["live_parameters"])) < model.network.live_parameters()
    assert cast(float, left["edges_removed"]) > 0
