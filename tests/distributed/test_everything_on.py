"""Two processes with all that a user has on: progress bar, loggers, checkpoints, figures, every shipped callback."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from framework.configs import config_names
from framework.lifecycle import FIRST, LAST
from framework.method import BaseMethod
from tests.helpers.witness import witnessed
from tests.test_contracts import Line, PointsData

QUICKSTARTS = [name for name, _ in config_names() if name.endswith("quickstart")]
PAIR = ["--trainer.strategy=ddp_fork", "--trainer.devices=2", "--trainer.accelerator=cpu"]
TWO_EPOCHS = ["-c", "trainer/debug", "--trainer.max_epochs=2"]
WITNESS = "--trainer.callbacks+=tests.helpers.witness.Witness"

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_quickstarts_end_with_equal_weights_and_every_file(run, name) -> None:
    cli = run("fit", "-c", name, *TWO_EPOCHS, *PAIR, WITNESS)
    first, second = witnessed()
    assert len(first) == len(second) == 2
    if name != "levels_of_experts/quickstart":  # there every rank owns other pictures
        assert first == second
    folder = Path(cli.trainer.log_dir)
    assert {"best.ckpt", "last.ckpt"} <= {p.name for p in (folder / "checkpoints").iterdir()}
    assert list((folder / "figures").glob("*.png"))
    assert list(folder.glob("events.out.tfevents.*"))
    log = pd.read_csv(folder / "metrics.csv")
    assert log["train/loss"].notna().sum() == log["val/loss"].notna().sum() == 2


class GathersItself(Callback):
    """Somebody's callback: a collective at the end of every epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dist.barrier()
        pl_module.log("mine", float(trainer.global_rank), sync_dist=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dist.barrier()


class CollectiveAtEpochEnd(Line):
    """Somebody's method: its hooks gather, and its own callbacks do not call super()."""

    def configure_callbacks(self):
        return GathersItself()

    def on_train_epoch_end(self) -> None:
        dist.all_reduce(torch.zeros(3))

    def on_validation_epoch_end(self) -> None:
        dist.all_reduce(torch.zeros(3))


class PlainModule(LightningModule):
    """Not ours at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.mean = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch["image"]) - batch["label"]).square().mean()
        self.mean.update(loss.detach())
        self.log("train/loss", self.mean, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        dist.all_reduce(torch.zeros(3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        data = PointsData(batch_size=2)
        data.setup("fit")
        return DataLoader(data.datasets["train"], batch_size=2)


class PlainData(PointsData):
    """No validation, so that the epoch's end is the training's."""

    def val_dataloader(self):
        return []


def test_a_users_collectives_at_an_epochs_end_meet_under_a_plain_trainer(tmp_path) -> None:
    trainer = Trainer(accelerator="cpu", strategy="ddp_fork", devices=2, max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(CollectiveAtEpochEnd(), PointsData(batch_size=2))
    assert trainer.state.finished


def test_a_module_that_is_not_ours_ends_too(run) -> None:
    cli = run("fit", f"--model={__name__}.PlainModule", f"--data={__name__}.PlainData", *TWO_EPOCHS, *PAIR)
    assert cli.trainer.state.finished


def test_contracts_cannot_be_overridden_away() -> None:
    class Own(BaseMethod):
        def configure_callbacks(self):
            return []

    class Deeper(Own):
        def configure_callbacks(self):
            return [*super().configure_callbacks(), GathersItself()]

    assert [type(c) for c in Own().configure_callbacks()] == [*FIRST, *LAST]
    assert [type(c) for c in Deeper().configure_callbacks()] == [*FIRST, *LAST, GathersItself]
