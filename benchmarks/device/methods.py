"""Every method with a batch of numbers, small for tests or as large as its recipe, and its bare training steps."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from framework.method import BaseMethod
from framework.nn import coordinate_grid
from models import FinolaAutoencoder, KMUNet, KOriginsSegmentation, LevelsOfExperts, MaskedFinola, MasterKeyClassifier
from models.levels_of_experts.per_image import PerImage

ADAM = functools.partial(torch.optim.Adam, lr=1e-3, foreach=True)
Batch = dict[str, Any]


def segmentation(batch: int, side: int) -> Batch:
    """Grey pictures with three classes."""
    image = 1000 * torch.rand(batch, 1, side, side)
    return {"image": image, "mask": torch.randint(3, (batch, side, side)), "index": torch.arange(batch)}


def pictures(batch: int, side: int) -> Batch:
    """RGB pictures of four classes."""
    return {"image": torch.rand(batch, 3, side, side), "label": torch.arange(batch) % 4, "index": torch.arange(batch)}


def whole_images(count: int, height: int, width: int) -> Batch:
    """What KodakDataModule gives."""
    return {
        "image": torch.rand(count, 3, height, width),
        "coords": coordinate_grid(height, width).expand(count, -1, -1, -1).contiguous(),
        "index": torch.arange(count),
        "size": torch.tensor([[height, width]] * count),
    }


def korigins(small: bool, **arguments: Any) -> BaseMethod:
    chosen = {"rfl": 14, "width": 4} if small else {"rfl": 18, "width": 16}
    known = {"class_mean": [100.0, 200.0, 300.0], "class_std": [1.0, 1.0, 1.0]}
    return KOriginsSegmentation(**{**chosen, "num_classes": 3, **known, "optimizer": ADAM, **arguments})


def kmunet(small: bool, **arguments: Any) -> BaseMethod:
    return KMUNet(**{"num_classes": 3, "width": 2 if small else 6, "stages": 2, "optimizer": ADAM, **arguments})


def experts(small: bool, **arguments: Any) -> BaseMethod:
    height, width = (16, 16) if small else (512, 768)
    method = LevelsOfExperts(
        **{
            "experts": [4, 2, 1, "map"] if small else [128, 8, 4, "map"],
            "width": 8 if small else 256,
            "optimizer": ADAM,
            **arguments,
        }
    )
    names = ["a", "b"] if small else ["a"]
    method.configure_images(names, [[height, width]] * len(names))
    classes = (torch.arange(height)[:, None] * torch.arange(width) // 7 % 4).to(torch.uint8)
    method.set_segmentation_maps(classes.expand(len(names), -1, -1).contiguous())
    return method


def classifier(small: bool, **arguments: Any) -> BaseMethod:
    size = {"model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}} if small else {}
    name = "convnextv2_atto" if small else "convnextv2_tiny"
    return MasterKeyClassifier(name, 4, **{**size, "optimizer": ADAM, **arguments})


def finola(small: bool, **arguments: Any) -> BaseMethod:
    size = (
        {"channels": 8, "image_size": 32, "map_size": 8, "encoder_width": 8, "decoder_width": 8, "encoder_depth": 1}
        if small
        else {"channels": 128, "image_size": 64, "map_size": 16, "encoder_width": 16, "decoder_width": 64}
    )
    return FinolaAutoencoder(**{**size, "stride": 8, "optimizer": ADAM, **arguments})


def masked(small: bool, **arguments: Any) -> BaseMethod:
    size = (
        {"channels": 8, "image_size": 32, "encoder_width": 8, "decoder_width": 8, "encoder_depth": 1} if small else {}
    )
    return MaskedFinola(**{**size, "optimizer": ADAM, **arguments})


Case = tuple[Callable[[bool], BaseMethod], Callable[[bool], Batch]]


def _squares(small: bool) -> Batch:
    return segmentation(2, 32) if small else segmentation(3, 400)


def _nuclei(small: bool) -> Batch:
    return segmentation(2, 32) if small else segmentation(8, 256)


def _kodak(small: bool) -> Batch:
    return whole_images(2, 16, 16) if small else whole_images(1, 512, 768)


def _imagenet(small: bool) -> Batch:
    return pictures(4, 32) if small else pictures(32, 224)


def _crops(small: bool) -> Batch:
    return pictures(4, 32) if small else pictures(64, 64)


#: method and variant -> how it is built and what it is fed
METHODS: dict[str, Case] = {
    "korigins": (korigins, _squares),
    "korigins, normalised": (
        lambda small: korigins(small, origins="none", batch_norm=True, standardize_input=True),
        _squares,
    ),
    "kmunet": (kmunet, _nuclei),
    "kmunet, weighted": (
        lambda small: kmunet(
            small, loss="weighted_cross_entropy+dice", class_weights=[1.0, 2.0, 3.0], korigins=[500.0]
        ),
        _nuclei,
    ),
    "levels_of_experts": (experts, _kodak),
    "levels_of_experts, in parts": (lambda small: experts(small, rows_at_once=100 if small else 65536), _kodak),
    "levels_of_experts, one-hot input": (lambda small: experts(small, class_input=True), _kodak),
    "master_key": (classifier, _imagenet),
    "master_key, mixed": (lambda small: classifier(small, mixup=0.8, cutmix=1.0, label_smoothing=0.1), _imagenet),
    "master_key, learned scale": (lambda small: classifier(small, filters="learned-scale"), _imagenet),
    "finola": (finola, _crops),
    "finola, paths one by one": (lambda small: finola(small, paths=2, checkpoint=True), _crops),
    "finola, wavefront": (lambda small: finola(small, scheme="wavefront"), _crops),
    "masked_finola, element": (masked, _crops),
    "masked_finola, block": (lambda small: masked(small, mode="block"), _crops),
}


def prepared(name: str, small: bool) -> tuple[BaseMethod, Batch]:
    """A method with its metrics, and a batch, both on the CPU."""
    torch.manual_seed(0)
    build, data = METHODS[name]
    method, batch = build(small), data(small)
    method._build_metrics()
    if isinstance(method, MaskedFinola):
        batch["corners"] = method.corners(batch["index"], 0)  # Lightning's hook draws them before the transfer
    return method, batch


def on_device(method: BaseMethod, batch: Batch, device: str) -> Batch:
    """Moves the method, and returns the batch there."""
    method.to(device)
    if isinstance(method, LevelsOfExperts):
        method.on_train_epoch_start()
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def stepper(method: BaseMethod, batch: Batch) -> Callable[[], None]:
    """A training step as Lightning takes it, the figures counted, without its loop and loggers."""
    optimizer = method._build_optimizer()[0]
    if isinstance(method, LevelsOfExperts):
        per_image = PerImage()  # what its run has around the optimizer
        optimizer.register_step_pre_hook(functools.partial(per_image._before_step, method))
        optimizer.register_step_post_hook(functools.partial(per_image._after_step, method))

    def step() -> None:
        loss = method.training_step(batch, 0)
        loss.backward()
        method.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
