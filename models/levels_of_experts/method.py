"""Levels-of-Experts: one coordinate network per image, whose layers choose their weights by position or by a class map.

The paper (JBE, "Levels-of-Experts" implicit networks with Multi-Otsu segmentation) replaces the last of four tilings by
a luminance segmentation. The networks of a run are independent: their weights are stacked and trained side by side,
and on several processes every rank owns some of them.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from torchmetrics import Metric, MetricCollection

from framework.distributed import gather_rows, is_distributed, ranks
from framework.errors import CheckpointError, ConfigError, DataError, DivergenceError
from framework.figures import error_panel, psnr_over_time, reconstruction_panel
from framework.method import LOSS_CHECK_EVERY, BaseMethod, Batch, Split
from framework.metrics import ImagePSNR, Reduction, squared_error_8bit, to_8bit
from framework.nn import clip_segments, coordinate_grid, map_bits
from framework.nn.coordinates.experts import Bias
from framework.protocols import HasImages
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from models.levels_of_experts.rows import (
    MAP,
    Expert,
    Rows,
    check_arguments,
    check_same_images,
    check_tiles,
    few,
    image_table,
    is_inclusive,
    nearest,
    sorted_rows,
    upright,
)

ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}})

#: a mean squared error on [-1, 1] that no picture of any kind has; initial networks stay below 2
DIVERGED_LOSS = 100.0
#: rows of one image that are rendered at a time outside training
RENDERED_ROWS = 65536


class LevelsOfExperts(BaseMethod):
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
        exact_tiles: refuse images whose size the tiles do not divide, and coordinates that are not pixel centres.
        plateau_patience: epochs without a new lowest loss after which an image's learning rate is multiplied by
            `plateau_factor`, image by image; None: never.
        plateau_factor: see `plateau_patience`.
        rows_at_once: pixels per image whose activations are kept at a time in training; more are recomputed in the
            backward pass. None: all.
        weights: what validate, test and predict use: the `last` iterate, or every image's `best` evaluated one.
        scale: predict's resolution, as a factor on height and width.
        seed: of the initial weights, together with the image's name.
        optimizer: must act element by element (Adam, AdamW, SGD), or the images would influence each other.
        lr_scheduler: the same for all images; None: constant.
        lr_interval: `epoch` or `step`.

    Raises:
        ConfigError: arguments that do not go together.
    """

    monitor = "val/psnr"
    monitor_mode = "max"

    segmentation_maps: Tensor | None
    _epoch_losses: Tensor

    def __init__(
        self,
        experts: list[Expert] = [128.0, 8.0, 4.0, MAP],  # noqa: B006 (never written to)
        offsets: list[float] | None = None,
        classes: int = 4,
        class_input: bool = False,
        width: int = 256,
        w0: float = 30.0,
        bias: Bias = "shared",
        exact_tiles: bool = True,
        plateau_patience: int | None = None,
        plateau_factor: float = 0.5,
        rows_at_once: int | None = None,
        weights: Literal["last", "best"] = "last",
        scale: float = 1.0,
        seed: int = 0,
        optimizer: OptimizerCallable = ADAM,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        check_arguments(experts, offsets, classes, plateau_patience, plateau_factor, rows_at_once, scale)
        self.experts, self.offsets, self.classes = experts, offsets or [0.0] * len(experts), classes
        self.class_input, self.exact_tiles = class_input, exact_tiles
        self.plateau_patience, self.plateau_factor = plateau_patience, plateau_factor
        self.rows_at_once, self.weights, self.scale = rows_at_once, weights, scale
        self.network_arguments = {"width": width, "w0": w0, "bias": bias, "seed": seed}
        self.names: list[str] = []
        self.sizes: list[list[int]] = []
        self.history: list[tuple[int, list[float]]] = []
        self.register_buffer("segmentation_maps", None)
        self._ranks = (1, 0)
        self._moved: tuple[Batch, Batch] | None = None
        self._rows: tuple[Tensor, Rows] | None = None

    # ------------------------------------------------------------------ images and their owners

    def adapt(self, data: LightningDataModule | None) -> None:
        """Builds one network per image of this rank.

        Raises:
            ConfigError: no images are known, or the tiles do not divide them. CheckpointError: the module holds the
            networks of other images.
        """
        if isinstance(data, HasImages):
            names, sizes = data.image_names, data.image_sizes
        elif self.names:
            names, sizes = self.names, self.sizes
        else:
            raise ConfigError(
                "data: LevelsOfExperts needs a data module with image_names and image_sizes, got "
                f"{type(data).__name__}; or call model.configure_images(names, sizes) first"
            )
        self.configure_images(names, sizes)

    def configure_images(self, names: list[str], sizes: list[list[int]]) -> None:
        """Builds one network per image that this rank owns (image i belongs to rank i modulo their number).

        Args:
            names: of all images of the run.
            sizes: their [height, width].

        Raises:
            ConfigError: the tiles do not divide an image, or there are more ranks than images.
            CheckpointError: the module already holds the networks of other images.
        """
        if self.names:
            check_same_images((self.names, self.sizes), (names, sizes))
            if self._ranks == ranks():
                return
            if self._ranks != (1, 0):
                raise ConfigError(
                    "model: networks dealt out to several ranks cannot be dealt out anew; load a checkpoint"
                )
        if self.exact_tiles:
            check_tiles(self.experts, sizes)
        whole = {k: v for k, v in self.state_dict().items() if k.startswith(("network.", "best."))}
        self.names, self.sizes, self._ranks = list(names), [list(size) for size in sizes], ranks()
        own = self._own(self.names)
        if not own:
            raise ConfigError(
                f"trainer.devices: {self._ranks[0]} processes for {len(names)} images; give fewer processes"
            )
        counts = [1 if kind is None else self.classes if kind == MAP else 4 for kind in self.experts]
        inputs = 2 + self.classes * self.class_input
        self.network = LevelsOfExpertsNetwork(counts, own, inputs, **cast(Any, self.network_arguments))
        self.best = LevelsOfExpertsNetwork(counts, own, inputs, **cast(Any, self.network_arguments))
        self.best.requires_grad_(False)
        if whole:
            self.load_state_dict({k: self._own(v) for k, v in whole.items()}, strict=False)
        self.network.to(self.device), self.best.to(self.device)
        # What ranks own must be neither averaged nor made equal.
        self._ddp_params_and_buffers_to_ignore = [n for n, _ in self.named_parameters()]
        if is_distributed():
            self.anchor = nn.Parameter(torch.zeros((), device=self.device))  # DDP refuses a module without parameters
        n = len(own)
        self.progress = {
            "best_psnr": torch.full((n,), -torch.inf, dtype=torch.float64),
            "best_step": torch.zeros(n, dtype=torch.int64),
            "diverged_step": torch.full((n,), -1, dtype=torch.int64),
            "learning_rate_factor": torch.ones(n),
            "lowest_loss": torch.full((n,), torch.inf),
            "epochs_since_lowest": torch.zeros(n, dtype=torch.int64),
        }

    def _own(self, values: Any) -> Any:
        return values[self._ranks[1] :: self._ranks[0]]

    def _own_rows(self, index: Tensor) -> list[int]:
        world_size, rank = self._ranks
        positions = index.tolist()
        if any(i % world_size != rank or i >= len(self.names) for i in positions):
            raise DataError(f"index: images {positions} are not all owned by rank {rank} of {world_size}")
        return [i // world_size for i in positions]

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
        if maps.dtype != torch.uint8 or maps.dim() != 3 or int(maps.max()) >= self.classes:
            raise DataError(
                f"segmentation maps: expected uint8 (images, H, W) of classes 0..{self.classes - 1}, got {maps.dtype} "
                f"{tuple(maps.shape)} up to {int(maps.max())}; set model.classes to the map's number of classes"
            )
        self.segmentation_maps = maps.to(self.device)
        self._rows = None

    def _classes_of(self, index: Tensor, shape: torch.Size) -> Tensor | None:
        """(B, H W) int64 classes of a batch's pixels."""
        if self.segmentation_classes is None:
            return None
        if self.segmentation_maps is None:
            raise ConfigError(
                "model.experts: a layer wants a class map and there is none; add SegmentationMaps to "
                "trainer.callbacks, or call model.set_segmentation_maps(maps)"
            )
        maps = self.segmentation_maps[index]
        if maps.shape[1:] != shape:
            raise DataError(f"segmentation maps are {tuple(maps.shape[1:])}, the images {tuple(shape)}")
        return maps.flatten(1).long()

    # ------------------------------------------------------------------ rows in nested order

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch once; a loader that gives the same object again gets the same tensors back."""
        if self._moved is None or self._moved[0] is not batch or self._moved[1]["coords"].device != device:
            self._moved = (batch, super().transfer_batch_to_device(batch, device, dataloader_idx))
        return self._moved[1]

    def _prepare(self, batch: Batch) -> Rows:
        if self._rows is None or self._rows[0] is not batch["coords"]:
            coords = batch["coords"]
            if self.exact_tiles and any(isinstance(k, int | float) for k in self.experts) and is_inclusive(coords):
                raise ConfigError(
                    "data.grid: inclusive coordinates make tiles of unequal size; use pixel_center, or accept it with "
                    "model.exact_tiles: false"
                )
            classes = self._classes_of(batch["index"], batch["image"].shape[2:])
            target = 2 * batch["image"].flatten(2).transpose(1, 2) - 1
            rows = self._sorted(coords.flatten(1, 2), classes)
            order = rows.order[..., None].expand(-1, -1, 3)
            networks = self._own_rows(batch["index"])  # kept, because reading the index waits for the device
            self._rows = (coords, rows._replace(target=torch.gather(target, 1, order), networks=networks))
        return self._rows[1]

    def _sorted(self, coords: Tensor, classes: Tensor | None) -> Rows:
        return sorted_rows(coords, classes, self.experts, self.offsets, self.classes if self.class_input else None)

    # ------------------------------------------------------------------ the method

    def forward(self, inputs: Tensor, segments: Any, networks: list[int] | None = None) -> Tensor:
        """(B, N, in) rows in nested order and their segments -> (B, N, 3) RGB in [-1, 1], by those networks."""
        network = self.best if self._uses_best() else self.network
        if networks is None or networks == list(range(network.last.weight.shape[0])):
            return network(inputs, segments)
        chosen = {name: parameter[networks] for name, parameter in network.named_parameters()}
        return functional_call(network, chosen, (inputs, segments))

    def _uses_best(self) -> bool:
        trainer = self.attached_trainer
        fitting = trainer is not None and trainer.state.fn == "fit"
        return self.weights == "best" and not fitting

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
        """Mean squared error per image over all pixels and channels on [-1, 1]; `loss` is their mean over images."""
        rows = self._prepare(batch)
        out = self._forward_in_parts(rows, self.rows_at_once, keep=split == "train")
        losses = (out - rows.target).square().mean((1, 2))
        good = losses.detach().isfinite() & (losses.detach() < DIVERGED_LOSS)
        # A diverged image must not spoil the others' figure, nor their gradients.
        counted = torch.where(good, losses, 0.0)
        if split == "train":
            self._losses, self._good = counted, good
        outputs = {"loss": counted.sum() / good.sum().clamp(min=1)}
        if split != "train":
            outputs["squared_error"] = squared_error_8bit(out, rows.target)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs the mean over images, returns the sum: an image's gradient is that of a run of its own."""
        super().training_step(batch, batch_idx)
        self._epoch_losses = self._epoch_losses + self._losses.detach()
        return self._losses.sum()

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

    def batch_size(self, batch: Batch) -> int:
        """Images."""
        return len(batch["index"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks' parameters; every tensor holds all images of the rank."""
        return [{"params": list(self.network.parameters())}]

    def configure_optimizers(self) -> Any:
        """As in BaseMethod.

        Raises:
            ConfigError: a scheduler that would decide for all images at once.
        """
        configured = super().configure_optimizers()
        if isinstance(configured, dict) and isinstance(configured["lr_scheduler"]["scheduler"], ReduceLROnPlateau):
            raise ConfigError(
                "model.lr_scheduler: ReduceLROnPlateau decides for all images at once; set model.plateau_patience, "
                "which decides image by image"
            )
        return configured

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips norms image by image; a norm over all images would let one slow the others."""
        if gradient_clip_val is None or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        factors = (gradient_clip_val / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))

    # ------------------------------------------------------------------ image by image: rate, divergence, best

    def on_train_start(self) -> None:
        """As in BaseMethod; DDP has nothing to reduce."""
        super().on_train_start()
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_backward_grad_sync = False

    def on_train_epoch_start(self) -> None:
        """Begins the epoch's mean losses."""
        self._epoch_losses = torch.zeros(len(self._own(self.names)), device=self.device)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step, scaled image by image; exact for optimizers whose update is proportional to the learning rate."""
        factors = self.progress["learning_rate_factor"]
        slowed = (factors != 1).nonzero().flatten().to(self.device)
        factor = factors.to(self.device)[slowed]
        before = [p.detach()[slowed] for p in self.network.parameters()] if len(slowed) else []
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            for parameter, old in zip(self.network.parameters(), before, strict=False):
                rate = factor.view(-1, *[1] * (old.dim() - 1))
                parameter[slowed] = torch.where(rate == 0, old, old + rate * (parameter[slowed] - old))
        if not self._good.is_cuda or self.global_step % LOSS_CHECK_EVERY == 0:
            frozen = ~self._good.cpu() & (self.progress["diverged_step"] < 0)
            if frozen.any():
                self._freeze(frozen.nonzero().flatten(), optimizer)

    def _freeze(self, rows: Tensor, optimizer: Any) -> None:
        """Puts diverged images back to their best weights and keeps them there."""
        self.progress["learning_rate_factor"][rows] = 0
        self.progress["diverged_step"][rows] = self.global_step
        optimizer = getattr(optimizer, "optimizer", optimizer)
        with torch.no_grad():
            for parameter, best in zip(self.network.parameters(), self.best.parameters(), strict=True):
                parameter[rows] = best[rows]
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[rows] = 0
        names = [self._own(self.names)[row] for row in rows.tolist()]
        warnings.warn(  # on the rank that owns them, not on the first alone
            f"{few(names)} diverged at step {self.global_step} and stays at its best weights; the other images go on. "
            "Lower the learning rate (model.optimizer.init_args.lr).",
            stacklevel=2,
        )
        if not is_distributed():
            self._stop_if_all_diverged(self.progress["diverged_step"])

    def _stop_if_all_diverged(self, diverged_step: Tensor) -> None:
        if (diverged_step >= 0).all():
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            kept = f"the last good checkpoint is {best}" if best else "no checkpoint had been written yet"
            raise DivergenceError(
                f"all {len(diverged_step)} images diverged, the last at step {int(diverged_step.max())}; {kept}. "
                "Lower the learning rate (model.optimizer.init_args.lr)."
            )

    def on_validation_epoch_end(self) -> None:
        """Keeps every image's best weights and records its PSNR."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        values = self._per_image("val").cpu()
        self.history.append((self.global_step, values.tolist()))
        better = (self._own(values) > self.progress["best_psnr"]).nonzero().flatten()
        self.progress["best_psnr"][better] = self._own(values)[better]
        self.progress["best_step"][better] = self.global_step
        with torch.no_grad():
            for best, parameter in zip(self.best.parameters(), self.network.parameters(), strict=True):
                best[better] = parameter[better]

    def _per_image(self, split: Split) -> Tensor:
        metric = cast(ImagePSNR, cast(nn.ModuleDict, self.metrics[f"{split}_metrics"])["psnr"])
        metric.compute()
        return metric.per_image

    def on_train_epoch_end(self) -> None:
        """Slows images on a plateau; stops when all have diverged."""
        if self.plateau_patience is not None:
            state, losses = self.progress, self._epoch_losses.cpu()
            lower = losses < state["lowest_loss"]
            state["lowest_loss"] = torch.minimum(losses, state["lowest_loss"])
            state["epochs_since_lowest"] = torch.where(lower, 0, state["epochs_since_lowest"] + 1)
            stuck = state["epochs_since_lowest"] > self.plateau_patience
            state["learning_rate_factor"][stuck] *= self.plateau_factor
            state["epochs_since_lowest"][stuck] = 0
        if is_distributed():
            self._stop_if_all_diverged(self._gather(self.progress["diverged_step"]))

    # ------------------------------------------------------------------ checkpoints: gathered, whoever owns what

    def _gather(self, rows: Tensor) -> Tensor:
        return gather_rows(rows.to(self.device), len(self.names))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores all images' networks and optimizer state, as one process would, and which images they are."""
        super().on_save_checkpoint(checkpoint)
        self._map_rows(checkpoint, len(self._own(self.names)), self._gather)
        checkpoint["state_dict"].pop("anchor", None)
        checkpoint["images"] = {
            "names": self.names,
            "sizes": self.sizes,
            "history": self.history,
            "progress": {name: self._gather(rows).cpu() for name, rows in self.progress.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes this rank's share of a checkpoint of any number of ranks.

        Raises:
            CheckpointError: a checkpoint of another class or of other images.
        """
        super().on_load_checkpoint(checkpoint)
        images = checkpoint.get("images")
        if images is None:
            raise CheckpointError("ckpt_path: the checkpoint says nothing of its images; it is not of LevelsOfExperts")
        if not self.names:
            self.configure_images(images["names"], images["sizes"])
        check_same_images((images["names"], images["sizes"]), (self.names, self.sizes))
        self._map_rows(checkpoint, len(self.names), self._own)
        if is_distributed():
            checkpoint["state_dict"]["anchor"] = self.anchor.detach()
        self.progress = {name: self._own(rows).clone() for name, rows in images["progress"].items()}
        self.history = [(step, list(values)) for step, values in images["history"]]
        maps = checkpoint["state_dict"].get("segmentation_maps")
        if maps is not None and self.segmentation_classes is not None:
            self.segmentation_maps = torch.empty_like(maps, device=self.device)
            self._rows = None

    def _map_rows(self, checkpoint: dict[str, Any], count: int, change: Any) -> None:
        """Applies `change` to every tensor of a checkpoint whose first axis is the image."""
        state = checkpoint["state_dict"]
        for name in [n for n in state if n.startswith(("network.", "best."))]:
            state[name] = change(state[name])
        for optimizer in checkpoint.get("optimizer_states", []):
            for key, values in optimizer["state"].items():
                # a new dict: this one is the live optimizer's own
                optimizer["state"][key] = {
                    name: change(v) if isinstance(v, Tensor) and v.dim() > 1 and len(v) == count else v
                    for name, v in values.items()
                }

    # ------------------------------------------------------------------ results

    def on_train_end(self) -> None:
        """Writes `images.csv`, the table of all images."""
        if self.history:
            self._write_table(torch.tensor(self.history[-1][1], dtype=torch.float64))

    def on_test_epoch_end(self) -> None:
        """Writes `images.csv`, and logs what the class maps cost."""
        values = self._per_image("test")
        if self.segmentation_maps is not None:
            self.log("test/map_bits_per_pixel", float(np.mean([row["context"] for row in self.map_costs()])))
        self._write_table(values)

    def _write_table(self, values: Tensor) -> None:
        progress = {name: self._gather(rows).cpu() for name, rows in self.progress.items()}
        if not self.trainer.is_global_zero or not self.trainer.loggers or getattr(self.trainer, "fast_dev_run", False):
            return
        per_network = sum(p[0].numel() for p in self.network.parameters())
        costs = None if self.segmentation_maps is None else self.map_costs()
        table = image_table(self.names, self.sizes, values, progress, per_network, costs)
        # loggers[0].log_dir, not trainer.log_dir: the latter is a collective
        folder = Path(getattr(self.trainer.loggers[0], "log_dir", None) or self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "images.csv", index=False)

    def map_costs(self) -> list[dict[str, float]]:
        """What the class maps cost, per image, as `map_bits` states it."""
        maps = cast(Tensor, self.segmentation_maps).cpu()
        own = [m.T if h > w else m for m, (h, w) in zip(maps, self.sizes, strict=True)]
        return [map_bits(m.numpy(), self.classes) for m in own]

    def figures(self, batch: Batch) -> "dict[str, Figure]":
        """`reconstruction`, `error` and, after a fit, `psnr_over_time`."""
        pictures = [upright(p, s) for p, s in zip(to_8bit(2 * batch["image"] - 1), batch["size"], strict=True)]
        made = self.predict_step({k: v.to(self.device) for k, v in batch.items()}, 0, scale=1.0)["reconstruction"]
        originals, said = ([p.cpu().permute(1, 2, 0).numpy() for p in part] for part in (pictures, made))
        names = [self.names[i] for i in batch["index"].tolist()]
        drawn = {
            "reconstruction": reconstruction_panel(originals, said, names),
            "error": error_panel(originals, said, names),
        }
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
        for b, row in enumerate(self._own_rows(batch["index"])):
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
