"""Random changes that treat image and mask alike, and the window of a picture that a crop needs."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: rows [y0, y1) and columns [x0, x1)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes, 0 or False for none.

    Attributes:
        flip: mirror along each axis half of the time.
        rotate: largest angle in degrees.
        scale: largest relative change of size, e.g. 0.2 for 1 / 1.2 to 1.2.
        elastic: standard deviation in pixels of displacements on a 3 x 3 grid, interpolated by cubic splines
            (Ronneberger et al., arXiv 1505.04597, section 3.1).
        intensity: largest relative change of contrast, and of brightness in units of the image's standard deviation.
    """

    flip: bool = True
    rotate: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    intensity: float = 0.0


@dataclass(frozen=True)
class Change:
    """What has been drawn for one sample.

    Attributes:
        box: the pixels that are needed for it.
        places: (2, h, w) where every pixel comes from, (y, x) counted from the box; None: the box itself.
        mirror: along y, along x.
        gain: relative change of contrast.
        lift: brightness in units of the deviation.
    """

    box: Box
    places: np.ndarray | None
    mirror: tuple[bool, bool]
    gain: float
    lift: float


def numbers(size: tuple[int, int], settings: Augmentation, crop: int | None, rng: np.random.Generator) -> np.ndarray:
    """What is drawn for one sample, (26,) float64; arguments as those of `draw`.

    Top and left of the crop, the angle in radians, the factor of the size, mirrored along y and x, gain, lift, and two
    3 x 3 grids of displacements in pixels.
    """
    height, width = size
    h, w = (crop, crop) if crop else (height, width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    angle = np.deg2rad(rng.uniform(-settings.rotate, settings.rotate))
    zoom = (1 + settings.scale) ** rng.uniform(-1, 1)
    bends = rng.normal(0, 1, (2, 3, 3)) * settings.elastic
    mirror = rng.integers(2, size=2) * settings.flip
    gain, lift = rng.uniform(-1, 1, 2) * settings.intensity
    return np.array([top, left, angle, zoom, *mirror, gain, lift, *bends.ravel()])


def draw(size: tuple[int, int], settings: Augmentation, crop: int | None, rng: np.random.Generator) -> Change:
    """One random crop, turn, size, bend and mirror; contrast and brightness.

    Args:
        size: (H, W) of the picture; no pixel of it is looked at.
        settings: strengths.
        crop: side of the result; None keeps H and W.
        rng: the sample's own generator.
    """
    height, width = size
    h, w = (crop, crop) if crop else (height, width)
    drawn = numbers(size, settings, crop, rng)
    (angle, zoom, *mirror, gain, lift), bends = drawn[2:8], drawn[8:].reshape(2, 3, 3)
    top, left = int(drawn[0]), int(drawn[1])
    box, places = (top, top + h, left, left + w), None
    if angle or zoom != 1 or settings.elastic:
        y, x = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
        places = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x]) / zoom
        places += np.array([top + (h - 1) / 2, left + (w - 1) / 2])[:, None, None]
        if settings.elastic:
            places += np.stack(
                [ndimage.zoom(b, (h / 3, w / 3), order=3, grid_mode=True, mode="nearest") for b in bends]
            )
        box = (*_span(places[0], height), *_span(places[1], width))
        places -= np.array([box[0], box[2]])[:, None, None]
    return Change(box, places, (bool(mirror[0]), bool(mirror[1])), gain, lift)


def _span(places: np.ndarray, length: int) -> tuple[int, int]:
    """The part [first, last) of an axis that linear interpolation at `places` reads, mirrored ends among it."""
    first, last = int(np.floor(places.min())), int(np.floor(places.max())) + 2
    if first < 0:
        last = max(last, 1 - first)
    if last > length:
        first = min(first, 2 * length - last - 1)
    return max(first, 0), min(last, length)


def changed(image: np.ndarray, mask: np.ndarray, change: Change) -> tuple[np.ndarray, np.ndarray]:
    """What `draw` has drawn, done to the pixels of its box.

    Args:
        image: (C, y1 - y0, x1 - x0) float32.
        mask: (y1 - y0, x1 - x0) uint8.
        change: what is to be done.

    Returns:
        (C, h, w) float32 by linear interpolation and (h, w) uint8 by the nearest pixel, borders mirrored.
    """
    if change.places is not None:
        image = np.stack([ndimage.map_coordinates(c, change.places, order=1, mode="reflect") for c in image])
        mask = ndimage.map_coordinates(mask, change.places, order=0, mode="reflect")
    for axis in (1, 2):
        if change.mirror[axis - 1]:
            image, mask = np.flip(image, axis), np.flip(mask, axis - 1)
    if change.gain or change.lift:
        image = np.ascontiguousarray(image)  # a view of a whole picture is summed in another order
        mean = image.mean((1, 2), keepdims=True)
        image = mean + (image - mean) * (1 + change.gain) + change.lift * image.std((1, 2), keepdims=True)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """The box of (..., H, W)."""
    y0, y1, x0, x1 = box
    return array[..., y0:y1, x0:x1]
