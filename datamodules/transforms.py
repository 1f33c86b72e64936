"""Cropping and augmenting pictures; every draw is from the generator that belongs to (seed, epoch, index)."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from framework.errors import ConfigError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Transform = Callable[[Image.Image, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Finish:
    """The end of every transform: float32 (3, H, W) in [0, 1], less `mean`, divided by `std`, where they are given."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        if self.mean is not None:
            x.sub_(torch.tensor(self.mean).view(3, 1, 1))
        if self.std is not None:
            x.div_(torch.tensor(self.std).view(3, 1, 1))
        return x


@dataclass(frozen=True)
class Later(Finish):
    """Leaves the end to the device (`datamodules.on_device`): uint8 (3, H, W)."""

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to `resize`, then the central `size` x `size` (`center`); or all of it to `size` (`squash`)."""

    size: int
    resize: int
    interpolation: Interpolation
    crop: Literal["center", "squash"]
    finish: Finish

    def plain(self) -> dict[str, Any]:
        """As YAML types, under the data module's own names."""
        mean, std = (None if values is None else list(values) for values in (self.finish.mean, self.finish.std))
        sizes = {"image_size": self.size, "resize": self.resize, "interpolation": self.interpolation}
        return {**sizes, "eval_crop": self.crop, "mean": mean, "std": std}

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        method = _METHODS[self.interpolation]
        if self.crop == "squash":
            return self.finish(image.resize((self.size, self.size), method))
        image = _shorter_side(image, self.resize, method)
        left, top = (round((side - self.size) / 2) for side in image.size)
        return self.finish(image.crop((left, top, left + self.size, top + self.size)))


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, flip, augmentation policy, random erasing.

    Args:
        size: of the result.
        resize: shorter side before a `random` or `center` crop.
        interpolation: of every resize.
        crop: `random_resized`: a share of the area in `scale` at an aspect ratio in [3/4, 4/3]; `random`: a window of
            the resized picture; `center`: as in evaluation.
        scale: of `random_resized`.
        flip: mirror every second picture.
        policy: an augmentation in timm's words, e.g. `rand-m9-mstd0.5-inc1`; None: without.
        erase: probability of filling a rectangle of 2 % to 33 % of the area with normal noise.
        finish: the conversion to a tensor.
    """

    size: int
    resize: int
    interpolation: Interpolation
    crop: Literal["random_resized", "random", "center"]
    scale: tuple[float, float]
    flip: bool
    policy: str | None
    erase: float
    finish: Finish

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        method = _METHODS[self.interpolation]
        if self.crop == "random_resized":
            image = image.resize((self.size, self.size), method, box=_random_box(image.size, self.scale, rng))
        else:
            image = _shorter_side(image, self.resize, method)
            room = [side - self.size for side in image.size]
            left, top = (
                (int(rng.integers(r + 1)) for r in room) if self.crop == "random" else (round(r / 2) for r in room)
            )
            image = image.crop((left, top, left + self.size, top + self.size))
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy is not None:
            with _seeded(rng):
                image = _timm_policy(self.policy, self.size, self.finish.mean)(image)
        x = self.finish(image)
        return _erase(x, rng) if self.erase and rng.random() < self.erase else x


_METHODS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def _shorter_side(image: Image.Image, length: int, method: Image.Resampling) -> Image.Image:
    width, height = image.size
    if min(width, height) == length:
        return image
    if width < height:
        return image.resize((length, int(length * height / width)), method)
    return image.resize((int(length * width / height), length), method)


def _random_box(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _erase(x: Tensor, rng: np.random.Generator) -> Tensor:
    height, width = x.shape[1:]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = rng.standard_normal((3, h, w), dtype=np.float32)
            x[:, top : top + h, left : left + w] = torch.from_numpy(noise)
            break
    return x


@contextlib.contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    # timm's policies draw from the two global generators, which must neither matter nor move
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _timm_policy(policy: str, size: int, mean: tuple[float, ...] | None) -> Any:
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = kinds.get(policy.split("-")[0], auto_augment_transform)
    fill = tuple(round(255 * m) for m in mean) if mean is not None else (128, 128, 128)
    try:
        return make(policy, {"translate_const": int(0.45 * size), "img_mean": fill})
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"data.auto_augment: {policy!r} is not a policy in timm's words, e.g. rand-m9-mstd0.5-inc1 ({error})"
        ) from error
