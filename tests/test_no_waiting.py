"""A training step never waits for the device: no value is read, no size depends on one, nothing is copied over.

Every step runs on the simulated accelerator, which writes down where the host would wait; with `--device cuda` the same
steps run under `torch.cuda.set_sync_debug_mode("error")`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.method import BaseMethod
from models import FinolaAutoencoder, KMUNet, KOriginsSegmentation, LevelsOfExperts, MaskedFinola, MasterKeyClassifier
from tests.helpers.accelerator import Accelerator

#: file and function of every wait that a step may have, and why it is no harm
ALLOWED: dict[tuple[str, str], str] = {}

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}
ADAM = functools.partial(torch.optim.Adam, lr=1e-3, foreach=True)
Batch = dict[str, Tensor]


def segmentation(channels: int = 1) -> Batch:
    return {
        "image": 1000 * torch.rand(2, channels, 32, 32),
        "mask": torch.randint(3, (2, 32, 32)),
        "index": torch.arange(2),
    }


def pictures(side: int = 32) -> Batch:
    return {"image": torch.rand(4, 3, side, side), "label": torch.arange(4), "index": torch.arange(4)}


def experts(**arguments: Any) -> BaseMethod:
    method = LevelsOfExperts([4, 2, 1, "map"], width=8, optimizer=ADAM, **arguments)
    method.configure_images(["a", "b"], [[16, 16], [16, 16]])
    method.set_segmentation_maps(torch.randint(4, (2, 16, 16), dtype=torch.uint8))
    return method


def whole_images() -> Batch:
    from framework.nn import coordinate_grid

    return {
        "image": torch.rand(2, 3, 16, 16),
        "coords": coordinate_grid(16, 16).expand(2, -1, -1, -1),
        "index": torch.arange(2),
        "size": torch.full((2, 2), 16),
    }


def classifier(**arguments: Any) -> BaseMethod:
    return MasterKeyClassifier("convnextv2_atto", 4, model_args=SMALL, optimizer=ADAM, **arguments)


def finola(**arguments: Any) -> BaseMethod:
    small = {"channels": 8, "image_size": 32, "map_size": 8, "encoder_width": 8, "decoder_width": 8, "stride": 8}
    return FinolaAutoencoder(**{**small, "encoder_depth": 1, "optimizer": ADAM, **arguments})


def masked(mode: Any) -> BaseMethod:
    small = {"channels": 8, "image_size": 32, "encoder_width": 8, "decoder_width": 8, "encoder_depth": 1, "stride": 4}
    return MaskedFinola(mode, optimizer=ADAM, **small)


METHODS: dict[str, tuple[Callable[[], BaseMethod], Callable[[], Batch]]] = {
    "korigins": (
        lambda: KOriginsSegmentation(
            14, 1, 3, width=4, class_mean=[1, 2, 3], class_std=[1, 1, 1], optimizer=ADAM, deep_mean=0.0, deep_std=1.0
        ),
        segmentation,
    ),
    "korigins, normalised": (
        lambda: KOriginsSegmentation(8, 1, 3, 4, "none", batch_norm=True, standardize_input=True, optimizer=ADAM),
        segmentation,
    ),
    "kmunet": (lambda: KMUNet(1, 3, width=2, stages=2, optimizer=ADAM), segmentation),
    "kmunet, weighted": (
        lambda: KMUNet(
            1, 3, 2, 2, loss="weighted_cross_entropy+dice", class_weights=[1, 2, 3], korigins=[1.0], optimizer=ADAM
        ),
        segmentation,
    ),
    "levels_of_experts": (experts, whole_images),
    "levels_of_experts, in parts": (lambda: experts(rows_at_once=100), whole_images),
    "levels_of_experts, one-hot input": (lambda: experts(class_input=True), whole_images),
    "master_key": (classifier, pictures),
    "master_key, mixed": (lambda: classifier(mixup=0.8, cutmix=1.0, label_smoothing=0.1), pictures),
    "master_key, learned scale": (lambda: classifier(filters="learned-scale"), pictures),
    "finola": (finola, pictures),
    "finola, paths one by one": (lambda: finola(paths=2, checkpoint=True), pictures),
    "finola, wavefront": (lambda: finola(scheme="wavefront"), pictures),
    "masked_finola, element": (lambda: masked("element"), pictures),
    "masked_finola, block": (lambda: masked("block"), pictures),
}


def steps(method: BaseMethod, batch: Batch, count: int) -> None:
    """Training steps as Lightning takes them, the figures counted."""
    optimizer = method._build_optimizer()[0]
    for number in range(count):
        loss = method.training_step(batch, number)
        loss.backward()
        method.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()


def prepared(name: str) -> tuple[BaseMethod, Batch]:
    torch.manual_seed(0)
    build, data = METHODS[name]
    method, batch = build(), data()
    BaseMethod.setup(method, "fit")
    if isinstance(method, LevelsOfExperts):
        method.on_train_epoch_start()
    return method, batch


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_does_not_wait(name: str, device: str) -> None:
    method, batch = prepared(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.trainer.*")
        if device == "cuda":
            method.to("cuda")
            batch = {key: value.to("cuda") for key, value in batch.items()}
            steps(method, batch, 2)  # what is made once is made here
            torch.cuda.set_sync_debug_mode("error")
            try:
                steps(method, batch, 1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            return
        with Accelerator() as accelerator:
            method.to("cuda")
            batch = {key: value.to("cuda") for key, value in batch.items()}
            steps(method, batch, 1)
            del accelerator.waits[:]
            steps(method, batch, 1)
    found = {wait for wait in accelerator.waits if (wait.file, wait.function) not in ALLOWED}
    assert not found, sorted(found)
