"""Class maps from colours: BT.601 luminance cut by Multi-Otsu or into equal shares, k-means, and what a map costs.

A map chooses the experts of a Levels-of-Experts layer. It is computed from the image that the network is to
reproduce, so its bits are side information; `map_bits` counts them.
"""

import io

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.special import gammaln

from framework.errors import ConfigError, DataError

BT601 = (0.299, 0.587, 0.114)

#: prior count of every class in every context of the adaptive context model, our choice
CONTEXT_PRIOR = 0.05


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded.

    Args:
        rgb: (..., 3), uint8 in [0, 255] or floating point in [0, 1].

    Returns:
        (...) uint8 in [0, 255].

    Raises:
        DataError: another shape or dtype, or values outside the range.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim == 0 or rgb.shape[-1] != 3:
        raise DataError(f"luminance: expected an array (..., 3), got {rgb.shape}")
    if rgb.dtype == np.uint8:
        values = rgb.astype(np.float64)
    elif np.issubdtype(rgb.dtype, np.floating):
        if not (rgb.size == 0 or (rgb.min() >= 0 and rgb.max() <= 1)):  # false for NaN too
            raise DataError(f"luminance: expected floats in [0, 1], got {rgb.min()} to {rgb.max()}")
        values = rgb.astype(np.float64) * 255
    else:
        raise DataError(f"luminance: expected uint8 or floating point, got {rgb.dtype}")
    return np.rint(values @ np.array(BT601)).astype(np.uint8)


def multi_otsu(luminance: np.ndarray, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Multi-Otsu segmentation (Liao, Chen and Chung, 2001): the thresholds of largest between-class variance.

    A value equal to a threshold belongs to the lower class. With no more distinct values than classes every value is a
    class of its own and the upper classes stay empty; a constant image is all class 0.

    Args:
        luminance: (...) uint8.
        classes: number of classes, at least 2.

    Returns:
        the class map, (...) int64 in [0, classes), and the (at most classes - 1) thresholds, int64, ascending.

    Raises:
        ConfigError: fewer than 2 classes. DataError: not uint8, or empty.
    """
    luminance = _checked(luminance, classes)
    values = np.unique(luminance)
    thresholds = values[:-1]
    if len(values) > classes:
        from skimage.filters import threshold_multiotsu  # takes a second to import

        thresholds = threshold_multiotsu(luminance, classes=classes)
    thresholds = thresholds.astype(np.int64)
    return np.digitize(luminance, thresholds, right=True).astype(np.int64), thresholds


def equal_bins(luminance: np.ndarray, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the luminance at its quantiles 1/classes, 2/classes, ..., so that the classes are about equally large.

    Args:
        luminance: (...) uint8.
        classes: number of classes, at least 2.

    Returns:
        the class map, (...) int64 in [0, classes), and the classes - 1 thresholds, float64, ascending. Ties make the
        shares unequal, and may leave classes empty.

    Raises:
        ConfigError: fewer than 2 classes. DataError: not uint8, or empty.
    """
    luminance = _checked(luminance, classes)
    thresholds = np.quantile(luminance, np.arange(1, classes) / classes)
    return np.digitize(luminance, thresholds, right=True).astype(np.int64), thresholds


def kmeans_colours(rgb: np.ndarray, classes: int = 4) -> np.ndarray:
    """k-means of the colours, started at the mean colours of the Multi-Otsu classes; classes ascend in luminance.

    Args:
        rgb: (..., 3) uint8.
        classes: number of classes, at least 2.

    Returns:
        (...) int64 in [0, classes).

    Raises:
        ConfigError: fewer than 2 classes. DataError: not uint8 (..., 3), or empty.
    """
    luma, rgb = luminance(rgb), np.asarray(rgb)
    colours = rgb.reshape(-1, 3).astype(np.float64)
    start, _ = multi_otsu(luma, classes)
    present = np.unique(start)
    centres = np.stack([colours[start.ravel() == c].mean(0) for c in present])
    centres, labels = kmeans2(colours, centres, iter=20, minit="matrix", missing="warn")
    rank = np.argsort(np.argsort(centres @ np.array(BT601)))
    return rank[labels].reshape(luma.shape).astype(np.int64)


def map_bits(class_map: np.ndarray, classes: int) -> dict[str, float]:
    """What storing a class map costs, in bits per pixel.

    Args:
        class_map: (H, W) integers in [0, classes).
        classes: number of classes, 2..256.

    Returns:
        `entropy`: order-0 entropy; `png`: an optimised palette PNG with as few bits per sample as it takes, headers
        included; `context`: ideal code length of an adaptive model (prior 0.05 per class) whose context is the four
        neighbours W, N, NW and NE, class 0 outside the map.

    Raises:
        ConfigError: classes outside 2..256. DataError: not two-dimensional, or values outside [0, classes).
    """
    if not 2 <= classes <= 256:
        raise ConfigError(f"classes: expected 2 to 256, got {classes}")
    labels = np.asarray(class_map)
    if labels.ndim != 2 or labels.size == 0 or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"map_bits: expected a map (H, W) of classes 0..{classes - 1}, got shape {labels.shape}")
    labels = labels.astype(np.int64)
    shares = np.bincount(labels.ravel()) / labels.size
    shares = shares[shares > 0]
    return {
        "entropy": float(-(shares * np.log2(shares)).sum()) + 0.0,
        "png": 8 * len(_png(labels, classes)) / labels.size,
        "context": _context_bits(labels, classes) / labels.size,
    }


def _context_bits(labels: np.ndarray, classes: int) -> float:
    padded = np.pad(labels, ((1, 0), (1, 1)))
    west, north = padded[1:, :-2], padded[:-1, 1:-1]
    north_west, north_east = padded[:-1, :-2], padded[:-1, 2:]
    context = ((west * classes + north) * classes + north_west) * classes + north_east
    # only contexts that occur, so that many classes need no classes^5 table
    _, context = np.unique(context, return_inverse=True)
    counts = np.bincount(context.ravel() * classes + labels.ravel(), minlength=(context.max() + 1) * classes)
    counts = counts.reshape(-1, classes)
    # the product of adaptive probabilities depends on the counts alone (Polya's urn)
    prior, total = CONTEXT_PRIOR, CONTEXT_PRIOR * classes
    nats = gammaln(counts.sum(1) + total) - gammaln(total) - (gammaln(counts + prior) - gammaln(prior)).sum(1)
    return float(nats.sum() / np.log(2))


def _png(labels: np.ndarray, classes: int) -> bytes:
    bits = next(b for b in (1, 2, 4, 8) if 2**b >= classes)
    from PIL import Image

    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([round(255 * c / (classes - 1)) for c in range(classes) for _ in range(3)])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, bits=bits)
    return stream.getvalue()


def _checked(luminance: np.ndarray, classes: int) -> np.ndarray:
    luminance = np.asarray(luminance)  # a tensor on the CPU too
    if classes < 2:
        raise ConfigError(f"classes: expected at least 2, got {classes}")
    if luminance.dtype != np.uint8 or luminance.size == 0:
        raise DataError(f"luminance: expected an image of uint8, got {luminance.dtype} of shape {luminance.shape}")
    return luminance
