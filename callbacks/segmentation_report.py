"""What a test says of every image: a table, the confusions, and the worst, the median and the best picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.figure_writer import save_figure
from callbacks.tested import in_order, known_places, once_each, pictures_of, place_samples
from framework.distributed import gather_lists, run_folder
from framework.errors import ConfigError
from framework.figures import confusion_matrix, instance_curves
from framework.metrics import Matches, dice_by_class, iou_by_class, mean_over_present
from framework.metrics.instances import THRESHOLDS
from framework.metrics.segmentation import without_class
from framework.nn.filters.replacement import evaluating
from framework.outputs import free_path, optional_output
from framework.protocols import HasClassNames, MeasuresSamples, NamesSamples


class SegmentationReport(Callback):
    """After a test of a segmenter: `test_images.csv`, `figures/confusion.png` and `figures/worst_median_best.png`.

    The table has a row for every image with Dice and IoU of every class, and of the foreground together, and a last row
    `all` for the whole split, counts first; with instances also F1 at IoU 0.5, mean average precision over 0.5 to 0.95,
    panoptic quality and the numbers of objects, then `test_instances.csv` has a row for every threshold. Images are
    ordered by mean average precision, then by Dice. Pictures are found again by their `index`, or by their place where
    the loader does not shuffle, and drawn as the network saw them; an image that several processes tested has one row.
    Every command has this callback for every method that measures samples.

    Args:
        figures: draw them; False writes tables only.
    """

    def __init__(self, figures: bool = True) -> None:
        self.figures = figures

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at what it is to work with.

        Raises:
            ConfigError: a module that keeps nothing of its samples.
        """
        if not isinstance(pl_module, MeasuresSamples):
            raise ConfigError(
                f"SegmentationReport: {type(pl_module).__name__} keeps no counts of its samples (it has no "
                "take_samples and sample_figures); take the callback out of trainer.callbacks"
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts together what the ranks have counted, and writes it on the first."""
        assert isinstance(pl_module, MeasuresSamples)
        own = pl_module.take_samples()
        place_samples(own, known_places(trainer))
        samples = gather_lists(own)
        if not trainer.is_global_zero or not samples or not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        samples = in_order(once_each(trainer, samples))
        data = getattr(trainer, "datamodule", None)
        name: Any = data.sample_name if isinstance(data, NamesSamples) else "{:06d}".format
        for number, sample in enumerate(samples):
            index = number if sample["index"] is None else sample["index"]
            sample["name"] = name(index)
        folder = run_folder(trainer)
        table = pd.DataFrame([_row(sample) for sample in samples])
        together = _sum([s["objects"] for s in samples])
        confusion = np.sum([s["confusion"] for s in samples], 0)
        objects = None if together is None else together.plain()
        whole = _row({**samples[0], "name": "all", "confusion": confusion, "objects": objects})
        _write(folder / "test_images.csv", pd.concat([table, pd.DataFrame([whole])]))
        if together is not None:
            _write(folder / "test_instances.csv", pd.DataFrame(together.by_threshold()))
        if self.figures:
            names = data.class_names if isinstance(data, HasClassNames) else ()
            save_figure(
                trainer, "confusion", confusion_matrix(confusion, names if len(names) == len(confusion) else None)
            )
            if together is not None:
                curves = together.by_threshold()
                shown = {"F1": curves["f1"], "average precision": curves["ap"], "panoptic quality": curves["pq"]}
                save_figure(trainer, "instances", instance_curves(THRESHOLDS, {k: list(v) for k, v in shown.items()}))
            self._draw_extremes(trainer, pl_module, samples, table)

    def _draw_extremes(
        self, trainer: Trainer, pl_module: Any, samples: Sequence[Mapping[str, Any]], table: pd.DataFrame
    ) -> None:
        key = "ap" if "ap" in table else "dice"
        order = np.lexsort((table["dice"], table[key]))
        chosen = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
        if len(order) < 3:
            chosen = {"worst": order[0], "best": order[-1]} if len(order) == 2 else {"only": order[0]}
        pictures = pictures_of(trainer, [samples[i] for i in chosen.values()])
        titles = [f"{t}: {samples[i]['name']}\n{key} {table[key].iloc[i]:.3f}" for t, i in chosen.items()]
        shown = [(one, title) for one, title in zip(pictures, titles, strict=True) if one is not None]
        if not shown:
            return
        with evaluating(pl_module), torch.inference_mode(), trainer.precision_plugin.forward_context():
            drawn = pl_module.sample_figures(*map(list, zip(*shown, strict=True)))
        for name, figure in drawn.items():
            save_figure(trainer, name, figure)


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    counts, objects, name = torch.as_tensor(np.asarray(sample["confusion"])), sample["objects"], sample["name"]
    dice, iou = (without_class(f(counts), sample["ignored"]) for f in (dice_by_class, iou_by_class))
    row: dict[str, Any] = {"image": name, "dice": float(mean_over_present(dice)), "iou": float(mean_over_present(iou))}
    for c in range(len(counts)):
        row |= {f"dice_{c}": float(dice[c]), f"iou_{c}": float(iou[c])}
    if objects is not None:
        matches = Matches.of(objects)
        row |= {**matches.figures(), "objects": matches.found, "objects_true": matches.true}
    return row


def _sum(objects: Sequence[Mapping[str, Any] | None]) -> Matches | None:
    known = [Matches.of(o) for o in objects if o is not None]
    return sum(known[1:], known[0]) if known else None


def _write(path: Path, table: pd.DataFrame) -> None:
    path = free_path(path)
    with optional_output(path):
        table.round(6).to_csv(path, index=False)
