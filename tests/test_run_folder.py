"""Where a run's tables and figures go, whichever loggers it has."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from callbacks import FigureWriter
from framework.distributed import agreed_run_folder, run_folder
from tests.helpers.methods import method_and_data
from tests.helpers.small import quiet


class Foreign(Logger):
    """A logger that knows where it saves, and no `log_dir`, like those of services."""

    def __init__(self, folder: Path | None, version: str | int = "run7") -> None:
        self.folder, self.number = folder, version

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str | int:
        return self.number

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


CASES: dict[str, tuple[Any, str]] = {
    "none": (lambda p: False, ""),
    "csv": (lambda p: CSVLogger(p / "csv"), "csv/lightning_logs/version_0"),
    "tensorboard first": (
        lambda p: [TensorBoardLogger(p / "tb"), CSVLogger(p / "csv")],
        "tb/lightning_logs/version_0",
    ),
    "foreign": (lambda p: Foreign(p / "w"), "w/project/run7"),
    "numbered": (lambda p: Foreign(p / "w", 3), "w/project/version_3"),
    "foreign first": (lambda p: [Foreign(p / "w"), CSVLogger(p / "csv")], "csv/lightning_logs/version_0"),
    "nowhere": (lambda p: Foreign(None), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_every_rank_names_the_same_folder(tmp_path, name) -> None:
    make, expected = CASES[name]
    trainer = quiet(tmp_path, logger=make(tmp_path))
    assert run_folder(trainer) == agreed_run_folder(trainer) == tmp_path / expected


def test_figures_stand_beside_the_checkpoints_and_the_next_run_replaces_none(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for version in ("a", "b"):
        module, data = method_and_data("finola", tmp_path)
        logger = Foreign(tmp_path / "runs", version)
        quiet(tmp_path, max_epochs=1, logger=logger, callbacks=[FigureWriter(), ModelCheckpoint()]).fit(module, data)
        run = tmp_path / "runs" / "project" / version
        assert (run / "figures" / "reconstruction.png").is_file()
        assert len(list((run / "checkpoints").iterdir())) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_a_run_for_trying_out_has_no_logger_of_its_own(tmp_path) -> None:
    trainer = quiet(tmp_path, fast_dev_run=True, logger=Foreign(tmp_path / "w"))
    assert run_folder(trainer) == agreed_run_folder(trainer) == tmp_path
