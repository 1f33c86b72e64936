"""Edges, kernel positions or channels that leave in training, chosen by what the data make of them."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from callbacks.when import ChangesSplines, is_whole
from framework.checkpoints import WholeCheckpoints
from framework.compat import averaged_models
from framework.distributed import add_over_ranks, agreed_run_folder, gather_lists, say
from framework.errors import ConfigError, few
from framework.nn import SplineLayer, SplineMoments, observe, spline_layers
from framework.nn.splines.optimizer import stop_momentum, trained_by
from framework.nn.splines.pruning import (
    Granularity,
    Score,
    add_group_lasso_gradient,
    choose_edges,
    edge_scores,
)
from framework.outputs import free_path
from framework.protocols import GroupsChannels, Shrinks


class SplinePruning(ChangesSplines):
    """Prunes spline edges at the start of chosen epochs; the epochs after are the fine-tuning.

    Scores come from the moments of the layers' inputs over the first batches of the epoch before, summed over ranks, so
    that every rank prunes the same edges. A removed edge's mean moves into a surviving edge, its momentum stops.
    Logged: `prune/removed` (share of all edges), `prune/function_change` (share of the edges' standard deviation, as a
    root of summed squares, that went), `prune/live_parameters`. A layer that had no input is named and stays as it is.

    Args:
        epochs: at whose start edges go; the share removed rises evenly to `fraction` over them.
        fraction: share of all edges that is gone in the end.
        granularity: `edge`; `kernel`: positions of a layer's kernel; `channel`: input channels of a layer.
        score: `share` of its output's variance, or `strength`, the standard deviation itself.
        sparsity: weight of a group lasso on the edges' standard deviations, from the second epoch on.
        calibration_batches: batches per epoch and rank that are looked at.
        structural: write `checkpoints/shrunk.ckpt`, a smaller network without what is dead, at the end of fit.

    Raises:
        ConfigError: arguments out of range; at the start of fit: no spline layer, or a module that cannot shrink.
    """

    def __init__(
        self,
        epochs: list[int],
        fraction: float = 0.5,
        granularity: Granularity = "edge",
        score: Score = "share",
        sparsity: float = 0.0,
        calibration_batches: int = 8,
        structural: bool = False,
    ) -> None:
        if not epochs or len(set(epochs)) != len(epochs) or not all(is_whole(e, 1) for e in epochs):
            raise ConfigError(
                "SplinePruning.epochs: expected different epochs, 1 or more (the epoch before is observed), got "
                f"{epochs}"
            )
        if not 0 < fraction < 1:
            raise ConfigError(
                f"SplinePruning.fraction: expected a share between 0 and 1, got {fraction}; 1 would remove everything"
            )
        if granularity not in ("edge", "kernel", "channel"):
            raise ConfigError(f"SplinePruning.granularity: expected edge, kernel or channel, got {granularity!r}")
        if score not in ("share", "strength"):
            raise ConfigError(f"SplinePruning.score: expected share or strength, got {score!r}")
        if sparsity < 0 or not is_whole(calibration_batches, 1):
            raise ConfigError(
                f"SplinePruning.sparsity, calibration_batches: expected at least 0 and 1, got {sparsity} and "
                f"{calibration_batches}"
            )
        self.epochs = sorted(epochs)
        self.fraction, self.granularity, self.score = fraction, granularity, score
        self.sparsity, self.calibration_batches, self.structural = sparsity, calibration_batches, structural
        self._watch = ExitStack()
        self._begin()

    def _begin(self) -> None:
        self.done: list[int] = []
        self._moments: dict[str, SplineMoments] = {}
        self._seen: dict[str, SplineMoments] = {}
        self._watched = 0

    def _check(self, pl_module: LightningModule) -> None:
        if not spline_layers(pl_module):
            raise ConfigError(
                f"SplinePruning: {type(pl_module).__name__} has no framework.nn spline layer; take the callback out of "
                "trainer.callbacks or use KANConv2d, KANConvTranspose2d or KANLinear"
            )
        for layer in spline_layers(pl_module).values():
            layer.own_parameters()
        if self.structural and not isinstance(pl_module, Shrinks):
            raise ConfigError(
                f"SplinePruning.structural: {type(pl_module).__name__} has no method shrunk(); add one, or give "
                "structural: false"
            )

    # ------------------------------------------------------------------ looking

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Observes the first batches of an epoch whose moments will be asked for."""
        if batch_idx == 0:
            self._seen, self._watched = {}, 0
        if self._watched < self.calibration_batches and self._needed(trainer):
            self._watched += 1
            # compiled code does not call hooks
            self._watch.enter_context(torch.compiler.set_stance("force_eager"))
            self._watch.enter_context(observe(spline_layers(pl_module), self._seen))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops observing."""
        self._watch.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves no hooks behind."""
        self._watch.close()

    def _needed(self, trainer: Trainer) -> bool:
        return self.sparsity > 0 or any(e not in self.done and e <= trainer.current_epoch + 1 for e in self.epochs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums the moments over ranks."""
        if not self._needed(trainer):
            self._moments = {}
            return
        names = set(gather_lists(sorted(self._seen)))  # a layer may have had input on some ranks only
        layers = {name: layer for name, layer in spline_layers(pl_module).items() if name in names}
        moments = {n: self._seen.get(n) or SplineMoments.empty(x, x.in_channels) for n, x in layers.items()}
        add_over_ranks((t for sums in moments.values() for t in sums.tensors().values()), pl_module.device)
        if moments or not self._moments:
            self._moments = moments

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the group lasso's gradient, which is the same on every rank."""
        if self.sparsity > 0:
            trained = trained_by(optimizer)
            for name, layer in spline_layers(pl_module).items():
                if self._fits(name, layer) and id(layer.coefficients) in trained:
                    covariance = self._moments[name].covariance().to(layer.coefficients)
                    add_group_lasso_gradient(layer, covariance, self.sparsity)

    def _fits(self, name: str, layer: SplineLayer) -> bool:
        seen = self._moments.get(name)
        return seen is not None and seen.first.shape[-1] == layer.basis + (layer.base is not None)

    # ------------------------------------------------------------------ pruning

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes where it is due; a grid that has just grown is observed for one epoch first."""
        due = [e for e in self.epochs if e <= trainer.current_epoch and e not in self.done]
        known = {name: layer for name, layer in spline_layers(pl_module).items() if name in self._moments}
        if due and known and all(self._fits(name, layer) for name, layer in known.items()):
            self.done += due
            self.prune(trainer, pl_module, self.fraction * len(self.done) / len(self.epochs))
        elif due and not known:
            say(f"SplinePruning: no spline layer had input in epoch {trainer.current_epoch - 1}; nothing is pruned")

    def prune(self, trainer: Trainer, pl_module: LightningModule, fraction: float) -> None:
        """The event itself: brings the removed share of all edges of layers that had input to `fraction`."""
        every = spline_layers(pl_module)
        layers = {name: layer for name, layer in every.items() if name in self._moments}
        if unseen := [name for name in every if name not in layers]:
            say(f"SplinePruning: {few(unseen)} had no input in epoch {trainer.current_epoch - 1} and stay as they are")
        scores = edge_scores(layers, self._moments, self.score)
        groups = pl_module.channel_groups() if isinstance(pl_module, GroupsChannels) else None
        if groups is not None:
            inside = {id(layer) for layer in layers.values()}
            groups = [group for group in groups if all(id(layer) in inside for layer, _ in group)]
        keep = choose_edges(layers, scores, fraction, self.granularity, groups)
        change = self._lost(layers, keep)
        copies = [spline_layers(copy) for copy in averaged_models(trainer)]
        for name, layer in layers.items():
            layer.prune_edges(keep[name], self._moments[name])
            for optimizer in trainer.optimizers:
                stop_momentum(optimizer, layer)
            for copy in copies:
                copy[name].prune_edges(keep[name], self._moments[name])
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()
        edges = sum(layer.mask.numel() for layer in every.values())
        removed = 1 - sum(int(layer.live.sum()) for layer in every.values()) / edges
        live = sum(layer.live_parameters() for layer in every.values())
        for logger in trainer.loggers:
            figures = {"prune/removed": removed, "prune/function_change": change, "prune/live_parameters": float(live)}
            logger.log_metrics(figures, step=trainer.global_step)
        say(
            f"epoch {trainer.current_epoch}: {removed:.1%} of {edges} edges pruned ({change:.1%} of their deviation), "
            f"{live} live spline parameters"
        )

    def _lost(self, layers: Mapping[str, SplineLayer], keep: Mapping[str, torch.Tensor]) -> float:
        gone, total = 0.0, 0.0
        for name, layer in layers.items():
            energy = layer.edge_strength(self._moments[name]).square().cpu()
            gone += float(energy[layer.live.cpu() & ~keep[name]].sum())
            total += float(energy.sum())
        return (gone / max(total, 1e-300)) ** 0.5

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the smaller network."""
        if not self.structural or not isinstance(pl_module, Shrinks) or getattr(trainer, "fast_dev_run", False):
            return
        folder = agreed_run_folder(trainer) / "checkpoints"
        if not trainer.is_global_zero:
            return
        smaller = pl_module.shrunk()
        checkpoint: dict[str, Any] = {
            "state_dict": smaller.state_dict(),
            "hyper_parameters": dict(smaller.hparams),
            "pytorch-lightning_version": lightning.__version__,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
        }
        smaller.on_save_checkpoint(checkpoint)
        path = free_path(folder / "shrunk.ckpt")
        WholeCheckpoints().save_checkpoint(checkpoint, path)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (pl_module, smaller))
        say(f"smaller network: {after} of {before} allocated parameters, {path}")

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What has been pruned, and the moments the next event needs."""
        return {"done": list(self.done), "moments": {name: m.tensors() for name, m in self._moments.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.done = list(state_dict["done"])
        self._moments = {name: SplineMoments.from_tensors(t) for name, t in state_dict["moments"].items()}
