"""Everything that is decided image by image in a run, so that an image beside others fares as it would alone."""

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from framework.distributed import is_distributed
from framework.errors import DivergenceError, few
from framework.method import LOSS_CHECK_EVERY
from framework.threads import Threads
from models.levels_of_experts.progress import note_best, note_epoch
from models.levels_of_experts.table import write_table

if TYPE_CHECKING:
    from models.levels_of_experts.stacked import NetworkPerImage


class PerImage(Callback):
    """Learning rate, plateau, divergence, best weights, threads and table of a NetworkPerImage.

    The method brings it with it; a callback, so that a subclass that overrides Lightning's hooks keeps all of it.
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._epoch_losses: Tensor | float = 0.0
        self._before: list[Tensor] = []
        self._on_device: tuple[Tensor, Tensor, Tensor] | None = None
        self.threads = Threads()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As teardown."""
        self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks off the optimizer, and gives the threads back."""
        self.threads.give_back()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._on_device = [], None

    # ------------------------------------------------------------------ steps

    def on_train_start(self, trainer: Trainer, pl_module: "NetworkPerImage") -> None:  # type: ignore[override]
        """Stands around the optimizer's steps; DDP has nothing to reduce."""
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.require_backward_grad_sync = False
        for optimizer in trainer.optimizers:
            self._hooks += [
                optimizer.register_step_pre_hook(functools.partial(self._before_step, pl_module)),
                optimizer.register_step_post_hook(functools.partial(self._after_step, pl_module)),
            ]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the epoch's losses."""
        self._epoch_losses = 0.0

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "NetworkPerImage", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the images' losses, and looks for diverged ones where a gradient scaler has left the step out."""
        self._epoch_losses = self._epoch_losses + pl_module.losses
        self._freeze_diverged(pl_module, None)

    def _before_step(self, module: "NetworkPerImage", optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        slowed, _ = self._rates(module)
        self._before = [p.detach()[slowed] for p in module.network.parameters()] if len(slowed) else []

    def _after_step(self, module: "NetworkPerImage", optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Scales the step image by image; exact for optimizers whose update is proportional to the learning rate."""
        slowed, factor = self._rates(module)
        with torch.no_grad():
            for parameter, old in zip(module.network.parameters(), self._before, strict=False):
                rate = factor.view(-1, *[1] * (old.dim() - 1))
                parameter[slowed] = torch.where(rate == 0, old, old + rate * (parameter[slowed] - old))
        self._before = []
        self._freeze_diverged(module, optimizer)

    def _rates(self, module: "NetworkPerImage") -> tuple[Tensor, Tensor]:
        """Images whose rate is not the optimizer's, and their factors; copied to the device when one changes only."""
        factors = module.progress["learning_rate_factor"]
        if self._on_device is None or not torch.equal(self._on_device[0], factors):
            slowed = (factors != 1).nonzero().flatten()
            self._on_device = (factors.clone(), slowed.to(module.device), factors[slowed].to(module.device))
        return self._on_device[1:]

    # ------------------------------------------------------------------ divergence

    def _freeze_diverged(self, module: "NetworkPerImage", optimizer: Optimizer | None) -> None:
        if module.good.is_cuda and module.global_step % LOSS_CHECK_EVERY:
            return  # reading the values waits for the device
        diverged = ~module.good.cpu() & (module.progress["diverged_step"] < 0)
        if diverged.any():
            self._freeze(module, diverged.nonzero().flatten(), optimizer or module.trainer.optimizers[0])

    def _freeze(self, module: "NetworkPerImage", rows: Tensor, optimizer: Optimizer) -> None:
        """Puts diverged images back to their best weights and keeps them there."""
        module.progress["learning_rate_factor"][rows] = 0
        module.progress["diverged_step"][rows] = module.global_step
        with torch.no_grad():
            for parameter, best in zip(module.network.parameters(), module.best.parameters(), strict=True):
                parameter[rows] = best[rows]
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[rows] = 0
        names = [module.images.own_names[row] for row in rows.tolist()]
        warnings.warn(  # on the rank that owns them, not on the first alone
            f"{few(names)} diverged at step {module.global_step} and stays at its best weights; the other images go "
            "on. Lower the learning rate (model.optimizer.init_args.lr).",
            stacklevel=2,
        )
        if not is_distributed():
            _stop_if_all_diverged(module.trainer, module.progress["diverged_step"])

    # ------------------------------------------------------------------ epochs

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: "NetworkPerImage") -> None:  # type: ignore[override]
        """Keeps every image's best weights and records its PSNR."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        values = pl_module.psnr_per_image("val").cpu()
        pl_module.history.append((trainer.global_step, values.tolist()))
        better = note_best(pl_module.progress, pl_module.images.own(values), trainer.global_step)
        with torch.no_grad():
            for best, parameter in zip(pl_module.best.parameters(), pl_module.network.parameters(), strict=True):
                best[better] = parameter[better]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: "NetworkPerImage") -> None:  # type: ignore[override]
        """Slows images on a plateau; stops when all have diverged."""
        if pl_module.plateau_patience is not None and isinstance(self._epoch_losses, Tensor):
            losses = self._epoch_losses.cpu()
            note_epoch(pl_module.progress, losses, pl_module.plateau_patience, pl_module.plateau_factor)
        if is_distributed():
            diverged = pl_module.progress["diverged_step"]
            _stop_if_all_diverged(trainer, pl_module.images.gather(diverged, pl_module.device))

    # ------------------------------------------------------------------ results

    def on_train_end(self, trainer: Trainer, pl_module: "NetworkPerImage") -> None:  # type: ignore[override]
        """Writes `images.csv`, the table of all images."""
        if pl_module.history:
            self._write_table(trainer, pl_module, torch.tensor(pl_module.history[-1][1], dtype=torch.float64))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: "NetworkPerImage") -> None:  # type: ignore[override]
        """Writes `images.csv`."""
        self._write_table(trainer, pl_module, pl_module.psnr_per_image("test"))

    def _write_table(self, trainer: Trainer, module: "NetworkPerImage", values: Tensor) -> None:
        table = module.table(values)  # gathers, so on every rank
        if trainer.is_global_zero:
            write_table(trainer, table)


def _stop_if_all_diverged(trainer: Trainer, diverged_step: Tensor) -> None:
    if (diverged_step >= 0).all():
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        kept = f"the last good checkpoint is {best}" if best else "no checkpoint had been written yet"
        raise DivergenceError(
            f"all {len(diverged_step)} images diverged, the last at step {int(diverged_step.max())}; {kept}; "
            "lower the learning rate (model.optimizer.init_args.lr)"
        )
