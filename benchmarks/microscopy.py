"""Nuclei at exposures that a network has seen and has not: figures of one network, and a floor without any network."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_multiotsu
from skimage.segmentation import watershed

from datamodules import SegmentationDataModule
from datamodules.exposure import evaluation_exposure
from datamodules.segmentation_data import SegmentationFiles
from framework.metrics import Matches, match_objects
from models.segmenter import SegmentationMethod

#: factors on the test pictures' raw intensities; a training range of [0.3, 3] has seen the three in the middle
EXPOSURES = (0.1, 0.3, 1.0, 3.0, 10.0)

#: found objects of fewer pixels are left out: specks, which the truth of these files hardly has
SMALLEST = 10

#: (C, H, W) picture -> (H, W) objects 1, 2, ..., 0 ground
Finder = Callable[[np.ndarray], np.ndarray]


def figures(model: SegmentationMethod, data: SegmentationDataModule) -> dict[str, object]:
    """Figures of a network on the test pictures at every exposure, and what of it lies outside its weights.

    Returns:
        what `at_exposures` gives, and `origins`, the first level's as they are after training.
    """
    model.eval()

    @torch.no_grad()
    def find(image: np.ndarray) -> np.ndarray:
        classes = model(torch.from_numpy(image)[None].to(model.device)).argmax(1)
        return model.predicted_objects(classes)[0]

    origins: list[torch.Tensor] = getattr(model.network, "origin_parameters", list)()
    first = sorted(origins[0].detach().flatten().tolist()) if origins else []
    return {**at_exposures(find, data), "origins": " ".join(f"{value:.4g}" for value in first)}


def at_exposures(find: Finder, data: SegmentationDataModule) -> dict[str, object]:
    """How well objects are found on the test pictures, exposed by every factor of `EXPOSURES`.

    Returns:
        for a factor of 3 the columns `f1_x3` (F1 of the objects at IoU 0.5), `ap_x3` (average precision, mean over IoU
        0.5 to 0.95) and `dice_x3` (of the pixels of all objects), counts summed over the pictures first. What is found
        of fewer than `SMALLEST` pixels does not count.
    """
    pairs = data.splits.pairs("test", data.reading)
    files = SegmentationFiles(pairs, data.reading, cache=True, with_objects=True)
    row: dict[str, object] = {}
    for factor in EXPOSURES:
        files.exposure = evaluation_exposure(factor)
        row |= {f"{name}_x{factor:g}": round(value, 4) for name, value in _scores(find, files).items()}
    return row


def _scores(find: Finder, files: SegmentationFiles) -> dict[str, float]:
    every: Matches | None = None
    both, sides = 0, 0
    for place in range(len(files)):
        sample = files[place]
        truth, found = sample["objects"].numpy(), without_specks(find(sample["image"].numpy()), SMALLEST)
        matches = match_objects(truth, found)
        every = matches if every is None else every + matches
        both += int(np.count_nonzero((truth > 0) & (found > 0)))
        sides += int(np.count_nonzero(truth > 0)) + int(np.count_nonzero(found > 0))
    assert every is not None
    whole = every.figures()
    return {"f1": whole["f1_50"], "ap": whole["ap"], "dice": 2 * both / sides if sides else 1.0}


def without_specks(objects: np.ndarray, smallest: int) -> np.ndarray:
    """(H, W) objects, those of fewer than `smallest` pixels made ground."""
    large = np.bincount(objects.ravel()) >= smallest
    return np.where(large[objects], objects, 0)


def otsu_watershed(image: np.ndarray, classes: int, smooth: float = 1.0, apart: int = 5) -> np.ndarray:
    """Objects without anything learned: Multi-Otsu, then a watershed of the distance to the ground.

    Args:
        image: (H, W) float32, its ends such that a histogram of 256 bins shows it.
        classes: of Multi-Otsu; everything above the lowest threshold is foreground.
        smooth: deviation in pixels of the blur before it.
        apart: pixels between the peaks of the distance, at least.

    Returns:
        (H, W) int objects 1, 2, ..., 0 ground.
    """
    blurred = gaussian(image, smooth, preserve_range=True)
    if len(np.unique(blurred)) < classes:
        return np.zeros(image.shape, np.int32)
    foreground = blurred > threshold_multiotsu(blurred, classes)[0]
    distance = ndimage.distance_transform_edt(foreground)
    parts = ndimage.label(foreground)[0]
    peaks = peak_local_max(distance, min_distance=apart, labels=parts, exclude_border=False)
    seeds = np.zeros(image.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, 1 + len(peaks))
    return watershed(-distance, seeds, mask=foreground)


def floor(classes: int, **data: Any) -> Iterator[dict[str, object]]:
    """The row of `otsu_watershed` on the test pictures, every one scaled by its 0.1st and 99.9th percentile.

    Args:
        classes: of Multi-Otsu.
        **data: arguments of SegmentationDataModule.
    """
    module = SegmentationDataModule(**{**data, "normalize": "percentile"})

    def find(image: np.ndarray) -> np.ndarray:
        return otsu_watershed(image[0].clip(0, 1), classes)

    yield at_exposures(find, module)
