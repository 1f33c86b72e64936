"""Objects of a label image: from classes by watershed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

#: pixels so far apart never compete, so that an order within as many rows and columns is enough
_APART = 4096


@dataclass(frozen=True)
class Growth:
    """How seeds become objects.

    Attributes:
        seed: classes -> bool, where seeds are.
        mask: classes -> bool, where objects may be, seeds among it.
        height: classes -> the watershed's landscape, in steps above 1e-4.
    """

    seed: Callable[[np.ndarray], np.ndarray]
    mask: Callable[[np.ndarray], np.ndarray]
    height: Callable[[np.ndarray], np.ndarray]


#: classes background, inside, border: insides grow into the border by their distance
FROM_BORDER = Growth(
    lambda classes: classes == 1,
    lambda classes: (classes == 1) | (classes == 2),
    lambda classes: ndimage.distance_transform_edt(classes != 1),
)


def objects_of(classes: np.ndarray, growth: Growth = FROM_BORDER) -> np.ndarray:
    """(H, W) classes -> (H, W) int32 objects 1, 2, ... by watershed.

    Connected seeds are the objects, numbered by their first pixels, row by row, and grow into the rest of the mask.
    """
    seeds, _ = ndimage.label(growth.seed(classes))
    return grown(classes, seeds, growth, (0, 0)).astype(np.int32)


def grown(classes: np.ndarray, seeds: np.ndarray, growth: Growth, corner: tuple[int, int]) -> np.ndarray:
    """(h, w) labels of seeds -> (h, w) labels of objects, by watershed.

    Pixels of one height are taken row by row, so that a part of a picture is parted as the whole is: scikit-image takes
    them in the order of its heap, which depends on all pixels. Pixels that only seeds surround are left out, which does
    not change what becomes of the others.

    Args:
        classes: (h, w) of a picture or a part of it.
        seeds: (h, w), 0 where there is none.
        growth: how they grow.
        corner: row and column where the part begins.
    """
    mask = growth.mask(classes)
    free = mask & (seeds == 0)
    if not free.any() or not seeds.any():
        return seeds
    near = ndimage.binary_dilation(free) & mask
    rows, columns = (np.arange(n) + start for n, start in zip(classes.shape, corner, strict=True))
    order = (rows % _APART)[:, None] * _APART + columns % _APART
    flooded = watershed(growth.height(classes) + 1e-4 * order / _APART**2, np.where(near, seeds, 0), mask=near)
    return np.where(free, flooded, seeds)
