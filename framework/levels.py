"""Objects as levels of the distance to their edge, and back: what `data.targets: distance` trains and predicts."""

import numpy as np
from scipy import ndimage

from framework.instances import Growth, objects_of


def distance_levels(objects: np.ndarray, levels: int) -> np.ndarray:
    """0 ground, 1 to `levels`: the distance to the object's edge as a share of its largest, in equal steps.

    The steps of a distance are classes, so that whatever gives classes learns them (Bai and Urtasun, arXiv 1611.08303,
    section 3.2; here of every object's own largest distance, so that small objects have all levels). The picture's
    border is no edge.

    Args:
        objects: (H, W) integers, ground 0 or less.
        levels: L.

    Returns:
        (H, W) uint8.
    """
    found = np.zeros(objects.shape, np.uint8)
    for number, where in enumerate(ndimage.find_objects(np.maximum(objects, 0)), 1):
        if where is None:
            continue
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in where)
        own = objects[around] == number
        distance = ndimage.distance_transform_edt(own) if not own.all() else np.ones(own.shape)
        found[around][own] = np.ceil(distance[own] / distance.max() * levels)
    return found


def from_levels(levels: int) -> Growth:
    """Connected pixels from the middle level on are seeds, and grow downhill to the ground.

    Seeds from higher levels on would be parts of objects, from the first one on neighbours together.
    """
    lowest = max(2, (levels + 1) // 2)
    return Growth(
        lambda classes: classes >= lowest, lambda classes: classes > 0, lambda classes: -classes.astype(np.float64)
    )


def objects_of_levels(classes: np.ndarray, levels: int) -> np.ndarray:
    """(H, W) ground and levels -> (H, W) int32 objects 1, 2, ... by watershed."""
    return objects_of(classes, from_levels(levels))
