"""Picture files: finding them, reading them, cropping and augmenting them; every draw is from (seed, epoch, index)."""

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from skimage import io
from torch import Tensor
from torch.utils.data import Dataset

from framework.errors import ConfigError, DataError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"])
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Transform = Callable[[Image.Image, np.random.Generator], Tensor]


def read_pixels(path: str | Path) -> np.ndarray:
    """A picture as it is stored: (H, W) or (H, W, channels) in its own depth, uint8 or uint16 for PNG.

    Raises:
        OSError, ValueError and others: the decoders' own.
    """
    with open(path, "rb") as file:
        header = file.read(26)
    # Pillow, and scikit-image through it, cuts every PNG of 16 bits to 8 unless it is plain grey (colour type 0).
    if header.startswith(b"\x89PNG\r\n\x1a\n") and header[24:25] == b"\x10" and header[25:26] != b"\0":
        return _read_deep_colour(path)
    return np.asarray(io.imread(path))


def _read_deep_colour(path: str | Path) -> np.ndarray:
    """(H, W, 2 to 4) uint16 of a PNG: Pillow has no such image, but unpacks the high or the low bytes of values."""

    def unpacked(raw_mode: str) -> np.ndarray:
        with Image.open(path) as file:
            file.tile = [file.tile[0]._replace(args=raw_mode)]
            return np.array(file)

    with Image.open(path) as file:
        stored = str(file.tile[0].args)  # e.g. RGB;16B
    if stored == "LA;16B":  # two values of two bytes: as many bytes as a pixel of RGBA has
        return unpacked("RGBA").view(">u2").astype(np.uint16)
    high, low = unpacked(stored), unpacked(stored.replace("16B", "16L"))
    return high.astype(np.uint16) << 8 | low


def read_rgb(path: str | Path) -> Image.Image:
    """A picture as 8-bit RGB: grey is repeated, alpha is dropped, 16 bits keep their upper 8.

    Raises:
        DataError: the file is missing or is not a readable picture.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.int64)
                deep = image.mode != "I" or grey.max(initial=0) > 255
                image = Image.fromarray((grey // 256 if deep else grey).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}); restore the file or remove it"
        ) from error


def list_pictures(folder: Path) -> list[str]:
    """Paths of all pictures in a folder and below it, sorted; hidden files and folders are passed over."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(where, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found)


@dataclass
class Listing:
    """The pictures of one tree: paths, class indices (None without classes) and the class names in index order."""

    paths: list[str]
    labels: list[int] | None
    class_names: list[str]

    def take(self, positions: Sequence[int]) -> "Listing":
        """The same classes with a part of the pictures."""
        labels = None if self.labels is None else [self.labels[i] for i in positions]
        return Listing([self.paths[i] for i in positions], labels, self.class_names)


def scan(root: Path, argument: str = "data.root") -> Listing:
    """Lists a tree: one class per sub-folder that holds pictures, in sorted order; or a flat folder without classes.

    Raises:
        DataError: no such folder, no picture in it, or an empty class folder beside full ones.
    """
    if not root.is_dir():
        raise DataError(f"{argument}: there is no folder {root}")
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    per_class = {name: list_pictures(root / name) for name in folders}
    full = [name for name in folders if per_class[name]]
    if not full:
        flat = list_pictures(root)
        if not flat:
            raise DataError(
                f"{argument}: {root} holds no picture ({', '.join(sorted(SUFFIXES))}), "
                "neither in class folders nor beside them"
            )
        return Listing(flat, None, [])
    if len(full) < len(folders):
        empty = [name for name in folders if not per_class[name]]
        raise DataError(
            f"{argument}: {len(empty)} of the {len(folders)} class folders of {root} hold no picture: {shown(empty)}; "
            "fill them or remove them"
        )
    paths = [path for name in full for path in per_class[name]]
    labels = [label for label, name in enumerate(full) for _ in per_class[name]]
    return Listing(paths, labels, full)


def shown(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more


# ---------------------------------------------------------------------------------------------------- transforms


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
class EvalTransform:
    """Shorter side to `resize`, then the central `size` x `size` (`center`); or all of it to `size` (`squash`)."""

    size: int
    resize: int
    interpolation: Interpolation
    crop: Literal["center", "squash"]
    finish: Finish

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


class ImageFiles(Dataset):
    """Pictures of a listing as `image` (3, H, W), `label` (where there are classes) and `index` (position in the tree).

    Args:
        listing: of the whole tree.
        positions: of the pictures that belong to this dataset.
        transform: of a picture, with a generator of its own.
        seed: of that generator, together with epoch and index.
    """

    def __init__(self, listing: Listing, positions: Sequence[int], transform: Transform, seed: int = 0) -> None:
        self.positions = np.asarray(positions, dtype=np.int64)
        self.listing = listing
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        position = int(self.positions[item])
        rng = np.random.default_rng([self.seed, getattr(item, "epoch", 0), position])
        sample = {"image": self.transform(read_rgb(self.listing.paths[position]), rng)}
        if self.listing.labels is not None:
            sample["label"] = torch.tensor(self.listing.labels[position])
        sample["index"] = torch.tensor(position)
        return sample


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
