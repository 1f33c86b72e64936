"""Linear image codes with a given number of floats: truncated DCT and PCA, the yardsticks for learned latents."""

from typing import Any

import numpy as np
from scipy.fft import dctn, idctn

from framework.errors import ConfigError

#: full-range BT.601: rows Y, Cb, Cr of RGB in [0, 1]
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def dct_zonal(images: np.ndarray, floats: int) -> np.ndarray:
    """Keeps the lowest frequencies of a whole-image DCT in YCbCr, the same ones for every image, split 4:1:1.

    Args:
        images: (B, 3, H, W) RGB in [0, 1], an array or a tensor.
        floats: coefficients kept per image, 3 or more: two thirds for Y, a sixth each for Cb and Cr (what Y
            has no room for is theirs too).

    Returns:
        (B, 3, H, W) float64, clipped to [0, 1].

    Raises:
        ConfigError: floats outside 3 .. 3 H W.
    """
    images = _array(images)
    coefficients = _transform(images, floats)
    height, width = images.shape[2:]
    v, u = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    order = np.argsort((v**2 + u**2).ravel(), kind="stable")
    luma = min(floats - 2 * max(1, floats // 6), height * width)
    mask = np.zeros((3, height * width), dtype=bool)
    for plane, count in enumerate((luma, (floats - luma + 1) // 2, (floats - luma) // 2)):
        mask[plane, order[:count]] = True
    return _inverse(coefficients * mask.reshape(3, height, width))


def dct_top(images: np.ndarray, floats: int) -> np.ndarray:
    """Keeps the largest coefficients of a whole-image DCT in YCbCr; optimistic, as their positions are not counted.

    Args, returns and raises as `dct_zonal`, with `floats` shared freely between the three planes.
    """
    images = _array(images)
    coefficients = _transform(images, floats)
    flat = np.abs(coefficients).reshape(len(images), -1)
    threshold = np.partition(flat, -floats, axis=1)[:, -floats]
    return _inverse(coefficients * (np.abs(coefficients) >= threshold[:, None, None, None]))


def _array(images: Any) -> np.ndarray:
    """An array of an array or of a tensor on any device."""
    return np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)


def _transform(images: np.ndarray, floats: int) -> np.ndarray:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(f"images: expected (B, 3, H, W), got {images.shape}")
    if not 3 <= floats <= images[0].size:
        raise ConfigError(f"floats: expected 3 to {images[0].size} for this image size, got {floats}")
    planes = np.einsum("pc,bchw->bphw", _YCBCR, images.astype(np.float64))
    return dctn(planes, axes=(2, 3), norm="ortho")


def _inverse(coefficients: np.ndarray) -> np.ndarray:
    planes = idctn(coefficients, axes=(2, 3), norm="ortho")
    return np.einsum("cp,bphw->bchw", np.linalg.inv(_YCBCR), planes).clip(0, 1)


class Pca:
    """Principal components of training images; the mean and the components are the model, their weights the latent.

    Args:
        images: (N, 3, H, W) RGB in [0, 1], an array or a tensor.
        floats: the largest number of components that will be asked for.

    Raises:
        ConfigError: more components than the images span.
    """

    def __init__(self, images: np.ndarray, floats: int) -> None:
        images = _array(images)
        flat = images.reshape(len(images), -1).astype(np.float32)
        if not 1 <= floats <= min(flat.shape[0] - 1, flat.shape[1]):
            raise ConfigError(
                f"floats: {len(images)} images of {flat.shape[1]} values span at most "
                f"{min(flat.shape[0] - 1, flat.shape[1])} components, got {floats}"
            )
        size = float(np.square(flat, dtype=np.float64).sum())
        self.mean = flat.mean(0, dtype=np.float64).astype(np.float32)
        flat -= self.mean
        few = flat.shape[0] < flat.shape[1]
        values, vectors = np.linalg.eigh(_gram(flat if few else flat.T))  # the smaller of the two has the same spectrum
        # below this an eigenvalue is what rounding the images to float32 makes, or eigh's own error
        noise = np.finfo(np.float32).eps ** 2 * size + np.finfo(np.float64).eps * len(values) * values[-1]
        spanned = int((values > noise).sum())
        if floats > spanned:
            raise ConfigError(
                f"floats: expected at most {spanned}, the components that these {len(images)} images span, got {floats}"
            )
        components = vectors[:, ::-1][:, :floats].T.astype(np.float32)
        if few:
            components = components @ flat
            components /= np.linalg.norm(components, axis=1, keepdims=True)
        self.components = components

    def reconstruct(self, images: np.ndarray, floats: int) -> np.ndarray:
        """Images (B, 3, H, W) in [0, 1] from their first `floats` weights, clipped to [0, 1]."""
        images = _array(images)
        components = self.components[:floats]
        flat = images.reshape(len(images), -1).astype(np.float32) - self.mean
        return (flat @ components.T @ components + self.mean).clip(0, 1).reshape(images.shape)


def _gram(rows: np.ndarray) -> np.ndarray:
    """Products of all rows (n, d) with each other, (n, n) float64: the squares of small components need its digits."""
    total = np.zeros((len(rows), len(rows)))
    for part in np.array_split(rows, -(-rows.shape[1] // 1024), axis=1):  # not all of it in float64 at once
        wide = part.astype(np.float64)
        total += wide @ wide.T
    return total
