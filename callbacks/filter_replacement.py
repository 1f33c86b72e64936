"""One test, many banks: the untouched network and the same network with its depthwise filters replaced."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.figure_writer import save_figure
from callbacks.when import builds_late
from framework.distributed import broadcast_tensors, run_folder, same_on_all_ranks, say
from framework.errors import ConfigError, DataError, DivergenceError
from framework.figures import explained_energy, replacement_figure
from framework.nn import (
    ReferenceStatistics,
    SharedPrefix,
    approximate,
    bank_parameters,
    depthwise_convolutions,
    evaluating,
    load_filters,
    make_bank,
    match_filters,
    recalibrated,
    reference_statistics,
    swapped,
)
from framework.outputs import free_path, optional_output
from framework.protocols import HasCalibration

DEFAULT_BANKS = ("A", "B", "C1", "C2", "D1", "D2", "random", "k-lines", "sigma-network", "sigma-layer", "sigma-filter")


@dataclass
class Variant:
    """One row of the table."""

    bank: str
    recalibrated: bool
    changes: list[tuple[Tensor, Tensor]]
    energy: float
    parameters: int
    top1: MeanMetric
    top5: MeanMetric


class FilterReplacement(Callback):
    """Evaluates any classifier with its depthwise filters replaced by banks, beside the untouched network.

    It acts in `test` and `validate` (not in the validation of a fit) on any module that maps `image` (B, C, H, W) to
    logits (B, classes) and whose batches have `image` and `label`. The pictures are read once; per batch every bank's
    weights are written, the batch is evaluated, and the old weights come back bitwise, whatever happens. The table goes
    to `filter_replacement.csv` in the run folder with its figure in `figures/`.

    Args:
        banks: `learned`, `A` to `D2`, `random` and `random-N` (controls), `k-lines`, `sigma-network`, `sigma-layer`,
            `sigma-filter`; see `framework.nn.make_bank`.
        recalibrate: a second row for every bank, recalibrated without gradients on the data module's calibration
            pictures: `affine` rescales every batch norm so that mean and standard deviation of the pre-activations are
            the untouched network's (without batch norms, the depthwise convolutions themselves), `statistics` renews
            the batch norms' running statistics; None: without.
        filters_file: the learned filters, the authors' text file or an `.npz`; for the bank `learned`.
        seed: of `random` and `k-lines`.
        share_prefix: compute what lies before the first depthwise convolution once per batch.
    """

    def __init__(
        self,
        banks: Sequence[str] = DEFAULT_BANKS,
        recalibrate: Literal["affine", "statistics"] | None = None,
        filters_file: str | None = None,
        seed: int = 0,
        share_prefix: bool = True,
    ) -> None:
        self.banks = list(banks)
        if not self.banks or len(set(self.banks)) < len(self.banks):
            raise ConfigError(f"banks: expected distinct banks, at least one, got {self.banks}")
        if recalibrate not in (None, "affine", "statistics"):
            raise ConfigError(f"recalibrate: expected affine, statistics or null, got {recalibrate!r}")
        self.recalibrate = recalibrate
        self.filters_file = filters_file
        self.seed = seed
        self.share_prefix = share_prefix
        self.table: pd.DataFrame | None = None
        self._variants: list[Variant] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the layers and reads the learned filters.

        Raises:
            ConfigError: the module has no depthwise convolution, a bank is unknown, or recalibration has no pictures.
        """
        self._active = trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING)
        self._learned = None if self.filters_file is None else load_filters(self.filters_file)
        try:
            self._find(pl_module)
        except ConfigError:
            if not builds_late(pl_module):
                raise
        data = getattr(trainer, "datamodule", None)
        if self._active and self.recalibrate is not None and not isinstance(data, HasCalibration):
            raise ConfigError(
                f"recalibrate: {type(data).__name__} has no calibration_dataset(); use a data module with "
                "data.calibration_images, or set recalibrate: null"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at a module that may make layers after the callbacks' `setup`."""
        if builds_late(pl_module):
            self._find(pl_module)

    on_test_start = on_validation_start = on_fit_start

    def _find(self, pl_module: LightningModule) -> None:
        self._convolutions = depthwise_convolutions(pl_module)
        some = {name: torch.eye(conv.kernel_size[0])[None] for name, conv in self._convolutions.items()}
        for bank in self.banks:
            if bank not in ("k-lines", "sigma-layer", "sigma-network", "sigma-filter"):
                make_bank(bank, some, self._learned, self.seed)

    # ------------------------------------------------------------------ before the first batch

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds all banks, and recalibrates; on rank 0, and broadcast."""
        if not self._active:
            return
        self._precision = trainer.precision_plugin
        with torch.inference_mode(False), evaluating(pl_module):
            self._energies: dict[str, list[float]] = {}
            images = self._calibration_images(trainer, pl_module) if self.recalibrate else None
            reference = None
            if images is not None:
                with trainer.precision_plugin.forward_context():
                    reference = reference_statistics(pl_module, pl_module, self._convolutions.values(), images)
            weights = {n: c.weight.detach().flatten(0, 1) for n, c in self._convolutions.items()}
            self._variants = [self._variant("original", False, [], 1.0, pl_module)]
            for bank in self.banks:
                self._add_bank(bank, weights, images, reference, pl_module)
            self._prefix = SharedPrefix(pl_module, self._convolutions.values())
        values = {
            f"{v.bank}/{v.recalibrated}/{i}": value for v in self._variants for i, (_, value) in enumerate(v.changes)
        }
        if not same_on_all_ranks(values):
            raise DivergenceError("FilterReplacement: the ranks hold different banks, which broadcasting rules out")

    on_validation_epoch_start = on_test_epoch_start

    def _add_bank(
        self,
        bank: str,
        weights: Mapping[str, Tensor],
        images: Tensor | None,
        reference: ReferenceStatistics | None,
        pl_module: LightningModule,
    ) -> None:
        banks = make_bank(bank, weights, self._learned, self.seed)
        changes, shares = [], []
        for name, filters in weights.items():
            match = match_filters(filters, banks[name])
            value = approximate(match, banks[name]).unsqueeze(1).to(self._convolutions[name].weight)
            changes.append((self._convolutions[name].weight, value))
            shares.append(match.explained())
        broadcast_tensors(value for _, value in changes)
        self._energies[bank] = shares
        energy = float(torch.tensor(shares, dtype=torch.float64).nanmean())
        self._variants.append(self._variant(bank, False, changes, energy, pl_module, weights))
        if self.recalibrate is not None and images is not None and reference is not None:
            with self._precision.forward_context():
                tuned = recalibrated(pl_module, pl_module, changes, reference, images, self.recalibrate)
            broadcast_tensors(value for _, value in tuned)
            self._variants.append(self._variant(bank, True, tuned, energy, pl_module, weights))

    def _variant(
        self,
        bank: str,
        tuned: bool,
        changes: list[tuple[Tensor, Tensor]],
        energy: float,
        pl_module: LightningModule,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Variant:
        every = weights or {n: c.weight.detach().flatten(0, 1) for n, c in self._convolutions.items()}
        metrics = [MeanMetric().to(pl_module.device) for _ in range(2)]
        return Variant(bank, tuned, changes, energy, bank_parameters(bank, every), *metrics)

    def _calibration_images(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        dataset: Any = trainer.datamodule.calibration_dataset()  # type: ignore[attr-defined]
        images = torch.stack([dataset[i]["image"] for i in range(len(dataset))])
        return trainer.precision_plugin.convert_input(images.to(pl_module.device))

    # ------------------------------------------------------------------ every batch

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluates the batch with every bank.

        Raises:
            ConfigError: the batch has no `image` and `label`, or the module's output is not (B, classes). DataError:
                labels that are not one number per image.
        """
        if not self._active:
            return
        if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
            raise ConfigError("FilterReplacement: needs batches with the keys 'image' and 'label'")
        with evaluating(pl_module):
            for number, variant in enumerate(self._variants):
                shared = (self._prefix.replay if number else self._prefix.record) if self.share_prefix else nullcontext
                # each in a context of its own: autocast remembers a weight's cast until its context ends
                with swapped(variant.changes), trainer.precision_plugin.forward_context(), shared():
                    _count(variant, pl_module(batch["image"]), batch["label"])

    on_validation_batch_end = on_test_batch_end

    # ------------------------------------------------------------------ after the last batch

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduces the figures over ranks, logs them and writes table and figures."""
        if not self._active:
            return
        rows = []
        untouched = 0.0
        for variant in self._variants:
            top1, top5 = (100 * float(metric.compute()) for metric in (variant.top1, variant.top5))
            untouched = top1 if variant.bank == "original" else untouched
            rows.append(
                {
                    "bank": variant.bank,
                    "recalibrated": variant.recalibrated,
                    "top1": top1,
                    "top5": top5,
                    "drop": untouched - top1,
                    "explained_energy": variant.energy,
                    "parameters": variant.parameters,
                }
            )
            name = f"{variant.bank}{'_recalibrated' if variant.recalibrated else ''}"
            # the same on every rank: the metrics have been reduced
            pl_module.log(f"replacement/{name}/top1", top1, rank_zero_only=False)
        self.table = pd.DataFrame(rows)
        self._write(trainer, self.table)
        self._variants = []

    on_validation_epoch_end = on_test_epoch_end

    @rank_zero_only
    def _write(self, trainer: Trainer, table: pd.DataFrame) -> None:
        say("\n" + table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        path = free_path(folder / "filter_replacement.csv")
        with optional_output(path):
            table.to_csv(path, index=False, float_format="%.6g")
        layers = [name.removeprefix("network.") for name in self._convolutions]
        save_figure(trainer, "filter_replacement", replacement_figure(table))
        energy = {bank: torch.tensor(shares).numpy() for bank, shares in self._energies.items()}
        save_figure(trainer, "explained_energy", explained_energy(energy, layers))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the banks; the weights are already back."""
        self._variants = []


def _count(variant: Variant, logits: Any, label: Tensor) -> None:
    if label.ndim != 1:
        raise DataError(
            f"FilterReplacement: expected label (B,), one class per image, got {tuple(label.shape)}; give batches with "
            "one number per image"
        )
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(label):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"FilterReplacement: expected a module that maps images to logits (B, classes), got {shape}")
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    variant.top1.update(best[:, 0].float())
    variant.top5.update(best.any(1).float())
