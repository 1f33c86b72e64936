"""Two processes: grids and masks stay the same on both, and the figures are those of one process."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from framework.nn import spline_layers
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
FORKED = ["--trainer.strategy=ddp_fork", "--trainer.devices=2", "--trainer.default_root_dir=."]


@pytest.fixture
def fit(run, tmp_path):
    (tmp_path / "witness.py").write_text(WITNESS)

    def call(*words: str):
        return run("fit", *TINY_KMUNET, "--trainer.callbacks", CALLBACKS, *FORKED, *words)

    return call


def test_two_ranks_extend_prune_and_resume_alike(fit) -> None:
    fit("--trainer.max_epochs=5", "--name=whole")
    ranks = [Path(f"rank{r}.txt").read_text().splitlines() for r in (0, 1)]
    assert len(ranks[0]) == 5
    assert ranks[0] == ranks[1]
    log = pd.read_csv("whole/version_0/metrics.csv")
    assert log["grid/function_change"].dropna().item() < 1e-5
    assert log["prune/removed"].dropna().item() == pytest.approx(0.5, abs=0.01)
    whole = torch.load("whole/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for stop in (1, 3):  # just before the extension, just before the pruning
        fit(f"--trainer.max_epochs={stop}", f"--name=half{stop}")
        half = f"half{stop}/version_0/checkpoints/last.ckpt"
        fit("--trainer.max_epochs=5", f"--name=rest{stop}", "--ckpt_path", half)
        rest = torch.load(f"rest{stop}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_the_figures_are_those_of_one_process(run) -> None:
    cli = run("fit", *TINY_KMUNET, "--trainer.callbacks", "[]", "--trainer.max_epochs=1", "--data.images=20")
    assert len(spline_layers(cli.model)) == 7
    path = f"{cli.trainer.log_dir}/checkpoints/last.ckpt"
    words = ["test", *TINY_KMUNET, "--trainer.callbacks", "[]", "--data.images=20", "--ckpt_path", path]
    figures = []
    for extra in ([], FORKED):  # five test images: the ranks hold three and two
        folder = Path(run(*words, *extra, f"--name=test{len(extra)}").trainer.log_dir)
        log = pd.read_csv(folder / "metrics.csv").dropna(axis=1).iloc[-1]
        figures.append({k: v for k, v in log.items() if k.startswith("test/")})
    assert figures[0].keys() == figures[1].keys()
    assert len(figures[0]) == 9
    for key, value in figures[0].items():
        if "loss" not in key:
            assert figures[1][key] == value
    assert figures[1]["test/loss"] == pytest.approx(figures[0]["test/loss"], abs=1e-6)
