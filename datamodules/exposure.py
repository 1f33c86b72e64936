"""How long the shutter was open: a factor on the intensities of a picture, as its camera would have recorded it.

Exposure is what happened to a picture, not how files become samples: it is no part of a checkpoint's preprocessing.
With `data.downscale` it is the smaller picture that is exposed: the mean of a block is cut off at the largest number,
not each of its pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework.errors import ConfigError

#: keeps these draws apart from the augmentation's, which come from (seed, epoch, index) alone
_STREAM = 0xE


@dataclass(frozen=True)
class Exposure:
    """Factors between two bounds, log-uniform: as often twice as bright as half as bright.

    Attributes:
        low: smallest factor, above 0.
        high: largest factor; as `low` for one factor for all pictures.
    """

    low: float = 1.0
    high: float = 1.0

    def factor(self, seed: int, epoch: int, index: int) -> float:
        """That of a picture in an epoch, a function of the three numbers."""
        if self.low == self.high:
            return self.low
        rng = np.random.default_rng([seed, epoch, index, _STREAM])
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)


def training_exposure(bounds: Sequence[float] | None) -> Exposure:
    """`data.exposure`.

    Raises:
        ConfigError: no two numbers, or none that a factor can lie between.
    """
    if bounds is None:
        return Exposure()
    if len(bounds) != 2 or not all(math.isfinite(b) for b in bounds) or not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(
            f"data.exposure: expected [lowest, highest] factor with 0 < lowest <= highest, got {list(bounds)}; give "
            "[0.3, 3] for a tenfold range, or null for none"
        )
    return Exposure(float(bounds[0]), float(bounds[1]))


def evaluation_exposure(factor: float) -> Exposure:
    """`data.eval_exposure`.

    Raises:
        ConfigError: not a number above 0.
    """
    if not math.isfinite(factor) or factor <= 0:
        raise ConfigError(f"data.eval_exposure: expected a factor above 0, got {factor}; give 1 for the files as is")
    return Exposure(float(factor), float(factor))


def exposed(image: np.ndarray, factor: float, white: int) -> np.ndarray:
    """A picture as a camera up to `white` records it, open `factor` times as long; without noise of its own.

    Args:
        image: (C, H, W) float32 raw intensities; it is left as it is.
        factor: above 0.
        white: the largest number of the picture's file, which nothing exceeds; 0: there is none.

    Returns:
        (C, H, W) float32; `image` itself where the factor is 1.
    """
    if factor == 1:
        return image
    brighter = image * np.float32(factor)
    return np.minimum(brighter, np.float32(white)) if white else brighter
