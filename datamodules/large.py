"""A picture larger than memory: read, predicted, parted into objects, measured and written window by window."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from datamodules.overlay import overlay, step_of
from datamodules.picture import Picture
from datamodules.planes import image_of
from datamodules.predictions import growth_of, resolution_tags, table_of, values_of
from datamodules.reading import Reading
from datamodules.unfinished import FilePlane, Unfinished, identity, writing
from datamodules.windows import windows
from framework import blocks
from framework.blocks import Objects, ObjectSums, label_objects, label_seeds
from framework.distributed import say
from framework.errors import DataError

#: probabilities are kept and written in steps of this
STEPS = 65535


@dataclass(frozen=True)
class Wanted:
    """What is written of every picture beside its mask."""

    probabilities: bool = False
    overlays: bool = False


class LargePicture:
    """One picture in work; its finished tiles stay with `unfinished` until all is written.

    Args:
        picture: the image's header.
        name: of the sample.
        reading: the input contract.
        unfinished: where the tiles are kept.
        wanted: what is written.
        grid: side of a tile, rows and columns of them.

    Attributes:
        size: (H, W).
    """

    def __init__(
        self,
        picture: Picture,
        name: str,
        reading: Reading,
        unfinished: Unfinished,
        wanted: Wanted,
        grid: tuple[int, int, int],
    ) -> None:
        self.picture, self.name, self.reading = picture, name, reading
        self.unfinished, self.wanted, self.size = unfinished, wanted, picture.size
        self._side, *counts = grid
        self._grid = (counts[0], counts[1])
        self._know_picture()
        self.folder = unfinished.part(name)
        self.classes = FilePlane(self.folder / "classes", self.size, np.uint8)
        self._done = FilePlane(self.folder / "done", self._grid, np.uint8)
        self._probabilities: list[FilePlane] = []
        found = windows(picture, reading)
        if found is None:
            raise DataError(f"{picture.path} cannot be read by windows; give model.tile: null")
        #: (y0, y1, x0, x1) -> (N, h, w) float32, normalised as the whole
        self.read = found

    def _know_picture(self) -> None:
        """Tiles of a file that has changed since, or of another side, are not gone on with."""
        now = json.dumps([*identity(self.picture.path), self._side, *self._grid])
        known = self.unfinished.part(self.name) / "picture.json"
        if known.exists() and known.read_text(encoding="utf-8") != now:
            say(f"{self.picture.path} has changed since its tiles were predicted: it begins anew")
            self.unfinished.drop_part(self.name)
            known = self.unfinished.part(self.name) / "picture.json"
        with writing(known):
            known.write_text(now, encoding="utf-8")

    # ------------------------------------------------------------------ tiles

    @property
    def tiles(self) -> tuple[int, int]:
        """How many tiles are done, and how many there are."""
        done = self._done.read(0, self._grid[0], 0, self._grid[1])
        return int(done.sum()), done.size

    def is_done(self, y0: int, x0: int) -> bool:
        """Whether the tile that begins at this row and column has been predicted."""
        y, x = y0 // self._side, x0 // self._side
        return bool(self._done.read(y, y + 1, x, x + 1)[0, 0])

    def put(self, y0: int, x0: int, classes: np.ndarray, probabilities: np.ndarray | None) -> None:
        """Keeps a tile: (h, w) classes, and (C, h, w) probabilities where they are wanted.

        Raises:
            DataError: no room.
        """
        self.classes.write(y0, x0, classes)
        if probabilities is not None:
            for plane, values in zip(self._probability_planes(len(probabilities)), probabilities, strict=True):
                plane.write(y0, x0, np.rint(values * STEPS))
        self._done.write(y0 // self._side, x0 // self._side, np.ones((1, 1), np.uint8))

    def _probability_planes(self, count: int) -> list[FilePlane]:
        for c in range(len(self._probabilities), count):
            self._probabilities.append(FilePlane(self.folder / f"probability_{c}", self.size, np.uint16))
        return self._probabilities

    # ------------------------------------------------------------------ the end

    def parts(self) -> int:
        """Steps of `finish`."""
        return 2 * len(list(blocks.blocks(self.size)))

    def finish(self, step: Callable[[], None]) -> None:
        """Objects over all tiles, files and measurements.

        Args:
            step: called behind every block; what it raises leaves the tiles as they are.

        Raises:
            DataError: no room.
        """
        objects = self._objects(step)
        sums = ObjectSums(objects.count, len(self._intensities(0, 1, 0, 1)))
        shrunk = _Shrunk(self.size, step_of(self.size)) if self.wanted.overlays else None
        mask = self.folder / "mask.tif"
        instances = self.reading.masks_are == "instances"
        dtype = np.min_scalar_type(objects.count) if instances else values_of(np.zeros((1, 1), int), self.reading).dtype
        tiles = self._label_tiles(objects, sums, shrunk, step)
        _write_tiles(mask, tiles, self.size, dtype, self.picture.pixel_size)
        finished = {"_mask.tif": mask}
        if self.wanted.probabilities:
            finished["_probabilities.tif"] = self._write_probabilities()
        if shrunk is not None:
            finished["_overlay.png"] = shrunk.write(self.folder / "overlay.png")
        self.unfinished.moving(self.name)
        for ending, path in finished.items():
            with writing(path):
                path.replace(self.unfinished.target / f"{self.name}{ending}")
        tables = (table_of(pd.DataFrame(part), self.picture, self.reading, self.name) for part in sums.parts())
        self.unfinished.finish(self.name, tables)
        self.close()
        self.unfinished.drop_part(self.name)

    def _objects(self, step: Callable[[], None]) -> Objects:
        scratch = _Stepping(FilePlane(self.folder / "labels", self.size, np.uint32), step)
        growth = growth_of(self.reading)
        if growth is not None:
            return label_objects(self.classes, self.size, scratch, growth)
        return Objects(self.size, scratch, label_seeds(self.classes.read, self.size, scratch))

    def _label_tiles(
        self, objects: Objects, sums: ObjectSums, shrunk: "_Shrunk | None", step: Callable[[], None]
    ) -> Iterator[np.ndarray]:
        instances = self.reading.masks_are == "instances"
        for y0, y1, x0, x1 in blocks.blocks(self.size):
            labels = objects.read(y0, y1, x0, x1)
            classes = labels if instances else self.classes.read(y0, y1, x0, x1)
            values = labels if instances else values_of(classes, self.reading)
            image = self._intensities(y0, y1, x0, x1)
            sums.add(y0, x0, labels, image, values)
            if shrunk is not None:
                shrunk.put(y0, x0, image, classes)
            step()  # before: nobody asks for more than the last tile
            yield values

    def _intensities(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = self.picture.cropped(y0, y1, x0, x1)
        return image_of(part, self.reading.channels, self.reading.bit_depth, self.reading.slices)

    def _write_probabilities(self) -> Path:
        path = self.folder / "probabilities.tif"
        planes = self._probability_planes(self.reading.num_classes)
        tiles = (
            plane.read(*where).astype(np.float32) / STEPS for plane in planes for where in blocks.blocks(self.size)
        )
        _write_tiles(path, tiles, (len(planes), *self.size), np.float32, self.picture.pixel_size)
        return path

    def close(self) -> None:
        """Lets go of the files."""
        for plane in (self.classes, self._done, *self._probabilities):
            plane.close()


class _Stepping:
    """A plane that says when a block of it has been written."""

    def __init__(self, plane: FilePlane, step: Callable[[], None]) -> None:
        self.plane, self.step, self.read = plane, step, plane.read

    def write(self, y0: int, x0: int, values: np.ndarray) -> None:
        self.plane.write(y0, x0, values)
        self.step()


class _Shrunk:
    """Every n-th pixel of a picture and its labels, for an overlay."""

    def __init__(self, size: tuple[int, int], step: int) -> None:
        self.step = step
        self.size = (-(-size[0] // step), -(-size[1] // step))
        self.labels: np.ndarray | None = None
        self.image: np.ndarray | None = None

    def put(self, y0: int, x0: int, image: np.ndarray, labels: np.ndarray) -> None:
        if self.image is None or self.labels is None:
            self.image = np.zeros((len(image), *self.size), np.float32)
            self.labels = np.zeros(self.size, np.int64)
        y, x = -y0 % self.step, -x0 % self.step
        part = labels[y :: self.step, x :: self.step]
        top, left = (y0 + y) // self.step, (x0 + x) // self.step
        where = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        self.labels[where] = part
        self.image[:, *where] = image[:, y :: self.step, x :: self.step]

    def write(self, path: Path) -> Path:
        from skimage import io

        assert self.image is not None
        assert self.labels is not None
        with writing(path):
            io.imsave(path, overlay(self.image, self.labels), check_contrast=False)
        return path


def _write_tiles(
    path: Path, tiles: Iterator[np.ndarray], shape: tuple[int, ...], dtype: Any, pixel_size: tuple[float, float] | None
) -> None:
    """A compressed TIFF of tiles of `blocks.BLOCK`, each written as it comes."""
    side = blocks.BLOCK

    def whole() -> Iterator[np.ndarray]:
        for tile in tiles:
            padded = np.zeros((side, side), dtype)
            padded[: tile.shape[0], : tile.shape[1]] = tile
            yield padded

    large = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize > 2**31
    with writing(path), tifffile.TiffWriter(path, bigtiff=large) as writer:
        writer.write(
            whole(), shape=shape, dtype=dtype, tile=(side, side), compression="zlib", photometric="minisblack",
            metadata={"axes": "CYX"[-len(shape) :]}, maxworkers=1, **resolution_tags(pixel_size),
        )  # fmt: skip
