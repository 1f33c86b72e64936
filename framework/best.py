"""`best` stays the best over resumptions."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from framework.checkpoints import load_checkpoint, written_whole
from framework.errors import CheckpointError


class BestSoFar(Callback):
    """Lets a resumed run know the best figure so far, and keep its file.

    Lightning forgets the figure when the folder changes, so that the first figure of the resumed run would be its best.
    This holds for every ModelCheckpoint that keeps the one best of a monitored figure. The file is looked for beside
    the checkpoint that is resumed: a path in a checkpoint is nobody's word.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers what the checkpoint's callbacks knew."""
        self._states = checkpoint.get("callbacks") or {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands it to this run's callbacks, and copies the file into their folder."""
        states, self._states = self._states, {}
        if not states or not trainer.ckpt_path or "://" in str(trainer.ckpt_path):
            return
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint) and keeper.monitor is not None and keeper.save_top_k == 1:
                found = None
                if trainer.is_global_zero:
                    found = _taken_over(keeper, states, Path(trainer.ckpt_path).parent)
                set_best(keeper, trainer.strategy.broadcast(found))


def _taken_over(keeper: ModelCheckpoint, states: dict[str, Any], folder: Path) -> tuple[str, float] | None:
    """Path and figure of the best file so far, copied into the keeper's folder; None where there is none."""
    known = _state_of(keeper, states)
    if known is None:
        return None
    path = folder / Path(known["best_model_path"]).name
    try:
        own = _state_of(keeper, load_checkpoint(path).get("callbacks") or {})
        if own is None:
            raise CheckpointError(f"{path} does not say how good it is")
    except CheckpointError as error:
        rank_zero_info(f"The best checkpoint so far is not there ({error}): `best` starts anew.")
        return None
    target = Path(str(keeper.dirpath), path.name)
    if not (target.exists() and target.samefile(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, written_whole(target) as copy:
            shutil.copyfileobj(source, copy)
    # The file's own figure: after a kill the file may be newer than what was resumed.
    return str(target), float(own["best_model_score"])


def _state_of(keeper: ModelCheckpoint, states: dict[str, Any]) -> dict[str, Any] | None:
    alike = [states.get(keeper.state_key), *(state for key, state in states.items() if "Checkpoint" in str(key))]
    for state in alike:
        if not isinstance(state, dict) or state.get("monitor") != keeper.monitor:
            continue
        if isinstance(state.get("best_model_score"), torch.Tensor) and state.get("best_model_path"):
            return state
    return None


def set_best(keeper: ModelCheckpoint, found: tuple[str, float] | None) -> None:
    """Lets a keeper take the file at this path, of this figure, for its best so far; None: it has none."""
    if found is None:
        worst = torch.tensor(torch.inf if keeper.mode == "min" else -torch.inf)
        keeper.best_model_path, keeper.best_model_score = "", None
        keeper.best_k_models, keeper.kth_best_model_path, keeper.kth_value = {}, "", worst
        return
    path, score = found[0], torch.tensor(found[1])
    keeper.best_model_path, keeper.best_model_score = path, score
    keeper.best_k_models, keeper.kth_best_model_path, keeper.kth_value = {path: score}, path, score
