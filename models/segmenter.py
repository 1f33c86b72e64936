"""What the methods that give every pixel a class share: prediction in tiles, and what a test measures."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from framework.figures import instance_panel, segmentation_panel
from framework.instances import objects_of
from framework.method import BaseMethod, Batch
from framework.metrics import InstanceFigure, Matches, instance_figures, match_objects
from framework.metrics.segmentation import confusion_counts
from framework.tiling import TileSize
from models.segmentation import Strided, predicted_classes


class Segmenting(Protocol):
    """What SegmentationMethod asks of its subclasses."""

    num_classes: int
    ignore_index: int | None
    tile: TileSize
    network: Strided


class SegmentationMethod(BaseMethod):
    """A method with `network`, `num_classes`, `ignore_index` and `tile`, whose `step` returns `preds` and `target`.

    Where the batches of a test have `objects`, int64 (B, H, W), 0 ground, -1 without a label, the figures of
    `framework.metrics.instances` are logged as `test/instance_f1_50` and so on.
    """

    num_classes: int
    ignore_index: int | None
    tile: TileSize
    #: of a test: index, counts of every sample, matches of every sample
    _samples: Sequence[tuple[Tensor | None, list[Tensor], list[Matches] | None]] = ()

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
        """(B, H, W) classes background, inside, border -> B label images (H, W)."""
        return [objects_of(one) for one in classes.cpu().numpy()]

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
        images = [s["image"].cpu().numpy() for s in samples]
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

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`mask` uint8 (B, H, W) under the samples' `index`."""
        network = cast(Segmenting, self).network
        return {"index": batch["index"], "mask": predicted_classes(self, batch["image"], network, self.tile)}
