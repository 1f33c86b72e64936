"""Grids that grow in training, exactly: the network's function stays the same at the event, its freedom does not."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.when import ChangesSplines, is_whole
from framework.compat import averaged_models, figures_of_this_loop
from framework.distributed import say
from framework.errors import ConfigError
from framework.nn import SplineLayer, spline_layers
from framework.nn.splines.optimizer import carry_moments, check_optimizers, rescale_groups, rescale_scheduler


class GridExtension(ChangesSplines):
    """Cuts every grid cell of every spline layer into `factor` at the start of chosen epochs.

    The event is one linear map of each layer's coefficients, the same on every rank; the optimizer's moments and
    averaged copies of the model go through it too. It is logged as `grid/size`, `grid/function_change` (the largest
    change of a spline relative to the layer's largest value, about 1e-7) and `grid/live_parameters`.

    Args:
        milestones: epochs at whose start the grids grow.
        monitor: instead of milestones, a logged figure: the grids grow when it has stopped improving.
        mode: whether `monitor` is to be small (`min`) or large (`max`).
        patience: epochs without improvement before the grids grow.
        min_delta: what counts as an improvement.
        factor: new cells per cell.
        maximum: the largest grid to reach; None: what the layers have room for (needed room is checked for milestones).

    Raises:
        ConfigError: arguments that do not go together; at the start of fit: no spline layer, no room, an optimizer
            whose moments cannot be carried over.
    """

    def __init__(
        self,
        milestones: list[int] | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        factor: int = 2,
        maximum: int | None = None,
    ) -> None:
        if (milestones is None) == (monitor is None):
            raise ConfigError("GridExtension: give either milestones (epochs) or monitor (a logged figure)")
        if mode not in ("min", "max"):
            raise ConfigError(f"GridExtension.mode: expected min or max, got {mode!r}")
        whole = milestones is None or all(is_whole(m, 0) for m in milestones)
        if milestones is not None and (not whole or len(set(milestones)) != len(milestones)):
            raise ConfigError(f"GridExtension.milestones: expected different epochs, 0 or more, got {milestones}")
        for name, value, least in (("factor", factor, 2), ("patience", patience, 1), ("maximum", maximum, 1)):
            if not is_whole(value, least) and not (name == "maximum" and value is None):
                raise ConfigError(f"GridExtension.{name}: expected a whole number, at least {least}, got {value}")
        self.milestones = sorted(milestones or [])
        self.monitor, self.mode, self.patience, self.min_delta = monitor, mode, patience, min_delta
        self.factor, self.maximum = factor, maximum
        self._begin()

    def _begin(self) -> None:
        self.done: list[int] = []
        self._best: float | None = None
        self._waited = 0
        self._due = False
        self._validated = False
        self._of_validation: set[str] = set()

    # ------------------------------------------------------------------ checks

    def _check(self, pl_module: LightningModule) -> None:
        layers = spline_layers(pl_module)
        if not layers:
            raise ConfigError(
                f"GridExtension: {type(pl_module).__name__} has no framework.nn spline layer; take the callback out of "
                "trainer.callbacks or use KANConv2d, KANConvTranspose2d or KANLinear"
            )
        for layer in layers.values():
            layer.own_parameters()
        self._check_reachable(layers)
        events = len([m for m in self.milestones if m not in self.done])
        short = {}
        for name, layer in layers.items():
            steps = events
            if self.maximum is not None:
                steps = min(steps, self._steps_to(layer.grid_size, self.maximum)) if self.milestones else steps
            needed = layer.grid_size * self.factor**steps if self.milestones else (self.maximum or 0)
            if layer.max_grid_size < needed:
                short[name] = needed
        if short:
            lines = ", ".join(f"{name} (room for {layers[name].max_grid_size}, needs {n})" for name, n in short.items())
            raise ConfigError(
                f"GridExtension: these layers have no room: {lines}; add `max_grid_size: {max(short.values())}` to the "
                "model's init_args"
            )

    def _check_reachable(self, layers: dict[str, SplineLayer]) -> None:
        if self.maximum is None:
            return
        largest = max(layer.grid_size for layer in layers.values())
        sizes = [largest * self.factor**k for k in range(self._steps_to(largest, self.maximum) + 1)]
        if self.maximum not in sizes:
            raise ConfigError(
                f"GridExtension.maximum: {self.maximum} cannot be reached from {largest} cells by factors of "
                f"{self.factor}; the reachable sizes are {', '.join(map(str, [*sizes, sizes[-1] * self.factor]))}"
            )

    def _steps_to(self, size: int, maximum: int) -> int:
        steps = 0
        while size * self.factor ** (steps + 1) <= maximum:
            steps += 1
        return steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses optimizers whose state is not known."""
        check_optimizers(trainer.optimizers, spline_layers(pl_module).values())

    # ------------------------------------------------------------------ when

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Extends where this epoch is a milestone, or the monitored figure has stopped improving."""
        epoch = trainer.current_epoch
        if epoch in self.done:  # the epoch starts again after an interruption
            return
        if (epoch in self.milestones or self._due) and self._room_left(pl_module):
            self.extend(trainer, pl_module)
            self.done.append(epoch)
        self._due = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watches the monitored figure; decided on rank 0 for all."""
        validated, self._validated = self._validated, False
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            if validated or not trainer.enable_validation or trainer.limit_val_batches == 0:
                known = ", ".join(sorted(trainer.callback_metrics))
                raise ConfigError(f"GridExtension.monitor: {self.monitor!r} is not logged; there are {known}")
            return  # the first validation is still to come
        if self.monitor in self._of_validation and not validated:
            return  # an old figure
        value = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        value = value if self.mode == "min" else -value
        if self._best is None or value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            self._due, self._waited = True, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers which figures are validation's, and that they are fresh."""
        if not trainer.sanity_checking:
            self._validated = True
            self._of_validation |= set(figures_of_this_loop(trainer))

    def _room_left(self, module: nn.Module) -> bool:
        layers = spline_layers(module).values()
        below = self.maximum is None or max(x.grid_size for x in layers) * self.factor <= self.maximum
        return below and all(x.grid_size * self.factor <= x.max_grid_size for x in layers)

    # ------------------------------------------------------------------ what

    def extend(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The event itself."""
        layers = spline_layers(pl_module)
        change = 0.0
        for layer in layers.values():
            before = _sampled(layer)
            matrix = layer.extend_grid(self.factor)
            for optimizer in trainer.optimizers:
                carry_moments(optimizer, layer, matrix, self.factor)
            change = max(change, float((_sampled(layer) - before).abs().max() / before.abs().max().clamp_min(1e-30)))
        for copy in averaged_models(trainer):
            for layer in spline_layers(copy).values():
                layer.extend_grid(self.factor)
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()
            for note in rescale_groups(optimizer, layers.values(), self.factor):
                say(f"GridExtension: {note}")
        for config in trainer.lr_scheduler_configs:
            rescale_scheduler(config.scheduler, layers.values(), self.factor)
        sizes = sorted({layer.grid_size for layer in layers.values()})
        live = sum(layer.live_parameters() for layer in layers.values())
        for logger in trainer.loggers:
            figures = {"grid/size": max(sizes), "grid/function_change": change, "grid/live_parameters": live}
            logger.log_metrics({k: float(v) for k, v in figures.items()}, step=trainer.global_step)
        say(
            f"epoch {trainer.current_epoch}: grids extended to {', '.join(map(str, sizes))} cells; splines changed by "
            f"{change:.1e} of their size; {live} live spline parameters"
        )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What has been done and seen, in plain types."""
        return {"done": list(self.done), "best": self._best, "waited": self._waited, "due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.done = list(state_dict["done"])
        self._best, self._waited, self._due = state_dict["best"], state_dict["waited"], state_dict["due"]


def _sampled(layer: SplineLayer) -> Tensor:
    """The splines of up to 4096 edges at points on and beside the grid."""
    half = (layer.grid.high - layer.grid.low) / 2
    points = torch.linspace(layer.grid.low - half, layer.grid.high + half, 65, device=layer.coefficients.device)
    with torch.no_grad():
        return layer.edge_values(points).flatten(1)[:, :4096]
