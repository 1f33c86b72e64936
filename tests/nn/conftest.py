"""Every test of the layers runs on the device that `--device` names."""

from collections.abc import Iterator

import pytest
import torch

from tests.helpers.accelerator import Accelerator
from tests.helpers.devices import OnDevice


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest, device: str) -> Iterator[None]:
    """What a test makes without saying where is made on the device; tests marked `cpu` stay on the CPU."""
    if device == "cpu" or request.node.get_closest_marker("cpu") is not None:
        yield
    elif device == "simulated":
        with Accelerator(), OnDevice(torch.device("cuda", 0)):
            yield
    else:
        with OnDevice(torch.device(device)):
            yield
