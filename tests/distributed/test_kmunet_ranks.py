"""Two processes: grids and masks stay the same on both, and the figures are those of one process."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import GridExtension
from datamodules import CellsDataModule
from framework.distributed import checksum
from framework.nn import spline_layers
from models import KMUNet
from tests.kmunet_words import TINY_KMUNET

WITNESS = '''
from pathlib import Path
from lightning.pytorch import Callback
from framework.distributed import checksum

class Witness(Callback):
    """Writes what every rank holds at the end of every epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        optimizer = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i}.{k}": v for i, s in optimizer.items() for k, v in s.items() if k != "step"}
        weights = {k: v for k, v in pl_module.state_dict().items() if "running" not in k}
        line = f"{trainer.current_epoch} {checksum({**weights, **moments})}"
        with Path(trainer.default_root_dir, f"rank{trainer.global_rank}.txt").open("a") as file:
            file.write(line + "\\n")
'''
CALLBACKS = (
    "[{class_path: GridExtension, init_args: {milestones: [1]}}, {class_path: SplinePruning, init_args: {epochs: [3], "
    "fraction: 0.5, sparsity: 1.0e-4}}, {class_path: witness.Witness}]"
)
FORKED = ["--trainer.strategy=ddp_fork", "--trainer.devices=2"]


@pytest.fixture
def fit(run, tmp_path):
    """`fit(folder, epochs, ...)`: two forked ranks; the last weights. No logger, so no figures are drawn."""
    (tmp_path / "witness.py").write_text(WITNESS)

    def call(folder: str, epochs: int, *words: str) -> dict[str, torch.Tensor]:
        run("fit", *TINY_KMUNET, "--trainer.callbacks", CALLBACKS, *FORKED, "--trainer.logger=false", *words,
            f"--trainer.default_root_dir={folder}", f"--trainer.max_epochs={epochs}")  # fmt: skip
        return torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)["state_dict"]

    return call


def test_two_ranks_extend_and_prune_alike(fit) -> None:
    weights = fit("whole", 5)
    ranks = [Path(f"whole/rank{r}.txt").read_text().splitlines() for r in (0, 1)]
    assert len(ranks[0]) == 5
    assert ranks[0] == ranks[1]
    name = "network.units.down_1_b.conv"
    assert weights[f"{name}._extra_state"][0] == 10
    masks = [value for key, value in weights.items() if key.endswith("mask")]
    assert sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3], ids=["before the extension", "before the pruning"])
def test_two_ranks_resume_exactly(fit, stop) -> None:
    whole = fit("whole", 5)
    fit("half", stop)
    rest = fit("rest", 5, "--ckpt_path", "half/checkpoints/last.ckpt")
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


class Measured(GridExtension):
    """Writes, on every rank, how far each extension moved the logits and what the rank holds after it."""

    def extend(self, trainer: Trainer, pl_module: KMUNet) -> None:
        before = logits(pl_module)
        super().extend(trainer, pl_module)
        moved = float((logits(pl_module) - before).abs().max() / before.abs().max())
        sizes = {layer.grid_size for layer in spline_layers(pl_module).values()}
        weights = checksum({k: v for k, v in pl_module.state_dict().items() if "running" not in k})
        with Path(trainer.default_root_dir, f"rank{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{sizes} {moved} {weights}\n")


def logits(model: KMUNet) -> torch.Tensor:
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        y = model(x)
    model.train()
    return y


def test_every_doubling_from_5_to_40_leaves_the_logits_on_both_ranks(tmp_path) -> None:
    torch.manual_seed(0)
    model = KMUNet(num_classes=3, width=4, stages=2, max_grid_size=40)
    with torch.no_grad():
        for layer in spline_layers(model).values():
            layer.coefficients[: layer.basis] += 0.1 * torch.randn_like(layer.coefficients[: layer.basis])
    trainer = Trainer(
        accelerator="cpu", strategy="ddp_fork", devices=2, max_epochs=4, callbacks=[Measured(milestones=[1, 2, 3])],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, CellsDataModule(images=8, side=32, batch_size=2))
    first, second = ([line.split() for line in (tmp_path / f"rank{r}.txt").open()] for r in (0, 1))
    assert [sizes for sizes, _, _ in first] == ["{10}", "{20}", "{40}"]
    assert all(float(moved) <= 1e-5 for _, moved, _ in first + second)
    assert [weights for _, _, weights in first] == [weights for _, _, weights in second]
    assert len({weights for _, _, weights in first}) == 3


def test_the_figures_are_those_of_one_process(run) -> None:
    # seeded, untrained: the weights are the same in every process; five test images: the ranks hold three and two
    words = ["test", *TINY_KMUNET, "--trainer.callbacks", "[]", "--trainer.logger=false", "--data.images=20"]
    one, two = (run(*words, *extra).trainer.callback_metrics for extra in ([], FORKED))
    assert set(one) == set(two)
    assert len(one) == 9
    for name, value in one.items():
        if name == "test/loss":
            assert float(two[name]) == pytest.approx(float(value), rel=1e-6)
        else:
            assert float(two[name]) == float(value)
