"""The files of a folder of predictions: what is to be done, what is done, and the table of all objects."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from skimage import io

from datamodules.io import open_picture
from datamodules.large import STEPS, LargePicture, Wanted
from datamodules.overlay import overlay, step_of
from datamodules.pairing import Pair
from datamodules.planes import image_of
from datamodules.predictions import enlarged, label_image, measure, resolution_tags, write_label_image
from datamodules.reading import Reading
from datamodules.unfinished import Unfinished, refuse_existing, writing
from datamodules.windows import has_windows
from framework.distributed import gather_lists, ranks, say

Grid = Callable[[tuple[int, int]], tuple[int, int, int] | None]


class PredictionFiles:
    """Writes `NAME_mask.tif` and what else is wanted of every picture, and `objects.csv` at the end.

    Args:
        folder: where they go.
        pairs: the pictures.
        reading: the input contract.
        options: `probabilities`, `overlays`, `grid`, see `framework.protocols.WritesPredictions`.
        plan: with what is predicted.
        batched: whether several pictures come in one batch.

    Raises:
        DataError: files that are there already. ConfigError: another process, or another plan, see `Unfinished`.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Sequence[Pair],
        reading: Reading,
        options: Mapping[str, Any],
        plan: Mapping[str, Any],
        batched: bool,
    ) -> None:
        self.folder, self.reading = folder, reading
        self.pairs = {pair.index: pair for pair in pairs}
        self.wanted = Wanted(bool(options["probabilities"]), bool(options["overlays"]))
        self.unfinished = Unfinished(folder, {**plan, "reading": reading.plain()}, ranks()[1])
        try:
            for pair in pairs:
                self.unfinished.know(pair.name, pair.image)
            grids = self._look_at(options["grid"])
        except Exception:
            self.unfinished.leave()
            raise
        #: of the pictures that are read by windows; one batch holds such pictures alone, or none
        self.grids = grids if not batched or len(grids) == len(pairs) else {}

    def _look_at(self, grid_of: Grid) -> dict[int, tuple[int, int, int]]:
        """Refuses files that are there already; and the tiles of large pictures."""
        refuse_existing(self.folder / "objects.csv")
        grids = {}
        for pair in self.pairs.values():
            for path in self._paths(pair):
                self.unfinished.may_write(pair.name, path)
            picture = open_picture(pair.image, self.reading.axes)
            grid = grid_of(picture.size)
            if grid is not None and has_windows(picture, self.reading):
                grids[pair.index] = grid
        return grids

    def _paths(self, pair: Pair) -> list[Path]:
        endings = ["_mask.tif"]
        endings += ["_probabilities.tif"] if self.wanted.probabilities else []
        endings += ["_overlay.png"] if self.wanted.overlays else []
        return [self.folder / f"{pair.name}{ending}" for ending in endings]

    def remaining(self) -> list[Pair]:
        """The pictures that are not done; all of them, where some rank would have none."""
        changed = [pair.image.name for pair in self.pairs.values() if self.unfinished.changed(pair.name)]
        if changed:
            say(
                f"{len(changed)} of {len(self.pairs)} pictures have changed since they were predicted, first "
                f"{changed[0]}: they begin anew"
            )
        left = [pair for pair in self.pairs.values() if not self.unfinished.has(pair.name)]
        done = len(self.pairs) - len(left)
        if done and len(left) >= ranks()[0]:
            say(f"{done} of {len(self.pairs)} pictures in {self.folder} are done; the others follow")
            return left
        return list(self.pairs.values())

    # ------------------------------------------------------------------ one picture

    def write(self, index: int, key: str, value: np.ndarray) -> bool:
        """One prediction: (H, W) classes under `mask`, (C, H, W) under `probabilities`."""
        pair = self.pairs[index]
        if key not in ("mask", "probabilities") or (key == "mask") != (value.ndim == 2):
            return False
        if self.unfinished.has(pair.name):
            return True
        picture = open_picture(pair.image, self.reading.axes)
        self.unfinished.moving(pair.name)
        if key == "probabilities":
            self._write_probabilities(self.folder / f"{pair.name}_probabilities.tif", value, picture)
            return True
        labels = label_image(value, self.reading, picture.size)
        mask = self.folder / f"{pair.name}_mask.tif"
        write_label_image(mask, labels, picture.pixel_size, replace=True)
        image = image_of(picture, self.reading.channels, self.reading.bit_depth, self.reading.slices, pair.part)
        if self.wanted.overlays:
            drawn = labels if self.reading.masks_are == "instances" else enlarged(value, self.reading, picture.size)
            step = step_of(picture.size)
            with writing(mask):
                path = self.folder / f"{pair.name}_overlay.png"
                io.imsave(path, overlay(image[:, ::step, ::step], drawn[::step, ::step]), check_contrast=False)
        self.unfinished.finish(pair.name, [measure(labels, image, picture, self.reading, pair.name)])
        return True

    def _write_probabilities(self, path: Path, values: np.ndarray, picture: Any) -> None:
        steps = np.stack([enlarged(np.rint(v * STEPS), self.reading, picture.size) for v in values])
        part = self.unfinished.folder / f".{path.name}"
        with writing(path):
            tifffile.imwrite(
                part, (steps / STEPS).astype(np.float32), compression="zlib", photometric="minisblack",
                metadata={"axes": "CYX"}, **resolution_tags(picture.pixel_size),
            )  # fmt: skip
            part.replace(path)

    def large(self, index: int) -> LargePicture:
        """A picture that is read by windows."""
        pair = self.pairs[index]
        picture = open_picture(pair.image, self.reading.axes)
        return LargePicture(picture, pair.name, self.reading, self.unfinished, self.wanted, self.grids[index])

    # ------------------------------------------------------------------ all of them

    def end(self, complete: bool) -> None:
        """`objects.csv`, when all pictures are done; else what is done stays for another time. A collective.

        Raises:
            DataError: no room.
        """
        if not complete:
            self.unfinished.leave()
            return
        first = ranks()[1] == 0
        if not first:
            self.unfinished.release()
        gather_lists([])
        if not first:
            return
        part, path = self.unfinished.folder / "objects", self.folder / "objects.csv"
        if self.unfinished.join([pair.name for pair in self.pairs.values()], part):
            with writing(path):
                part.replace(path)
        self.unfinished.remove()
