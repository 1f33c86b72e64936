"""The run folder: claimed by creating it, so that no two runs share one and nothing that is there is replaced."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from framework.errors import ConfigError, FrameworkError
from framework.outputs import optional_output

#: (process, folder) of what `claimed_version` has made
_claimed: list[tuple[int, Path]] = []


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Takes the folders that are claimed inside away again where an error ends it before a run has left anything.

    Only a folder that this process has made, and that holds nothing but the run's configuration and a log without an
    entry, is removed.
    """
    before = len(_claimed)
    try:
        yield
    except FrameworkError:
        for process, folder in _claimed[before:]:
            with contextlib.suppress(OSError):
                files = list(folder.iterdir())
                if process == os.getpid() and all(map(_is_of_the_start, files)):
                    for path in files:
                        path.unlink()
                    folder.rmdir()
        raise


def _is_of_the_start(path: Path) -> bool:
    """The configuration, or TensorBoard's file before its first entry: a header of 88 bytes."""
    begun = path.name.startswith("events.out.tfevents.") and path.stat().st_size <= 100
    return path.name == "config.yaml" or begun


def claimed_version(folder: Path) -> str:
    """Creates `version_N` in the folder with the first N above every one there; the name of it.

    The first process creates, as it alone writes; the others of a run get the name of its folder from the Trainer.

    Raises:
        ConfigError: it cannot be created.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return next_version(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            version = next_version(folder)
            with contextlib.suppress(FileExistsError):  # another run was first
                Path(folder, version).mkdir()
                _claimed.append((os.getpid(), Path(folder, version).absolute()))
                return version
    except OSError as error:
        raise ConfigError(
            f"trainer.default_root_dir: the run folder {error.filename or folder} cannot be made ({error.strerror}); "
            "give a folder that can be written to, or another --name"
        ) from error


def next_version(folder: Path) -> str:
    """`version_N` with the first N above every one in the folder."""
    numbers = [-1]
    for path in folder.glob("version_*"):
        with contextlib.suppress(ValueError):
            numbers.append(int(path.name.removeprefix("version_")))
    return f"version_{max(numbers) + 1}"


def folder_without_logger(given: str | None, root: str, name: str) -> str:
    """Where a run without a logger leaves its files: the folder that the user named, unless there is a run in it."""
    if given is None:
        return str(Path(root, name, claimed_version(Path(root, name))))
    if any(Path(given, left).exists() for left in ("config.yaml", "checkpoints")):
        return str(Path(given, claimed_version(Path(given))))
    return given


def default_loggers(logger: Any, root: str, name: str, claim: bool = True) -> Any:
    """CSV always, TensorBoard unless another logger is configured, in one versioned run folder `root/name/version_N`.

    `logger: false` in the configuration turns all of it off.

    Args:
        logger: of the configuration.
        root: of all runs.
        name: of this one.
        claim: create the folder; False for runs that leave nothing.
    """
    if logger is False:
        return False
    given: list[Logger] = [] if logger in (None, True) else logger if isinstance(logger, list) else [logger]
    if any(isinstance(g, CSVLogger) for g in given):
        return given
    version = (claimed_version if claim else next_version)(Path(root, name))
    csv = LastingCSVLogger(root, name=name, version=version)
    return [csv, *(given or [LastingTensorBoard(root, name=name, version=version, default_hp_metric=False)])]


class LastingCSVLogger(CSVLogger):
    """Lightning's, for which a full disk or a folder taken away is no reason to lose the training."""

    def log_hyperparams(self, params: Any = None) -> None:
        """Lightning's hook."""
        with self._lasting():
            super().log_hyperparams(params)

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:  # type: ignore[override]
        """Lightning's hook."""
        with self._lasting():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Lightning's hook."""
        with self._lasting():
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            super().save()

    def finalize(self, status: str) -> None:
        """Lightning's hook."""
        with self._lasting():
            super().finalize(status)

    def _lasting(self) -> contextlib.AbstractContextManager[None]:
        return optional_output(f"{self.log_dir}/metrics.csv")


class LastingTensorBoard(TensorBoardLogger):
    """As LastingCSVLogger."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Lightning's hook."""
        with self._lasting():
            super().log_hyperparams(*args, **kwargs)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        """Lightning's hook."""
        with self._lasting():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Lightning's hook."""
        with self._lasting():
            super().save()

    def finalize(self, status: str) -> None:
        """Lightning's hook."""
        with self._lasting():
            super().finalize(status)

    def _lasting(self) -> contextlib.AbstractContextManager[None]:
        return optional_output(f"TensorBoard's file in {self.log_dir}")


def devices_of_torchrun(config: dict[str, Any], environment: Any) -> dict[str, Any]:
    """What `trainer` lacks when torchrun has started several processes: as many devices, nodes and DDP.

    Args:
        config: the trainer's section.
        environment: of the process.

    Raises:
        ConfigError: `trainer.devices` asks for another number than torchrun has started.
    """
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", 1)) < 2:
        return {}
    local = int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]))
    nodes = int(environment["WORLD_SIZE"]) // local
    devices = config.get("devices")
    wanted: dict[str, Any] = {"devices": local, "num_nodes": nodes}
    if devices not in (None, "auto", -1, "-1"):
        count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else None
        if count is not None and count != local:
            raise ConfigError(
                f"trainer.devices: torchrun has started {local} processes on this machine, but devices is {devices}; "
                f"give --trainer.devices {local}, or leave it out"
            )
        wanted.pop("devices")
    if config.get("num_nodes") not in (None, 1, nodes):
        raise ConfigError(
            f"trainer.num_nodes: torchrun has started {nodes} nodes, but num_nodes is {config['num_nodes']}; give "
            f"--trainer.num_nodes {nodes}"
        )
    if config.get("strategy") in (None, "auto"):
        wanted["strategy"] = "ddp"
    return wanted
