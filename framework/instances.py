"""Objects of a label image: from classes by watershed."""

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed


def objects_of(classes: np.ndarray) -> np.ndarray:
    """(H, W) classes background, inside, border -> (H, W) int32 objects 1, 2, ... by watershed.

    Connected insides are the seeds, and grow into the border between them.
    """
    seeds, _ = ndimage.label(classes == 1)
    if not seeds.any():
        return np.zeros(classes.shape, np.int32)
    distance = ndimage.distance_transform_edt(classes != 1)
    return watershed(distance, seeds, mask=(classes == 1) | (classes == 2)).astype(np.int32)
