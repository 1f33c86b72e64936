"""Predicted classes as files: label values or objects, in the image's own size, with its pixel size and its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from skimage.measure import label, regionprops_table

from datamodules.io import Picture
from datamodules.reading import Reading
from framework.errors import DataError
from framework.instances import objects_of


def label_image(classes: np.ndarray, reading: Reading, size: tuple[int, int] | None = None) -> np.ndarray:
    """What a mask file of the same data would hold, in the smallest unsigned type.

    Args:
        classes: (h, w) positions of classes.
        reading: the input contract: label values, or objects.
        size: (H, W) of the image's file, when classes are `reading.downscale` times smaller.

    Returns:
        (H, W) uint8, uint16 or uint32.
    """
    if reading.masks_are == "instances":
        values = objects_of(classes)
    elif reading.colors is not None:
        values = classes
    else:
        labels = np.asarray(reading.labels)
        values = labels.astype(np.min_scalar_type(labels.max()) if labels.min() >= 0 else labels.dtype)[classes]
    if size is not None and reading.downscale > 1:
        values = values.repeat(reading.downscale, 0).repeat(reading.downscale, 1)
        more = [(0, max(0, n - m)) for n, m in zip(size, values.shape, strict=True)]
        values = np.pad(values, more, mode="edge")[: size[0], : size[1]]
    kind = np.min_scalar_type(int(values.max(initial=0))) if int(values.min(initial=0)) >= 0 else values.dtype
    return values.astype(kind)


def write_label_image(path: Path, labels: np.ndarray, pixel_size: tuple[float, float] | None) -> None:
    """A compressed TIFF with axes YX, with the pixel size where it is known.

    Raises:
        DataError: the file is there already, or cannot be written.
    """
    if path.exists():
        raise DataError(f"{path} is there already, and no file is replaced; give another folder or move it")
    resolution: dict[str, Any] = {}
    if pixel_size is not None:
        resolution = {"resolution": (1e4 / pixel_size[1], 1e4 / pixel_size[0]), "resolutionunit": "CENTIMETER"}
    part = path.with_name(f".{path.name}.part")
    try:
        tifffile.imwrite(
            part, labels, compression="zlib", photometric="minisblack", metadata={"axes": "YX"}, **resolution
        )
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}); make room or give another folder"
        ) from error


def measure(labels: np.ndarray, image: np.ndarray, picture: Picture, reading: Reading, name: str) -> pd.DataFrame:
    """One row for each object: place, area, mean intensity of every channel; micrometres where the pixel size is known.

    Objects are those of an instance prediction, or connected pixels of one label value other than the background's.

    Args:
        labels: (H, W), as written.
        image: (N, H, W) raw intensities.
        picture: the image's header.
        reading: the input contract.
        name: of the sample.
    """
    if reading.masks_are == "instances":
        objects = labels.astype(np.int64)
    else:
        ground = 0 if reading.colors is not None else reading.labels[0]
        objects = label(labels.astype(np.int64), background=ground, connectivity=1)
    found = regionprops_table(
        objects,
        np.moveaxis(image, 0, -1),
        properties=("label", "area", "centroid", "bbox", "intensity_mean"),
    )
    table = pd.DataFrame(found).rename(columns={"label": "object", "centroid-0": "y", "centroid-1": "x"})
    table.columns = [c.replace("bbox-", "box_").replace("intensity_mean-", "mean_") for c in table.columns]
    if reading.masks_are != "instances":
        ys, xs = (table[k].to_numpy().astype(int) for k in ("box_0", "box_1"))
        first = [
            int(labels[y:y2, x:x2][objects[y:y2, x:x2] == n][0])
            for n, y, x, y2, x2 in zip(table["object"], ys, xs, table["box_2"], table["box_3"], strict=True)
        ]
        table.insert(1, "value", first)
    if picture.pixel_size is not None:
        high, wide = picture.pixel_size
        table["area_um2"] = table["area"] * high * wide
        table["y_um"], table["x_um"] = table["y"] * high, table["x"] * wide
    table.insert(0, "image", name)
    return table
