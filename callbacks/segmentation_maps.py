"""Class maps of the images, computed once and handed to the model that asks for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from callbacks.figure_writer import save_figure
from callbacks.when import begins_anew
from framework.distributed import broadcast_tensors, ranks, run_folder, say
from framework.errors import ConfigError, DataError
from framework.figures import segmentation_map_panel
from framework.nn import equal_bins, kmeans_colours, luminance, map_bits, multi_otsu
from framework.outputs import free_path, optional_output
from framework.protocols import HasDatasets, NamesSamples, TakesSegmentation
from framework.serialization import import_target

METHODS = ("multi_otsu", "equal_bins", "kmeans")


class SegmentationMaps(Callback):
    """Segments every image of the data module once, on the first process, and hands the maps to the model.

    The maps come from the images that the model is to reproduce: they are side information, whose cost in bits per
    pixel goes to `segmentation_maps.csv` and into the figure. In test and predict a checkpoint's maps win over these.

    Args:
        method: `multi_otsu` or `equal_bins` of the BT.601 luminance, `kmeans` of the colours, or a function of your own
            by its path, `package.module.function`, called as function(rgb (H, W, 3) uint8, classes) and returning
            (H, W) integers in [0, classes).
        max_images: that are drawn.

    Raises:
        ConfigError: an unknown method.
    """

    def __init__(self, method: str = "multi_otsu", max_images: int = 4) -> None:
        if method not in METHODS and "." not in method:
            raise ConfigError(
                f"SegmentationMaps.method: expected {', '.join(METHODS)} or a function as 'package.module.function', "
                f"got {method!r}"
            )
        self.method = method
        self.max_images = max_images
        self._function = None if method in METHODS else import_target(method, "SegmentationMaps.method")
        self._begin()

    def _begin(self) -> None:
        self._drawn_in: Path | None = None
        self._maps: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Computes the maps and hands them over.

        Raises:
            ConfigError: the model asks for none, or the data module has no images. DataError: a map of another shape.
        """
        if begins_anew(trainer, stage):
            self._begin()
        self._maps = None
        if not isinstance(pl_module, TakesSegmentation):
            raise ConfigError(
                f"SegmentationMaps: {type(pl_module).__name__} does not ask for class maps (it has no "
                "segmentation_classes and set_segmentation_maps); take the callback out of trainer.callbacks"
            )
        classes = pl_module.segmentation_classes
        if classes is None:
            return
        data = getattr(trainer, "datamodule", None)
        dataset: Any = next(iter(data.datasets.values()), None) if isinstance(data, HasDatasets) else None
        if dataset is None:
            raise ConfigError("SegmentationMaps: needs a data module with a dataset of images")
        first = dataset[0]["image"]
        maps = torch.zeros(len(dataset), *first.shape[1:], dtype=torch.uint8)
        if ranks()[1] == 0:
            for i in range(len(dataset)):
                maps[i] = self.segment(dataset[i]["image"], classes)
        maps = maps.to(pl_module.device if ranks()[0] == 1 else trainer.strategy.root_device)
        broadcast_tensors([maps])
        pl_module.set_segmentation_maps(maps)
        self._maps, self._dataset, self._classes = maps.cpu(), dataset, classes

    def segment(self, image: Tensor, classes: int) -> Tensor:
        """The map of one image.

        Args:
            image: (3, H, W) float32 in [0, 1].
            classes: number of classes.

        Returns:
            (H, W) uint8.

        Raises:
            DataError: a function of the user's returned something else.
        """
        rgb = np.rint(image.permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
        if self._function is not None:
            labels = np.asarray(self._function(rgb, classes))
            if labels.shape != rgb.shape[:2] or labels.min() < 0 or labels.max() >= classes:
                raise DataError(
                    f"SegmentationMaps.method: expected {rgb.shape[:2]} integers in 0..{classes - 1} of {self.method}, "
                    f"got {labels.shape} in {labels.min()}..{labels.max()}"
                )
        elif self.method == "kmeans":
            labels = kmeans_colours(rgb, classes)
        else:
            cut = multi_otsu if self.method == "multi_otsu" else equal_bins
            labels = cut(luminance(rgb), classes)[0]
        return torch.from_numpy(labels.astype(np.uint8))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws `figures/segmentation_maps.png` and writes `segmentation_maps.csv`."""
        self._report(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As on_fit_start."""
        self._report(trainer)

    @rank_zero_only
    def _report(self, trainer: Trainer) -> None:
        folder = run_folder(trainer)
        if self._maps is None or self._drawn_in == folder:
            return
        self._drawn_in = folder
        names, pictures, maps, rows = [], [], [], []
        for i in range(len(self._maps)):
            rgb, labels = self._upright(i, self._maps[i].numpy())
            name = self._name(trainer, i)
            bits = map_bits(labels, self._classes)
            rows.append({"image": name, "method": self.method, "classes": self._classes, **bits})
            if i < self.max_images:
                names.append(name)
                pictures.append(rgb)
                maps.append(labels)
        mean = float(np.mean([row["context"] for row in rows]))
        say(
            f"{self.method} maps of {len(rows)} images cost {mean:.3f} bits per pixel (mean, context-coded), on top of "
            "the networks' weights"
        )
        if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        notes = [f"{row['context']:.3f} bits per pixel ({row['png']:.3f} as PNG)" for row in rows[: self.max_images]]
        save_figure(trainer, "segmentation_maps", segmentation_map_panel(pictures, maps, self._classes, names, notes))
        table = free_path(folder / "segmentation_maps.csv")
        with optional_output(table):
            pd.DataFrame(rows).round(4).to_csv(table, index=False)

    def _upright(self, index: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 picture and (H, W) map as the image stands."""
        sample: dict[str, Any] = self._dataset[index]
        rgb = np.rint(sample["image"].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        height, width = sample["size"].tolist() if "size" in sample else labels.shape
        return (rgb.transpose(1, 0, 2), labels.T) if height > width else (rgb, labels)

    def _name(self, trainer: Trainer, index: int) -> str:
        data = getattr(trainer, "datamodule", None)
        return data.sample_name(index) if isinstance(data, NamesSamples) else f"{index:06d}"
