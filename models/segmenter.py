"""What the methods that give every pixel a class share: arguments, prediction in tiles, and what a test measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from framework.batches import need
from framework.errors import ConfigError
from framework.figures import instance_panel, segmentation_panel
from framework.instances import FROM_BORDER, objects_of
from framework.levels import from_levels
from framework.method import BaseMethod, Batch
from framework.metrics import InstanceFigure, Matches, instance_figures, match_objects
from framework.metrics.segmentation import confusion_counts
from framework.nn.modes import numbers
from framework.protocols import ChecksSizes, HasPreprocessing
from framework.tiling import TileSize, tile_grid, tiled
from models.losses import ClassWeights, Loss, balanced_weights, first_weights, segmentation_loss
from models.segmentation import check_classes, predicted


class SegmentationMethod(BaseMethod):
    """A method that gives every pixel a class; a subclass builds `network`, its `step` returns `preds` and `target`.

    Where the batches of a test have `objects`, int64 (B, H, W), 0 ground, -1 without a label, the figures of
    `framework.metrics.instances` are logged as `test/instance_f1_50` and so on.

    Args:
        in_channels: N, image channels.
        num_classes: C, background (0) included; at most 256.
        ignore_index: mask value of pixels without a label, which count in neither loss nor figures; None: all have one.
        tile: side of the tiles in which `predict` looks at large pictures; `auto`; None: never in tiles. The logits are
            those of the whole picture.
        loss: `cross_entropy`, `weighted_cross_entropy`, `focal`, `weighted_focal`, `dice`, or a sum of them, joined by
            `+` or as a list.
        class_weights: (C,) for the weighted losses, used as mean 1; `balanced`: inversely proportional to the pixels of
            every class in the training masks.
        **training: `optimizer`, `lr_scheduler`, `lr_interval` and `memory` of BaseMethod.

    Raises:
        ConfigError: numbers that cannot be, no such loss, or weights that do not go with it.
    """

    monitor_mode = "max"
    not_taken_over = ("metrics.", "class_weights")  # the weights of the loss belong to the data
    network: Any
    class_weights: Tensor
    #: whether `predict_step` also gives probabilities
    predict_probabilities: bool = False
    #: of a test: index, counts of every sample, matches of every sample
    _samples: Sequence[tuple[Tensor | None, list[Tensor], list[Matches] | None]] = ()

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 2,
        ignore_index: int | None = None,
        tile: TileSize = "auto",
        loss: Loss = "cross_entropy",
        class_weights: ClassWeights | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if not 2 <= num_classes <= 256 or in_channels < 1:  # predicted maps are of 8 bits
            raise ConfigError(
                f"model.num_classes, model.in_channels: expected 2 to 256 and at least 1, got {num_classes} and "
                f"{in_channels}"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.ignore_index, self.tile = ignore_index, tile
        self.loss, self.balanced = loss, class_weights == "balanced"
        with numbers():
            self._given_weights = first_weights(loss, class_weights, num_classes)
        # balanced ones are counted once, and then kept in checkpoints
        weights = self._given_weights.to(torch.get_default_device(), copy=True)
        self.register_buffer("class_weights", weights, persistent=self.balanced)
        self.register_load_state_dict_post_hook(_given_again)

    def initialise(self, data: LightningDataModule | None) -> None:
        """Balanced class weights from the training masks."""
        if self.balanced:
            self.class_weights = balanced_weights(data, self.num_classes).to(self.class_weights)

    def pixel_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of (B, C, H, W) logits and (B, H, W) int64 classes."""
        return segmentation_loss(logits, target, self.loss, self.class_weights, self.ignore_index)

    def check(self, batch: Batch) -> None:
        """Raises ConfigError for a batch without picture or mask, and for a class that the method does not have."""
        need(batch, type(self).__name__, "image", "mask")
        check_classes(batch["mask"], self.num_classes, self.ignore_index)

    def panel(self, batch: Batch, preds: Tensor) -> Figure:
        """Input, truth, prediction, error and IoU per class; `preds` (B, H, W) classes."""
        image, mask = batch["image"].float().cpu().numpy(), batch["mask"].cpu().numpy()
        return segmentation_panel(image, mask, preds.cpu().numpy(), self.num_classes, ignore=self.ignore_index)

    def meet_data(self) -> None:
        """Also forgets what an earlier test has kept."""
        super().meet_data()
        self._samples = []
        if "test_instances" in self.metrics:
            logged = cast(nn.ModuleDict, self.metrics["test_metrics"])
            for name in cast(MetricCollection, self.metrics.pop("test_instances")).keys(keep_base=False):
                del logged[str(name)]

    # ------------------------------------------------------------------ test

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: dict[str, Tensor], batch: Batch) -> None:
        """In a test also keeps every sample's counts."""
        if not isinstance(metrics, MetricCollection):
            metrics = {name: metric for name, metric in metrics.items() if not isinstance(metric, InstanceFigure)}
        super().update_metrics(metrics, outputs, batch)
        if self.attached_trainer is None or not self.attached_trainer.testing:
            return
        pairs = zip(outputs["preds"].split(1), outputs["target"].split(1), strict=True)
        counts = [confusion_counts(said, true, self.num_classes, self.ignore_index) for said, true in pairs]
        matches = None
        if "objects" in batch:
            truth, found = batch["objects"].cpu().numpy(), self.predicted_objects(outputs["preds"])
            matches = [match_objects(true, said) for true, said in zip(truth, found, strict=True)]
            self._instance_metrics().update(matches)
        self._samples = [*self._samples, (batch.get("index"), counts, matches)]

    def predicted_objects(self, classes: Tensor) -> list[np.ndarray]:
        """(B, H, W) classes, in the terms of `data.targets` -> B label images (H, W)."""
        data = self.data
        how = data.preprocessing() if isinstance(data, HasPreprocessing) else self.preprocessing or {}
        growth = from_levels(how["levels"]) if how.get("targets") == "distance" else FROM_BORDER
        return [objects_of(one, growth) for one in classes.cpu().numpy()]

    def _instance_metrics(self) -> MetricCollection:
        if "test_instances" not in self.metrics:
            with torch.inference_mode(False):
                collection = instance_figures().to(self.device)
            self.metrics["test_instances"] = collection
            logged = cast(nn.ModuleDict, self.metrics["test_metrics"])
            logged.update(dict(collection.items(keep_base=False, copy_state=False)))
        return cast(MetricCollection, self.metrics["test_instances"])

    def take_samples(self) -> list[dict[str, Any]]:
        """For SegmentationReport: what every sample of this process counted, once."""
        rows = []
        for index, counts, matches in self._samples:
            names = [None] * len(counts) if index is None else index.tolist()
            for place, (name, confusion) in enumerate(zip(names, counts, strict=True)):
                objects = None if matches is None else matches[place].plain()
                counted = {"confusion": confusion.tolist(), "objects": objects, "ignored": self.ignore_index}
                rows.append({"index": name, **counted})
        self._samples = []
        return rows

    def sample_figures(self, samples: Sequence[Batch], titles: Sequence[str]) -> Mapping[str, Figure]:
        """For SegmentationReport: pictures, truth and prediction; with instances also the objects."""
        images = [s["image"].float().cpu().numpy() for s in samples]
        with torch.no_grad():
            preds = [self(s["image"][None].to(self.device)).argmax(1) for s in samples]
        classes = [p[0].cpu().numpy() for p in preds]
        masks = [s["mask"].cpu().numpy() for s in samples]
        panel = segmentation_panel(images, masks, classes, self.num_classes, ignore=self.ignore_index, titles=titles)
        drawn = {"worst_median_best": panel}
        if all("objects" in s for s in samples):
            truth = [s["objects"].cpu().numpy() for s in samples]
            found = [self.predicted_objects(p)[0] for p in preds]
            drawn["worst_median_best_objects"] = instance_panel(images, truth, found, titles)
        return drawn

    # ------------------------------------------------------------------ prediction

    def on_fit_start(self) -> None:
        """Asks the data module, where it knows, whether every picture is large enough for the network's poolings."""
        if isinstance(self.data, ChecksSizes):
            self.data.check_sizes(self.network.stride)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self) -> None:
        """As `on_fit_start`, where validation is all that is asked for."""
        super().on_validation_start()
        if self.trainer.validating:
            self.on_fit_start()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`mask` uint8 (B, H, W) under the samples' `index`, and `probabilities` float32 (B, C, H, W) if wanted.

        Of samples without an `image`, which PredictionWriter looks at by windows, only the `index`.
        """
        need(batch, f"{type(self).__name__}.predict_step", "index")
        if "image" not in batch:
            return {"index": batch["index"]}
        found = predicted(self, batch["image"], self.network, self.tile, self.predict_probabilities)
        return {"index": batch["index"], **found}

    def tile_grid(self, size: tuple[int, int]) -> tuple[int, int, int] | None:
        """For PredictionWriter: side of a tile, and rows and columns of them; None: it is looked at as a whole."""
        return tile_grid(size, self.tile, self.network.stride)

    def in_tiles(
        self, read: Callable[[int, int, int, int], np.ndarray], size: tuple[int, int], skip: Callable[[int, int], bool]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """For PredictionWriter: first row, first column and logits (C, h, w) of every tile that is not to be skipped.

        Args:
            read: (y0, y1, x0, x1) -> (N, y1 - y0, x1 - x0).
            size: (H, W).
            skip: (first row, first column) -> whether the tile is not wanted.
        """
        network = self.network

        def window(*where: int) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(read(*where), np.float32))[None].to(self.device)

        for (y0, _, x0, _), logits in tiled(self, window, size, network.stride, network.reach, self.tile, skip):
            yield y0, x0, logits


def _given_again(method: SegmentationMethod, _: Any) -> None:
    """A checkpoint does not hold given weights, and a method that was made by `to_empty` holds anything."""
    if not method.balanced:
        there = next((p.device for p in method.parameters()), method.class_weights.device)
        method.class_weights = method._given_weights.to(there, method.class_weights.dtype)
