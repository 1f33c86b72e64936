"""A picture larger than memory as normalised channels, window by window."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from datamodules.picture import Picture
from datamodules.planes import check_count, count_channels, image_of, white_of
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized

Window = Callable[[int, int, int, int], np.ndarray]

#: pixels of a band of rows, when statistics are gathered
BAND = 2**22


def has_windows(picture: Picture, reading: Reading) -> bool:
    """Whether `windows` can be had of a picture."""
    if picture.window is None or reading.downscale > 1 or reading.slices == "each":
        return False
    mixed = reading.channels == 1 and (picture.colour or picture.palette is not None)
    return reading.normalize != "percentile" or (0 < picture.bits <= 16 and not mixed)


def windows(picture: Picture, reading: Reading) -> Window | None:
    """A function (y0, y1, x0, x1) -> (N, h, w) float32, normalised as the whole picture would be.

    Statistics of the picture (`zscore`, `percentile`) are gathered first, band by band: mean and deviation in float64,
    percentiles from counts of every value.

    Args:
        picture: an open picture.
        reading: the input contract.

    Returns:
        None where this cannot be: a format without windows, `downscale`, percentiles of floats or of grey from colours.

    Raises:
        DataError: another number of channels than the network knows, or `depth` and a file without one.
    """
    if not has_windows(picture, reading):
        return None
    check_count(count_channels(picture), reading, picture.path)
    white = white_of(picture, reading)

    def raw(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return image_of(picture.cropped(y0, y1, x0, x1), reading.channels, reading.bit_depth, reading.slices)

    if reading.normalize == "percentile":
        limits = _percentiles(picture, raw)
        if limits is None:
            return None
        low, high = limits
        return lambda *where: (raw(*where) - low) / np.maximum(high - low, 1e-6)
    settled = reading
    if reading.normalize == "zscore":
        mean, std = _moments(picture, raw)
        settled = replace(reading, normalize="dataset", mean=mean.tolist(), std=std.tolist())
    return lambda *where: normalized(raw(*where), settled, white)


def _bands(picture: Picture, raw: Window) -> Iterator[np.ndarray]:
    height, width = picture.size
    rows = max(1, BAND // width)
    for y in range(0, height, rows):
        yield raw(y, min(height, y + rows), 0, width)


def _moments(picture: Picture, raw: Window) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every channel; twice through the picture, so that no digits are lost."""
    count = picture.size[0] * picture.size[1]
    mean = sum(band.sum((1, 2), dtype=np.float64) for band in _bands(picture, raw)) / count
    centred = mean[:, None, None]  # type: ignore[index]
    squares = sum(((band - centred) ** 2).sum((1, 2)) for band in _bands(picture, raw))
    return np.asarray(mean), np.sqrt(np.asarray(squares) / count)


def _percentiles(picture: Picture, raw: Window) -> tuple[np.ndarray, np.ndarray] | None:
    """The 0.1st and 99.9th percentile of every channel, each (N, 1, 1), as numpy interpolates them."""
    if not 0 < picture.bits <= 16:
        return None
    counts: np.ndarray | None = None
    for band in _bands(picture, raw):
        whole = band.astype(np.int64)
        if (whole != band).any():
            return None
        found = np.stack([np.bincount(channel.ravel(), minlength=2**16) for channel in whole])
        counts = found if counts is None else counts + found
    assert counts is not None
    return _percentile(counts, 0.1), _percentile(counts, 99.9)


def _percentile(counts: np.ndarray, percent: float) -> np.ndarray:
    below = counts.cumsum(1)
    place = (below[0, -1] - 1) * percent / 100
    first, second = (
        np.array([np.searchsorted(row, int(k), side="right") for row in below], np.float64)
        for k in (np.floor(place), np.ceil(place))
    )
    return (first + (second - first) * (place - np.floor(place))).astype(np.float32)[:, None, None]
