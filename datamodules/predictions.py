"""Predicted classes as files: label values or objects, in the image's own size, with its pixel size and its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from skimage.measure import label, regionprops_table

from datamodules.picture import Picture
from datamodules.reading import Reading
from datamodules.unfinished import refuse_existing, writing
from framework.blocks import ArrayPlane, blocks, label_objects
from framework.instances import FROM_BORDER, Growth, objects_of
from framework.levels import from_levels

#: pixels from which on objects are looked for block by block
LARGE = 2**22


def growth_of(reading: Reading) -> Growth | None:
    """How classes become objects; None: a mask's values are what is wanted."""
    if reading.masks_are != "instances":
        return None
    return FROM_BORDER if reading.targets == "border" else from_levels(reading.levels)


def objects_in(classes: np.ndarray, reading: Reading) -> np.ndarray:
    """(H, W) classes -> (H, W) objects 1, 2, ...; of a large picture block by block, which takes less memory."""
    growth = growth_of(reading)
    assert growth is not None
    if classes.size <= LARGE:
        return objects_of(classes, growth)
    height, width = classes.shape
    scratch = ArrayPlane(np.zeros((height, width), np.uint32))
    objects = label_objects(ArrayPlane(classes), (height, width), scratch, growth)
    out = np.zeros((height, width), np.min_scalar_type(objects.count))
    for y0, y1, x0, x1 in blocks((height, width)):
        out[y0:y1, x0:x1] = objects.read(y0, y1, x0, x1)
    return out


def values_of(classes: np.ndarray, reading: Reading) -> np.ndarray:
    """Mask values of class positions, in the smallest type of all labels."""
    if reading.colors is not None:
        return classes.astype(np.uint8)
    labels = np.asarray(reading.labels)
    return labels.astype(np.min_scalar_type(labels.max()) if labels.min() >= 0 else labels.dtype)[classes]


def label_image(classes: np.ndarray, reading: Reading, size: tuple[int, int] | None = None) -> np.ndarray:
    """What a mask file of the same data would hold, in the smallest unsigned type.

    Args:
        classes: (h, w) positions of classes.
        reading: the input contract: label values, or objects.
        size: (H, W) of the image's file, when classes are `reading.downscale` times smaller.

    Returns:
        (H, W) uint8, uint16 or uint32.
    """
    values = objects_in(classes, reading) if reading.masks_are == "instances" else values_of(classes, reading)
    if size is not None:
        values = enlarged(values, reading, size)
    kind = np.min_scalar_type(int(values.max(initial=0))) if int(values.min(initial=0)) >= 0 else values.dtype
    return values.astype(kind)


def enlarged(values: np.ndarray, reading: Reading, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of a picture that was made `reading.downscale` times smaller -> (H, W), the edge repeated."""
    if reading.downscale == 1:
        return values
    values = values.repeat(reading.downscale, 0).repeat(reading.downscale, 1)
    more = [(0, max(0, n - m)) for n, m in zip(size, values.shape, strict=True)]
    return np.pad(values, more, mode="edge")[: size[0], : size[1]]


def write_label_image(
    path: Path, labels: np.ndarray, pixel_size: tuple[float, float] | None, replace: bool = False
) -> None:
    """A compressed TIFF with axes YX, with the pixel size where it is known.

    Args:
        path: the file.
        labels: (H, W).
        pixel_size: (y, x) in micrometres.
        replace: whether the file may be there.

    Raises:
        DataError: the file is there already, or cannot be written.
    """
    if not replace:
        refuse_existing(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            tifffile.imwrite(
                part, labels, compression="zlib", photometric="minisblack", metadata={"axes": "YX"},
                **resolution_tags(pixel_size),
            )  # fmt: skip
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def resolution_tags(pixel_size: tuple[float, float] | None) -> dict[str, Any]:
    """What tifffile wants of a pixel size (y, x) in micrometres."""
    if pixel_size is None:
        return {}
    return {"resolution": (1e4 / pixel_size[1], 1e4 / pixel_size[0]), "resolutionunit": "CENTIMETER"}


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
    return table_of(table, picture, reading, name)


def table_of(table: pd.DataFrame, picture: Picture, reading: Reading, name: str) -> pd.DataFrame:
    """Measurements with the sample's name in front and micrometres behind; `value` is for classes alone."""
    if reading.masks_are == "instances":
        table = table.drop(columns="value", errors="ignore")
    if picture.pixel_size is not None:
        high, wide = picture.pixel_size
        table["area_um2"] = table["area"] * high * wide
        table["y_um"], table["x_um"] = table["y"] * high, table["x"] * wide
    table.insert(0, "image", name)
    return table
