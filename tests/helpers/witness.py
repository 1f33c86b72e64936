"""A callback for tests of several processes: every rank writes down what it holds at the end of every epoch."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.distributed import checksum


class Witness(Callback):
    """Appends `EPOCH CHECKSUM` of the parameters to `rank{N}.txt` in the working directory."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {name: value.detach() for name, value in pl_module.named_parameters()}
        with Path(f"rank{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.current_epoch} {checksum(weights)}\n")


def witnessed(folder: Path = Path(), ranks: int = 2) -> list[list[str]]:
    """The lines of every rank."""
    return [(folder / f"rank{rank}.txt").read_text().splitlines() for rank in range(ranks)]
