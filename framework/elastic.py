"""Restarts by torchrun (`--max-restarts`): a worker group that is started again goes on from its last whole checkpoint.

Checkpoints say which launch they belong to, so that a restart never takes up an older run's.
"""

import os
import platform
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def launch_id() -> str | None:
    """What is the same in all restarts of one torchrun on this machine, and in no other; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run}/{platform.node()}/{os.getppid()}"


def restarts() -> int:
    """How often torchrun has started this worker group again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def checkpoint_to_go_on_from(folder: Path, load: Callable[[Path], dict[str, Any]]) -> Path | None:
    """The newest readable checkpoint of this launch below a folder of runs.

    Args:
        folder: with `version_N/checkpoints`.
        load: reads one, and raises ValueError for a broken file.
    """
    if not restarts() or (mine := launch_id()) is None:
        return None
    for path in _newest_first(folder.glob("version_*/checkpoints/*.ckpt")):
        try:
            content = load(path)
        except ValueError:
            continue
        if content.get("launch") == mine and "optimizer_states" in content:
            return path
    return None


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def meet_anew() -> None:
    """Lets ranks that torchrun has started again meet in a store of their own.

    torchrun keeps one store for all starts of a group (torch 2.15), in which a quick rank would find the addresses of
    ranks that are gone, and end. The new place is agreed on in that store, under a key of this start.
    """
    environment = os.environ
    if not restarts() or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore

    old = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    key = f"framework/port/{restarts()}"
    if environment["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            old.set(key, str(free.getsockname()[1]))
    environment["MASTER_PORT"] = old.get(key).decode()
    environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
