"""Synthetic 16-bit images of squares and circles: the data of K-Origins (arXiv 2409.02281).

Every sample is a pure function of (seed, index): no file, no global generator, the same pixels in any order of access
and in any process.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from framework.errors import ConfigError

MAX_INTENSITY = 65535
MAX_CLASSES = 256

ShapeKind = Literal["square", "circle", "both"]
Grey = tuple[float, ...]
RGB = tuple[tuple[float, float, float], ...]


def _integer(argument: str, value: Any, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{argument}: expected an integer of at least {minimum}, got {value!r}") from None
    if number < minimum:
        raise ConfigError(f"{argument}: expected an integer of at least {minimum}, got {number}")
    return number


def _integers(argument: str, values: Any, minimum: int) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{argument}: expected a list of integers of at least {minimum}, got {values!r}")
    return tuple(_integer(argument, value, minimum) for value in values)


def _class_values(argument: str, values: Any) -> Grey | RGB:
    """Check one entry per class, a number (grey) or a triple (RGB), and return it as plain tuples."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.size == 0 or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 3)):
        raise ConfigError(
            f"{argument}: expected one number per class (grey) or one triple per class (RGB), the background first, "
            f"got {values!r}"
        )
    if not np.isfinite(array).all():
        raise ConfigError(f"{argument}: expected finite numbers, got {values!r}")
    if array.ndim == 1:
        return tuple(array.tolist())
    return tuple(tuple(row) for row in array.tolist())


@dataclass(frozen=True)
class SquaresPreset:
    """What one stack of synthetic images looks like; ``dataclasses.replace`` gives a checked variant.

    Lists, as YAML gives them, are stored as tuples. C is the number of classes with the background (class 0).

    Noise that leaves the 16-bit range saturates at 0 or 65535, as in a camera; it never wraps around. A mean within
    six standard deviations of the range is therefore allowed: ``proof_of_failure`` itself has a class (20000, 5250),
    of whose pixels about 7 in 100 000 become 0. A class whose mean lies close to the border has, after saturation,
    a smaller spread than ``std`` says.

    Attributes:
        name: Name of the preset.
        images: Number of images of the stack, at least 1.
        side: Height and width in pixels. The largest shape must fit: at least ``2 * (radius_range[1] - 1) + 1``.
        radius_range: (lowest radius, upper bound), in pixels; the upper bound is exclusive. A square of radius r has
            sides of 2r + 1, a circle is the disc of pixels at a distance of at most r from its centre pixel.
        shapes_per_class: C - 1 counts of shapes per image, one per foreground class; 0 leaves a class out.
        mean: Mean intensity of every class, in [0, 65535]: C numbers (grey) or C triples (RGB).
        std: Standard deviation of the Gaussian noise of every class, at least 0, in the form of ``mean``.
        shape_kind: ``square``, ``circle``, or ``both``: each shape is one or the other with probability 1/2.

    Raises:
        ConfigError: A value is outside these bounds, or lengths do not agree; the message names the argument.
    """

    name: str
    images: int
    side: int
    radius_range: tuple[int, int]
    shapes_per_class: tuple[int, ...]
    mean: Grey | RGB
    std: Grey | RGB
    shape_kind: ShapeKind = "square"

    def __post_init__(self) -> None:
        checked = {
            "images": _integer("data.images", self.images, 1),
            "side": _integer("data.side", self.side, 1),
            "radius_range": _integers("data.radius_range", self.radius_range, 0),
            "shapes_per_class": _integers("data.shapes_per_class", self.shapes_per_class, 0),
            "mean": _class_values("data.mean", self.mean),
            "std": _class_values("data.std", self.std),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)
        self._check_shapes()
        self._check_intensities()

    def _check_shapes(self) -> None:
        if self.shape_kind not in get_args(ShapeKind):
            raise ConfigError(
                f"data.shape_kind: expected one of {', '.join(get_args(ShapeKind))}, got {self.shape_kind!r}"
            )
        if len(self.radius_range) != 2 or self.radius_range[0] >= self.radius_range[1]:
            raise ConfigError(
                "data.radius_range: expected [lowest, upper bound], lowest < upper bound (which is exclusive: [8, 9] "
                f"draws radius 8 only), got {list(self.radius_range)}"
            )
        largest = 2 * (self.radius_range[1] - 1) + 1
        if largest > self.side:
            raise ConfigError(
                f"data.radius_range: the largest shape is {largest} pixels wide, side is {self.side}; "
                "lower data.radius_range or raise data.side"
            )

    def _check_intensities(self) -> None:
        classes = len(self.mean)
        if not 2 <= classes <= MAX_CLASSES:
            raise ConfigError(f"data.mean: expected 2 to {MAX_CLASSES} classes, the background included, got {classes}")
        if len(self.std) != classes:
            raise ConfigError(
                f"data.std: expected {classes} entries, one per class as in data.mean, got {len(self.std)}"
            )
        if isinstance(self.mean[0], tuple) != isinstance(self.std[0], tuple):
            raise ConfigError(
                "data.std: expected mean and std both grey (one number per class) or both RGB (one triple per class), "
                f"got mean {self.mean} and std {self.std}"
            )
        if len(self.shapes_per_class) != classes - 1:
            raise ConfigError(
                f"data.shapes_per_class: expected {classes - 1} counts, one per class without the background, got "
                f"{len(self.shapes_per_class)}"
            )
        mean, std = self.class_statistics()
        for label in range(classes):
            if mean[label].min() < 0 or mean[label].max() > MAX_INTENSITY:
                raise ConfigError(
                    f"data.mean: expected values in [0, {MAX_INTENSITY}], the range of a 16-bit image, got "
                    f"{self.mean[label]} for class {label}"
                )
            if std[label].min() < 0:
                raise ConfigError(f"data.std: expected values of at least 0, got {self.std[label]} for class {label}")

    @property
    def num_classes(self) -> int:
        """Number of classes C, the background included."""
        return len(self.mean)

    @property
    def channels(self) -> int:
        """Number of image channels N: 1 for grey, 3 for RGB."""
        return 3 if isinstance(self.mean[0], tuple) else 1

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``mean`` and ``std`` as arrays, each (C, N) float64 in raw intensities."""
        rows = (self.num_classes, self.channels)
        return np.asarray(self.mean, np.float64).reshape(rows), np.asarray(self.std, np.float64).reshape(rows)


_AUGMENTATION: dict[str, Any] = {
    "images": 1000,
    "side": 200,
    "radius_range": (5, 13),
    "mean": (20000, 25000, 26700),
    "std": (2000, 2000, 3000),
}
# The "pure" stacks keep the labels of the mixed one, so that one network serves all three.
# The radii of the circles of rgb_pathology are not published; those of the other circle presets are used.
_ALL = (
    SquaresPreset("rfl_failure", 200, 400, (8, 9), (50, 50), (20000, 25000, 26000), (0, 0, 0)),
    SquaresPreset("mixed", 200, 200, (5, 15), (15,), (20000, 20000), (1000, 1500)),
    SquaresPreset("proof_of_failure", 500, 200, (10, 15), (25, 25), (16500, 20000, 20000), (900, 1000, 5250)),
    SquaresPreset("int_layer", 200, 200, (9, 13), (10,) * 5, (20000, 25000, 15000, 28000, 30000, 24000), (0,) * 6),
    SquaresPreset(
        "int_layer_rgb",
        200,
        200,
        (9, 13),
        (10,) * 5,
        (
            (29000, 20000, 20100),
            (20000, 20000, 25000),
            (15000, 19000, 15000),
            (28000, 28000, 28000),
            (15000, 22000, 22000),
            (24000, 24000, 29000),
        ),
        ((0, 0, 0),) * 6,
    ),
    SquaresPreset("squares_x2", 200, 200, (3, 7), (10, 10), (20000, 24000, 26000), (0, 0, 0)),
    SquaresPreset("augmentation_mixed", shapes_per_class=(35, 10), **_AUGMENTATION),
    SquaresPreset("augmentation_pure_first", shapes_per_class=(35, 0), **_AUGMENTATION),
    SquaresPreset("augmentation_pure_second", shapes_per_class=(0, 10), **_AUGMENTATION),
    SquaresPreset(
        "what_we_segment",
        100,
        100,
        (3, 7),
        (4,) * 4,
        (20000, 27000, 25000, 15000, 21500),
        (1000, 2000, 3000, 3000, 2000),
        "both",
    ),
    SquaresPreset(
        "rgb_pathology",
        100,
        300,
        (3, 7),
        (3000, 50, 30),
        ((51456, 33280, 41984), (55456, 36280, 45984), (49456, 30280, 45984), (49256, 30080, 45584)),
        ((2000, 2000, 2000), (2000, 2000, 2000), (2000, 2000, 2000), (4000, 2000, 2000)),
        "circle",
    ),
    SquaresPreset("template", 200, 200, (3, 7), (50,), (20000, 25000), (0, 0), "circle"),
)
PRESETS: dict[str, SquaresPreset] = {preset.name: preset for preset in _ALL}


@lru_cache(maxsize=64)
def _disc(radius: int) -> np.ndarray:
    offset = np.arange(-radius, radius + 1)
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2


def _draw_mask(preset: SquaresPreset, rng: np.random.Generator) -> np.ndarray:
    """Paint the shapes class after class, later ones over earlier ones; (H, W) uint8 labels in 0..C-1."""
    low, high = preset.radius_range
    labels = [label for label, count in enumerate(preset.shapes_per_class, start=1) for _ in range(count)]
    centres = rng.integers(low, preset.side - low, size=(len(labels), 2)).tolist()
    radii = rng.integers(low, high, size=len(labels)).tolist()
    if preset.shape_kind == "both":
        round_shapes = rng.integers(0, 2, size=len(labels)).tolist()
    else:
        round_shapes = [preset.shape_kind == "circle"] * len(labels)
    mask = np.zeros((preset.side, preset.side), np.uint8)
    for label, (row, col), radius, is_round in zip(labels, centres, radii, round_shapes, strict=True):
        top, left = max(row - radius, 0), max(col - radius, 0)
        window = mask[top : row + radius + 1, left : col + radius + 1]
        if is_round:
            disc = _disc(radius)[top - row + radius :, left - col + radius :]
            np.copyto(window, label, where=disc[: window.shape[0], : window.shape[1]])
        else:
            window[...] = label
    return mask


def draw_sample(preset: SquaresPreset, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and its label map, a pure function of the arguments.

    The image is filled with the background; for class 1..C-1 in order its shapes are painted, with centre (row, col)
    uniform in [rmin, side - rmin) and radius uniform in [rmin, rmax), clipped at the image edge, later ones over
    earlier ones. Every pixel then gets the Gaussian noise of its label, is saturated to [0, 65535] and truncated to an
    integer (which lowers the mean of a noisy class by 0.5). The data of arXiv 2409.02281 (section on synthetic data).

    Shapes are drawn before the noise, and the noise as standard normals: presets that differ in ``mean`` and ``std``
    only have the same label maps for the same (seed, index).

    Args:
        preset: What to draw.
        seed: Seed of the stack, at least 0.
        index: Number of the sample, at least 0; not limited by ``preset.images``.

    Returns:
        Image (N, H, W) uint16 in raw intensities, and mask (H, W) uint8 with labels in 0..C-1.

    Raises:
        ConfigError: ``seed`` or ``index`` is not an integer of at least 0.
    """
    # A spawn key, unlike a list [seed, index], keeps (2**32, 0) and (0, 1) apart.
    sequence = np.random.SeedSequence(_integer("seed", seed, 0), spawn_key=(_integer("index", index, 0),))
    rng = np.random.Generator(np.random.PCG64(sequence))
    mask = _draw_mask(preset, rng)
    mean, std = preset.class_statistics()
    if not std.any():
        return mean.T.astype(np.uint16).take(mask, axis=1), mask
    pixels = rng.standard_normal((preset.channels, preset.side, preset.side), dtype=np.float32)
    pixels *= std.T.astype(np.float32).take(mask, axis=1)
    pixels += mean.T.astype(np.float32).take(mask, axis=1)
    np.clip(pixels, 0, MAX_INTENSITY, out=pixels)
    return pixels.astype(np.uint16), mask


class SquaresDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples ``indices`` of the stack (preset, seed), drawn when asked for.

    Args:
        preset: What to draw.
        seed: Seed of the stack, at least 0.
        indices: Numbers of the samples, each at least 0; None takes the whole stack, 0..preset.images - 1.
        cache: Keep every drawn sample in memory, as uint16 and uint8 (3 bytes per grey pixel), for the next epoch.
            Worker processes keep one cache each, and lose it between epochs unless they are persistent.

    Raises:
        ConfigError: ``seed`` or an index is not an integer of at least 0, or ``indices`` is empty.
    """

    def __init__(
        self, preset: SquaresPreset, seed: int = 0, indices: Sequence[int] | None = None, *, cache: bool = False
    ) -> None:
        self.preset = preset
        self.seed = _integer("seed", seed, 0)
        if indices is None:
            indices = range(preset.images)
        # a range stays one: a stack may be longer than memory
        self.indices = indices if isinstance(indices, range) else _integers("indices", indices, 0)
        if not self.indices:
            raise ConfigError("indices: expected at least one sample number, got none")
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.indices)

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self._cache is None:
            return draw_sample(self.preset, self.seed, index)
        if index not in self._cache:
            self._cache[index] = draw_sample(self.preset, self.seed, index)
        return self._cache[index]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Return the sample at position ``i`` as fresh tensors.

        Returns:
            ``image`` float32 (N, H, W), raw intensities in [0, 65535]; ``mask`` int64 (H, W), labels in 0..C-1;
            ``index`` int64 scalar, the sample's number in the stack.

        Raises:
            IndexError: ``i`` is not a position of this dataset.
        """
        index = self.indices[i]
        image, mask = self._sample(index)
        return {
            "image": torch.from_numpy(image.astype(np.float32)),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "index": torch.tensor(index, dtype=torch.int64),
        }
