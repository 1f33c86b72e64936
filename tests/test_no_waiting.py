"""A training step never waits for the device: no value is read, no size depends on one, nothing is copied over.

Every step runs on the simulated accelerator, which writes down where the host would wait; with `--device cuda` the same
steps run under `torch.cuda.set_sync_debug_mode("error")`.
"""

import warnings

import pytest
import torch

from benchmarks.device.methods import METHODS, on_device, prepared, stepper
from models import KMUNet
from models.levels_of_experts.per_image import PerImage
from tests.helpers.accelerator import Accelerator


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_does_not_wait(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # they look every LOSS_CHECK_EVERY steps, without a Trainer at every one
    monkeypatch.setattr(KMUNet, "_check_finite", lambda *_: None)
    monkeypatch.setattr(PerImage, "_freeze_diverged", lambda *_: None)
    method, batch = prepared(name, small=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.trainer.*")
        if device == "cuda":
            step = stepper(method, on_device(method, batch, "cuda"))
            step(), step()  # what is made once is made here
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            return
        with Accelerator() as accelerator:
            step = stepper(method, on_device(method, batch, "cuda"))
            step()
            del accelerator.waits[:]
            step()
    assert not accelerator.waits, sorted(set(accelerator.waits))
