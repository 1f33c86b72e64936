"""Levels-of-Experts: one coordinate network per image, whose layers choose their weights by position or by a class map.

The paper (JBE, "Levels-of-Experts" implicit networks with Multi-Otsu segmentation) replaces the last of four tilings by
a luminance segmentation. The networks of a run are independent: `NetworkPerImage` stacks them and trains them side by
side, and on several processes every rank owns some of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from torchmetrics import Metric, MetricCollection

from framework.batches import need
from framework.figures import derivative_panel, error_panel, psnr_over_time, reconstruction_panel
from framework.method import Batch, Split
from framework.metrics import ImagePSNR, Reduction, squared_error_8bit, to_8bit
from framework.nn import clip_segments, coordinate_grid
from framework.nn.coordinates.experts import Bias
from models.levels_of_experts.derivatives import Supervision, check_supervision, shown
from models.levels_of_experts.inference import forms
from models.levels_of_experts.maps import check_maps, classes_of, map_costs
from models.levels_of_experts.memory import RowsAtOnce, RowsOfAPass
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from models.levels_of_experts.rows import (
    MAP,
    Expert,
    LastOf,
    Rows,
    check_arguments,
    check_coordinates,
    check_tiles,
    is_inclusive,
    nearest,
    poisson_losses,
    sorted_rows,
    upright,
    with_derivatives,
)
from models.levels_of_experts.stacked import NetworkPerImage
from models.levels_of_experts.table import image_table

ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}})

#: a mean squared error on [-1, 1] that no picture of any kind has; initial networks stay below 2
DIVERGED_LOSS = 100.0
#: rows of one image that are rendered at a time outside training
RENDERED_ROWS = 65536


class LevelsOfExperts(NetworkPerImage):
    """SIRENs with position-dependent weights, one per image, all of a run trained side by side.

    Args:
        experts: for every sine layer what chooses its weights: a number A for tiles with 2 A along each axis (four
            experts), `map` for a class map, or null for one weight matrix. Four nulls are a plain SIREN, [128, 8, 4, 2]
            is fine-to-coarse, [2, 4, 8, 128] quad-tree, [128, 8, 4, map] the paper's proposal.
        offsets: b of every layer's tiles; None: 0.
        classes: experts of a `map` layer, and length of the one-hot input.
        class_input: append the pixel's class to the coordinates as a one-hot vector (a control).
        width: of the sine layers; 512 makes a plain SIREN as large as a 256 wide network with four experts.
        w0: frequency factor of every sine.
        bias: `shared` by a layer's experts, `per_expert` or `none`.
        supervision: what is fitted: the colours (`value`), or the picture's `gradient` or `laplacian` with the colours
            of its outermost pixels alone, a Poisson problem (docs/levels_of_experts.md).
        exact_tiles: refuse images whose size the tiles do not divide, and coordinates that are not pixel centres.
        rows_at_once: pixels per image whose activations are kept at a time in training; more are recomputed in the
            backward pass. `auto`: as many as fit into the device's free memory. None: all.
        scale: predict's resolution, as a factor on height and width.
        seed: of the initial weights, together with the image's name.
        optimizer: must act element by element (Adam, AdamW, SGD), or the images would influence each other.
        **per_image: the arguments of `NetworkPerImage`: when an image's rate falls, which of its weights are used, the
            schedule.

    Raises:
        ConfigError: arguments that do not go together.
    """

    decided_by_state = ("seed",)
    monitor = "val/psnr"
    monitor_mode = "max"
    unaveraged = ("best", "segmentation_maps")
    segmentation_maps: Tensor | None
    inference_forms = forms

    def __init__(
        self,
        experts: list[Expert] = [128.0, 8.0, 4.0, MAP],  # noqa: B006 (never written to)
        offsets: list[float] | None = None,
        classes: int = 4,
        class_input: bool = False,
        width: int = 256,
        w0: float = 30.0,
        bias: Bias = "shared",
        supervision: Supervision = "value",
        exact_tiles: bool = True,
        rows_at_once: RowsAtOnce = "auto",
        scale: float = 1.0,
        seed: int = 0,
        optimizer: OptimizerCallable = ADAM,
        **per_image: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **per_image)
        check_arguments(experts, offsets, classes, self.plateau_patience, self.plateau_factor, rows_at_once, scale)
        self.supervision = check_supervision(supervision, rows_at_once)
        self.experts, self.offsets, self.classes = experts, offsets or [0.0] * len(experts), classes
        self.class_input, self.exact_tiles = class_input, exact_tiles
        self.rows_at_once, self.scale, self._pass = rows_at_once, scale, RowsOfAPass(rows_at_once)
        self.network_arguments: dict[str, Any] = {"width": width, "w0": w0, "bias": bias, "seed": seed}
        self.keep_unaveraged("segmentation_maps", None)
        self._moved, self._rows = LastOf[Batch](), LastOf[Rows]()

    def build_networks(self, names: Sequence[str]) -> nn.Module:
        """One network for each name, drawn from (seed, name)."""
        counts = [1 if kind is None else self.classes if kind == MAP else 4 for kind in self.experts]
        inputs = 2 + self.classes * self.class_input
        return LevelsOfExpertsNetwork(counts, names, inputs, **self.network_arguments)

    def check_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        """Raises ConfigError when the tiles do not divide an image, unless `exact_tiles` is false."""
        if self.exact_tiles:
            check_tiles(self.experts, sizes)

    def operations(self) -> float:
        """Multiplications and additions of a sine layer on the largest image."""
        return 2.0 * max(h * w for h, w in self.sizes) * self.network_arguments["width"] ** 2

    # ------------------------------------------------------------------ class maps

    @property
    def segmentation_classes(self) -> int | None:
        """Number of classes that a class map may have; None when no layer asks for a map."""
        return self.classes if MAP in self.experts or self.class_input else None

    def set_segmentation_maps(self, maps: Tensor) -> None:
        """Takes the class maps of all images, (images, H, W) uint8 laid out like the batches' `image`.

        Raises:
            DataError: classes that the model has no experts for.
        """
        self.segmentation_maps = check_maps(maps, self.classes).to(self.device)
        self._rows.forget()

    def _classes_of(self, index: Tensor, shape: torch.Size) -> Tensor | None:
        """(B, H W) int64 classes of a batch's pixels."""
        return None if self.segmentation_classes is None else classes_of(self.segmentation_maps, index, shape)

    # ------------------------------------------------------------------ rows in nested order

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch once; a loader that gives the same object again gets the same tensors back."""
        need(batch, type(self).__name__, "image", "coords", "index")
        move = super().transfer_batch_to_device
        moved = self._moved.of(batch, lambda: move(batch, device, dataloader_idx))
        if moved["coords"].device != device:
            self._moved.forget()
            moved = self._moved.of(batch, lambda: move(batch, device, dataloader_idx))
        return moved

    def _prepare(self, batch: Batch) -> Rows:
        # kept with the networks' places, because reading the index waits for the device
        return self._rows.of(batch["coords"], lambda: self._rows_of(batch))

    def _rows_of(self, batch: Batch) -> Rows:
        coords = batch["coords"]
        if self.exact_tiles:
            check_coordinates(self.experts, coords)
        classes = self._classes_of(batch["index"], batch["image"].shape[2:])
        target = 2 * batch["image"].flatten(2).transpose(1, 2) - 1
        rows = self._sorted(coords.flatten(1, 2), classes)
        order = rows.order[..., None].expand(-1, -1, 3)
        networks = self.images.rows(batch["index"])
        rows = rows._replace(target=torch.gather(target, 1, order), networks=networks)
        return with_derivatives(rows, self.supervision, batch["image"], coords, classes, self.experts, self.offsets)

    def _sorted(self, coords: Tensor, classes: Tensor | None) -> Rows:
        return sorted_rows(coords, classes, self.experts, self.offsets, self.classes if self.class_input else None)

    # ------------------------------------------------------------------ the method

    def forward(self, inputs: Tensor, segments: Any, networks: list[int] | None = None) -> Tensor:
        """(B, N, in) rows in nested order and their segments -> (B, N, 3) RGB in [-1, 1], by those networks."""
        return self.call_networks(networks, inputs, segments)

    def _forward_in_parts(self, rows: Rows, size: int | None, keep: bool) -> Tensor:
        total = rows.inputs.shape[1]
        if size is None or size >= total:
            return self(rows.inputs, rows.segments, rows.networks)
        parts = []
        for start in range(0, total, size):
            stop = min(start + size, total)
            cut = [[clip_segments(runs, start, stop) for runs in level] for level in rows.segments]
            inputs = rows.inputs[:, start:stop]
            if keep:
                parts.append(cast(Tensor, recompute(self.forward, inputs, cut, rows.networks, use_reentrant=False)))
            else:
                parts.append(self(inputs, cut, rows.networks))
        return torch.cat(parts, 1)

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """Mean squared error per image on [-1, 1] (or `derivative_losses`); `loss` is their mean over images."""
        rows = self._prepare(batch)
        if rows.derivatives is None:
            out = self._forward_in_parts(rows, self._pass(self.network, rows.inputs), keep=split == "train")
            losses = (out - rows.target).square().mean((1, 2))
        else:
            out, losses = poisson_losses(self, rows, rows.derivatives)
        good = losses.detach().isfinite() & (losses.detach() < DIVERGED_LOSS)
        # A diverged image must not spoil the others' figure, nor their gradients.
        counted = torch.where(good, losses, 0.0)
        if split == "train":
            self._total, self.losses, self.good = counted.sum(), counted.detach(), good
        outputs = {"loss": counted.sum() / good.sum().clamp(min=1)}
        if split != "train":
            outputs["squared_error"] = squared_error_8bit(out, rows.target)
        return outputs

    def configure_metrics(self, split: Split) -> dict[str, Metric] | MetricCollection:
        """`psnr`, `psnr_lowest`, `psnr_highest` over images; only the loss in training, to keep steps cheap."""
        if split == "train":
            return {}
        count = len(self.names)
        figures = {"psnr": "mean", "psnr_lowest": "lowest", "psnr_highest": "highest"}
        metrics: dict[str, Metric | MetricCollection] = {
            name: ImagePSNR(count, cast(Reduction, reduction)) for name, reduction in figures.items()
        }
        return MetricCollection(metrics, compute_groups=[list(metrics)])

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: dict[str, Tensor], batch: Batch) -> None:
        """Counts the images' squared errors."""
        for metric in [metrics] if isinstance(metrics, MetricCollection) else metrics.values():
            metric.update(outputs["squared_error"], batch["image"][0].numel(), batch["index"])

    def unaveraged_loaded(self) -> None:
        """Rows sorted by other class maps are forgotten."""
        super().unaveraged_loaded()
        self._rows.forget()

    # ------------------------------------------------------------------ results

    def on_test_epoch_end(self) -> None:
        """Logs what the class maps cost."""
        if self.segmentation_maps is not None:
            self.log("test/map_bits_per_pixel", float(np.mean([row["context"] for row in self.map_costs()])))

    def table(self, values: Tensor) -> pd.DataFrame:
        """The table of all images, with these (images,) PSNR in dB as their last; a collective."""
        per_network = sum(p[0].numel() for p in self.network.parameters())
        costs = None if self.segmentation_maps is None else self.map_costs()
        return image_table(self.images, values, self.gathered_progress(), per_network, costs)

    def map_costs(self) -> list[dict[str, float]]:
        """What the class maps cost, per image, as `map_bits` states it."""
        return map_costs(cast(Tensor, self.segmentation_maps), self.sizes, self.classes)

    def figures(self, batch: Batch) -> "dict[str, Figure]":
        """`reconstruction`, `error` and, after a fit, `psnr_over_time`; of a Poisson fit also `derivatives`."""
        pictures = [upright(p, s) for p, s in zip(to_8bit(2 * batch["image"] - 1), batch["size"], strict=True)]
        made = self.predict_step({k: v.to(self.device) for k, v in batch.items()}, 0, scale=1.0)["reconstruction"]
        originals, said = ([p.cpu().permute(1, 2, 0).numpy() for p in part] for part in (pictures, made))
        names = [self.names[i] for i in batch["index"].tolist()]
        drawn = {
            "reconstruction": reconstruction_panel(originals, said, names),
            "error": error_panel(originals, said, names),
        }
        if self.supervision != "value":
            given = [shown(torch.from_numpy(original), self.supervision).numpy() for original in originals]
            drawn["derivatives"] = derivative_panel(given, said, originals, names, f"{self.supervision}, given")
        if self.history:
            steps, values = zip(*self.history, strict=True)
            drawn["psnr_over_time"] = psnr_over_time(steps, np.array(values), self.names)
        return drawn

    def predict_step(self, batch: Batch, batch_idx: int, *, scale: float | None = None) -> dict[str, Any]:
        """`reconstruction` (3, H, W) uint8 per image under its `index`; at scale 1 also `error` (H, W) uint8.

        The error is the largest absolute difference of a pixel's channels, in 8-bit levels.
        """
        scale = self.scale if scale is None else scale
        classes = self._classes_of(batch["index"], batch["image"].shape[2:])
        pictures, errors = [], []
        for b, row in enumerate(self.images.rows(batch["index"])):
            size, shape = batch["size"][b], batch["image"].shape[2:]
            grid: Any = "inclusive" if is_inclusive(batch["coords"][b]) else "pixel_center"
            height, width = (max(1, round(int(n) * scale)) for n in size)
            coords = coordinate_grid(height, width, grid).to(self.device)
            here = None
            if classes is not None:
                here = nearest(upright(classes[b].view(1, *shape), size)[0], coords, grid).flatten()[None]
            rows = self._sorted(coords.flatten(0, 1)[None], here)._replace(networks=[row])
            out = self._forward_in_parts(rows, RENDERED_ROWS, keep=False)
            pixels = torch.empty_like(out[0])
            pixels[rows.order[0]] = out[0]
            pictures.append(to_8bit(pixels).T.reshape(3, height, width))
            truth = upright(to_8bit(2 * batch["image"][b] - 1), size)
            if truth.shape == pictures[-1].shape:
                errors.append((truth.int() - pictures[-1].int()).abs().amax(0).to(torch.uint8))
        made: dict[str, Any] = {"index": batch["index"], "reconstruction": pictures}
        return {**made, "error": errors} if errors else made
