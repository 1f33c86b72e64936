"""Checks of the Trainer's arguments, which Lightning makes late, elsewhere, or not at all."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from framework.errors import ConfigError


def check_trainer(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a Trainer argument that cannot work, before anything is built.

    Args:
        config: the arguments of `lightning.pytorch.Trainer` by name.

    Raises:
        ConfigError: names the argument, what is expected and what was got.
    """
    for name, (valid, expected) in _RULES.items():
        value = config.get(name)
        if value is not None and not valid(value):
            raise ConfigError(f"trainer.{name}: expected {expected}, got {value!r}")
    _check_accelerator(config.get("accelerator"))
    _check_devices(config.get("devices"), config.get("accelerator"))
    strategy = config.get("strategy")
    if isinstance(strategy, str) and strategy != "auto":
        _check_name("strategy", strategy, StrategyRegistry.available_strategies())


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


def _is_share(value: Any) -> bool:
    return value >= 0 if isinstance(value, int) else isinstance(value, float) and 0 <= value <= 1


def _is_interval(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return value >= 1 if isinstance(value, int) else not isinstance(value, float) or 0 < value <= 1


_SHARE = (_is_share, "a number of batches of 0 or more, or a share from 0.0 to 1.0")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys([f"limit_{split}_batches" for split in ("train", "val", "test", "predict")], _SHARE),
    "overfit_batches": _SHARE,
    "fast_dev_run": (_whole(0), "true, false or a number of batches of 0 or more"),
    "check_val_every_n_epoch": (_whole(1), "null or a number of epochs of 1 or more"),
    "val_check_interval": (_is_interval, "a number of batches of 1 or more, or a share of an epoch up to 1.0"),
    "accumulate_grad_batches": (_whole(1), "1 or more"),
    "log_every_n_steps": (_whole(0), "0 or more steps"),
    "max_epochs": (_whole(-1), "0 or more, or -1 for no end"),
    "min_epochs": (_whole(0), "0 or more"),
    "max_steps": (_whole(-1), "0 or more, or -1 for no end"),
    "min_steps": (_whole(0), "0 or more"),
    "num_sanity_val_steps": (_whole(-1), "0 or more batches, or -1 for all"),
    "reload_dataloaders_every_n_epochs": (_whole(0), "0 or more epochs"),
    "num_nodes": (_whole(1), "1 or more"),
    "gradient_clip_val": (lambda value: value >= 0, "null or a limit of 0 or more"),
}


def _check_accelerator(accelerator: Any) -> None:
    if not isinstance(accelerator, str):
        return
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here["gpu"] = any(here.values())
    if not here.get(accelerator, True):
        raise ConfigError(
            f"trainer.accelerator: expected a device that torch {torch.__version__} sees here, got {accelerator}\n"
            "give cpu or auto; `framework doctor` shows the devices"
        )
    if accelerator not in ("auto", "gpu"):
        _check_name("accelerator", accelerator, [*AcceleratorRegistry.available_accelerators(), "gpu"])
        if accelerator in AcceleratorRegistry and not AcceleratorRegistry[accelerator]["accelerator"].is_available():
            raise ConfigError(f"trainer.accelerator: expected one of this machine, got {accelerator}; give auto")


def _check_devices(devices: Any, accelerator: Any) -> None:
    if devices is None or devices == "auto":
        return
    on_gpu = torch.cuda.is_available() and accelerator in (None, "auto", "gpu", "cuda")
    entries = devices if isinstance(devices, list | tuple) else str(devices).strip().split(",")
    try:
        numbers = [int(str(entry)) for entry in entries if str(entry).strip()]
    except ValueError:
        numbers = []
    single = len(entries) == 1 and not isinstance(devices, list | tuple)
    valid = bool(numbers) and (numbers[0] >= 1 if single else on_gpu and min(numbers) >= 0)
    valid |= on_gpu and single and numbers == [-1]
    if not valid:
        more = ", -1 for all, or a list of indices" if on_gpu else " (a CPU has no list of devices)"
        raise ConfigError(
            f"trainer.devices: expected auto or a number of processes of 1 or more{more}, got {devices!r}"
        )
    if on_gpu and single and numbers[0] > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices: expected at most the {torch.cuda.device_count()} of this machine, got {devices!r}"
        )


def _check_name(name: str, value: str, known: list[str]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known)[:12])}"
    raise ConfigError(f"trainer.{name}: expected one that Lightning knows, got {value!r}; {hint}")
