"""Independent networks, one per image, stacked in one method and owned by ranks.

Every tensor of the stack has the image as its first axis. The networks share the steps of an optimizer that acts
element by element; nothing else couples them.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn
from torch.func import functional_call

from framework.compat import leave_to_ranks
from framework.distributed import is_distributed
from framework.errors import CheckpointError, ConfigError
from framework.method import BaseMethod, Batch, Split
from framework.metrics import ImagePSNR
from framework.protocols import HasImages
from models.levels_of_experts.images import Images, map_image_rows
from models.levels_of_experts.per_image import PerImage
from models.levels_of_experts.progress import Progress, best_or_last, fresh_progress
from models.levels_of_experts.state import UnaveragedState


class NetworkPerImage(UnaveragedState, BaseMethod):
    """A stack of networks, one for each image that this rank owns.

    A subclass builds the stack in `build_networks`, says in `table` what became of them, and in a training `step` sets
    `losses` and `good`, and `_total`, the sum of the losses.

    Args:
        plateau_patience: epochs without a new lowest loss after which an image's learning rate is multiplied by
            `plateau_factor`, image by image; None: never.
        plateau_factor: see `plateau_patience`.
        weights: what validate, test and predict use: the `last` iterate, or every image's `best` evaluated one.
        **training: the arguments of BaseMethod; the optimizer must act element by element (Adam, AdamW, SGD), or the
            images would influence each other.

    Attributes:
        images: of the run, and who owns them.
        network: the stack.
        best: a stack with every image's best evaluated weights; no parameters: nothing trains or averages them.
        progress: see `fresh_progress`, of this rank's images.
        history: (step, PSNR of all images in dB) of every evaluation in fit.
        losses: (own images,) float32, of the last training step; 0 for those that are not good.
        good: (own images,) bool, of the last training step: the loss is a loss.
    """

    plans_memory = False  # networks are made when the images are known, and take their pixels in parts
    unaveraged: tuple[str, ...] = ("best",)
    network: nn.Module
    best: nn.Module
    losses: Tensor
    good: Tensor

    def __init__(
        self,
        *,
        plateau_patience: int | None = None,
        plateau_factor: float = 0.5,
        weights: Literal["last", "best"] = "last",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.plateau_patience, self.plateau_factor, self.weights = plateau_patience, plateau_factor, weights
        self.images = Images()
        self.progress: Progress = {}
        self.history: list[tuple[int, list[float]]] = []
        self._total: Tensor | None = None
        self._best_given = self._progress_restored = False

    def build_networks(self, names: Sequence[str]) -> nn.Module:
        """A stack of fresh networks, whose tensors' first axis is the image, for images of these names."""
        raise NotImplementedError(f"{type(self).__name__} must override build_networks(names)")

    def operations(self) -> float:
        """Floating point operations of one product of a training step, which decide on the number of threads."""
        return float("inf")

    def table(self, values: Tensor) -> pd.DataFrame:
        """The table of all images, with these (images,) float64 PSNR in dB as their last; a collective."""
        raise NotImplementedError(f"{type(self).__name__} must override table(values)")

    def check_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        """Raises ConfigError when an image's [height, width] cannot be fitted."""

    # ------------------------------------------------------------------ images and their owners

    @property
    def names(self) -> list[str]:
        """Of all images of the run; empty before they are known."""
        return self.images.names

    @property
    def sizes(self) -> list[list[int]]:
        """[height, width] of all images."""
        return self.images.sizes

    def adapt(self, data: LightningDataModule | None) -> None:
        """Builds one network per image of the data module, and sees to it that images are treated one by one.

        Raises:
            ConfigError: no images are known, or they cannot be fitted. CheckpointError: the module holds the networks
            of other images.
        """
        if isinstance(data, HasImages):
            self.configure_images(data.image_names, data.image_sizes)
        elif self.names:
            self.configure_images(self.names, self.sizes)
        else:
            raise ConfigError(
                f"data: {type(self).__name__} needs a data module with image_names and image_sizes, got "
                f"{type(data).__name__}; or call model.configure_images(names, sizes) first"
            )
        if (trainer := self.attached_trainer) is not None:
            present: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            one_by_one = next((c for c in present if isinstance(c, PerImage)), PerImage())
            # Before averaging callbacks, which take the weights that were evaluated away at the evaluation's end.
            trainer.callbacks = [one_by_one, *(c for c in present if c is not one_by_one)]  # type: ignore[attr-defined]
            if self.device.type == "cpu":
                one_by_one.threads.take(self.operations())

    def configure_images(self, names: list[str], sizes: list[list[int]]) -> None:
        """Builds one network per image that this rank owns (image i belongs to rank i modulo their number).

        Args:
            names: of all images of the run.
            sizes: their [height, width].

        Raises:
            ConfigError: an image cannot be fitted, or there are more ranks than images.
            CheckpointError: the module already holds the networks of other images.
        """
        images = Images.dealt_out(names, sizes)
        if self.names:
            self.images.check_same(images)
            if self.images == images:
                return
            if self.images.world_size != 1:
                raise ConfigError(
                    "model: networks dealt out to several ranks cannot be dealt out anew; load a checkpoint"
                )
        self.check_sizes(sizes)
        if not images.own_names:
            raise ConfigError(
                f"trainer.devices: {images.world_size} processes for {len(names)} images; give fewer processes"
            )
        whole = {k: v for k, v in self.state_dict().items() if k.startswith(("network.", "best."))}
        self.images = images
        self.network = self.build_networks(images.own_names)
        self.keep_unaveraged("best", self.build_networks(images.own_names).requires_grad_(False))
        if whole:
            self._progress_restored = not self._best_given  # what is known of them stays
            nn.Module.load_state_dict(self, {k: images.own(v) for k, v in whole.items()}, strict=False)
        self.network.to(self.device), self.best.to(self.device)
        # What ranks own must be neither averaged nor made equal.
        leave_to_ranks(self, [n for n, _ in self.named_parameters()])
        if is_distributed():
            self.anchor = nn.Parameter(torch.zeros((), device=self.device))  # DDP refuses a module without parameters
        known = {name: images.own(rows).clone() for name, rows in self.progress.items()} if whole else {}
        self.progress = known or fresh_progress(len(images.own_names))

    def call_networks(self, networks: list[int] | None, *inputs: Any) -> Tensor:
        """The stack on its inputs, whose first axis is the image; of it only those rows, where they are given."""
        best = self._uses_best()
        stack = self.best if best else self.network
        parameters: dict[str, Tensor] = self.best_parameters() if best else {**dict(stack.named_parameters())}
        if networks is None or networks == list(range(len(next(iter(parameters.values()))))):
            return functional_call(stack, parameters, inputs) if best else stack(*inputs)
        return functional_call(stack, {name: p[networks] for name, p in parameters.items()}, inputs)

    def best_parameters(self) -> dict[str, Tensor]:
        """Every image's best weights by name; its last, and a warning, where no validation of a fit has chosen any."""
        figures = None if self._best_given else self.progress["best_psnr"]
        return best_or_last(self.best, self.network, figures, self.images.own_names)

    def unaveraged_loaded(self) -> None:
        """A state without the progress of a checkpoint does not say what was evaluated; its best weights hold."""
        self._best_given, self._progress_restored = not self._progress_restored, False

    def _uses_best(self) -> bool:
        fitting = self.attached_trainer is not None and self.attached_trainer.state.fn == "fit"
        return self.weights == "best" and not fitting

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs the mean over images, returns the sum: an image's gradient is that of a run of its own."""
        super().training_step(batch, batch_idx)
        total, self._total = self._total, None
        return cast(Tensor, total)

    def samples_in(self, batch: Batch) -> int:
        """Images."""
        return len(batch["index"])

    def psnr_per_image(self, split: Split) -> Tensor:
        """(images,) float64 dB of the epoch that ends; a collective."""
        metric = cast(ImagePSNR, cast(nn.ModuleDict, self.metrics[f"{split}_metrics"])["psnr"])
        metric.compute()
        return metric.per_image

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

    # ------------------------------------------------------------------ checkpoints: gathered, whoever owns what

    def gathered_progress(self) -> Progress:
        """Of all images, on the CPU; a collective."""
        return {name: self.images.gather(rows, self.device).cpu() for name, rows in self.progress.items()}

    def _store(self, checkpoint: dict[str, Any]) -> None:
        """Stores all images' networks and optimizer state, as one process would, and which images they are."""
        super()._store(checkpoint)
        state = checkpoint["state_dict"]
        state.update(self.unaveraged_state())  # under weight averaging the state is that of a copy, which has its own
        map_image_rows(checkpoint, len(self.images.own_names), lambda rows: self.images.gather(rows, self.device))
        for stored in (state, checkpoint.get("current_model_state", {})):
            stored.pop("anchor", None)
        checkpoint["images"] = {
            "names": self.names,
            "sizes": self.sizes,
            "history": self.history,
            "progress": self.gathered_progress(),
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes this rank's share of a checkpoint of any number of ranks.

        Raises:
            CheckpointError: a checkpoint of another class or of other images.
        """
        super()._restore(checkpoint)
        stored = checkpoint.get("images")
        if stored is None:
            raise CheckpointError("ckpt_path: the checkpoint says nothing of its images; it is not of LevelsOfExperts")
        if not self.names:
            self.configure_images(stored["names"], stored["sizes"])
        Images(list(stored["names"]), [list(size) for size in stored["sizes"]]).check_same(self.images)
        map_image_rows(checkpoint, len(self.names), self.images.own)
        if is_distributed():
            for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
                state["anchor"] = self.anchor.detach()
        self.progress = {name: self.images.own(rows).clone() for name, rows in stored["progress"].items()}
        self.history = [(step, list(values)) for step, values in stored["history"]]
        self._progress_restored = True
