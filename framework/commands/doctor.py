"""`framework doctor`: versions, devices and the usual ways in which an installation is broken."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from rich.console import Console

from framework.main import foreign_packages

_DISTRIBUTIONS = (
    "explicit-vision",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "timm",
    "scikit-image",
    "scipy",
    "matplotlib",
)


def run(args: Sequence[str]) -> int:
    """Prints what was found; returns 1 when something is broken."""
    argparse.ArgumentParser(prog="framework doctor", description="Is this installation healthy?").parse_args(list(args))
    console = Console(highlight=False)
    console.print(f"python      {platform.python_version()} ({sys.executable})")
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        console.print(f"{name:<16} {version}")
    problems = [*_foreign(), *_torch(console), *_torchvision()]
    for problem in problems:
        console.print(f"[red]problem[/red]: {problem}")
    console.print("no problem found" if not problems else f"{len(problems)} problem(s)")
    return int(bool(problems))


def _foreign() -> list[str]:
    return [f"package {name} is not ours: {path} hides it" for name, path in foreign_packages().items()]


def _torch(console: Console) -> list[str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [f"torch does not import: {error}"]
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    console.print(f"devices          cpu x {torch.get_num_threads()} threads{''.join(', ' + d for d in devices)}")
    return []


def _torchvision() -> list[str]:
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        if "torchvision::nms" in str(error):
            return [
                "torchvision does not belong to this torch (operator torchvision::nms does not exist): they come from "
                "different places. `uv run` takes a matching pair; with pip, reinstall both in one command."
            ]
        return [f"torchvision does not import: {error}"]
    return []
