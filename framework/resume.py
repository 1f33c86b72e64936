"""What a resumed fit takes from the checkpoint, and what from the arguments it was given.

Lightning restores parameter groups and schedulers whole, learning rates and constants included, so that a value given
anew would have no effect. Here the settings that differ are written into the checkpoint before Lightning reads it;
moments and step counts stay.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from framework.errors import ConfigError
from framework.serialization import NotPlain, class_path, to_plain

#: builds optimizer and scheduler, every group's learning rate multiplied by its factor first; None: as they are
Build = Callable[[Sequence[float] | None], tuple[Optimizer, LRScheduler | None]]

# hyper-parameters that shape a scheduler beyond what its state shows: a lambda's constants are in no state
_ARGUMENTS = ("lr_scheduler", "lr_interval")


def settle_epoch(checkpoint: dict[str, Any]) -> int | None:
    """Edits a checkpoint's loop counters so that it stands exactly between two epochs.

    One saved after its epoch's last step (during validation, say) counts that epoch as done; one saved in the middle of
    an epoch starts that epoch again, because loaders are resumed by epoch, not by batch.

    Returns:
        the epoch that starts again, or None.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return None
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    started, finished = epochs["current"]["started"], epochs["current"]["processed"]
    if started == finished:
        # A stop inside an epoch (max_steps, max_time, should_stop) ends it, and Lightning counts it as done.
        if not finished or not batches["current"]["ready"] or batches["is_last_batch"]:
            return None
        finished -= 1
    is_over = batches["is_last_batch"] and batches["current"]["processed"] == batches["current"]["ready"]
    for counters in epochs.values():
        counters.update(dict.fromkeys(counters, started if is_over else finished))
    batches["is_last_batch"] = True
    return None if is_over else int(finished)


def describe(optimizer: Optimizer, scheduler: LRScheduler | None, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Optimizer and scheduler as they stand before the first step, in plain form.

    Args:
        optimizer: freshly built.
        scheduler: freshly built for it, or None.
        hparams: the method's hyper-parameters in plain form.
    """
    return {
        "optimizer": class_path(type(optimizer)),
        "groups": [_plain_items({k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups],
        "scheduler": None if scheduler is None else class_path(type(scheduler)),
        "scheduler_state": {} if scheduler is None else _plain_items(scheduler.state_dict()),
        "arguments": {name: hparams[name] for name in _ARGUMENTS if name in hparams},
    }


def apply_changed_settings(checkpoint: dict[str, Any], build: Build, hparams: Mapping[str, Any]) -> bool:
    """Edits a checkpoint so that settings given anew hold: rates, decay and the scheduler's constants.

    The learning rate becomes the one a run with the new settings would have at the checkpoint's position. What training
    itself changed in proportion stays: reductions at a plateau, grid extension's factors. Equal settings change
    nothing.

    Args:
        checkpoint: between two epochs (see `settle_epoch`), with `optimizer_settings` as `describe` gave them.
        build: see `Build`.
        hparams: the method's hyper-parameters in plain form.

    Returns:
        whether anything differed.

    Raises:
        ConfigError: the optimizer is of another class or has other parameter groups, or the scheduler ends before the
            checkpoint's position.
    """
    if not checkpoint.get("optimizer_states"):
        return False
    stored = checkpoint.get("optimizer_settings")
    if stored is None:
        _refuse_unknown(checkpoint.get("hyper_parameters", {}), hparams)
        return False
    optimizer, scheduler = build(None)
    fresh = describe(optimizer, scheduler, hparams)
    if fresh == stored:
        return False
    groups, states = checkpoint["optimizer_states"][0]["param_groups"], checkpoint.get("lr_schedulers") or []
    of_a_user = scheduler is None and stored["scheduler"] is None
    _refuse_another_shape(groups, optimizer, fresh, stored)
    left_plateau = _is_plateau(stored["scheduler"]) and not isinstance(scheduler, ReduceLROnPlateau)
    built = stored["groups"]
    rates = [1.0 if left_plateau else _rate_factor(g, b) for g, b in zip(groups, built, strict=True)]
    optimizer, scheduler = build(rates)
    _replay(scheduler, _position(checkpoint, hparams.get("lr_interval", "epoch")))
    for group, before, new in zip(groups, built, optimizer.param_groups, strict=True):
        decay = _factor(group.get("weight_decay"), before.get("weight_decay"))
        if of_a_user and "initial_lr" in group:
            group["initial_lr"] *= _factor(new["lr"], before["lr"])
        else:
            group.pop("initial_lr", None)
        group.update({k: v for k, v in new.items() if k != "params"})
        if decay != 1:
            group["weight_decay"] *= decay
    if of_a_user:  # added in a configure_optimizers of his own: it goes on where it was
        changes = [_factor(new["lr"], before["lr"]) for before, new in zip(built, fresh["groups"], strict=True)]
        checkpoint["lr_schedulers"] = [_with_rates(state, changes) for state in states]
    elif scheduler is None:
        checkpoint["lr_schedulers"] = []
    elif isinstance(scheduler, ReduceLROnPlateau) and fresh["scheduler"] == stored["scheduler"] and states:
        old = stored["scheduler_state"]
        changed = {k: v for k, v in scheduler.state_dict().items() if old.get(k) != fresh["scheduler_state"].get(k)}
        checkpoint["lr_schedulers"] = [{**states[0], **changed, "_last_lr": [g["lr"] for g in groups]}]
    else:
        checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    return True


def _refuse_another_shape(
    groups: list[dict[str, Any]], optimizer: Optimizer, fresh: Mapping[str, Any], stored: Mapping[str, Any]
) -> None:
    if fresh["optimizer"] != stored["optimizer"]:
        raise ConfigError(
            f"model.optimizer: the checkpoint holds the state of a {stored['optimizer']}, which a {fresh['optimizer']} "
            "cannot go on with; resume with the first, or start without --ckpt_path"
        )
    sizes = [[len(g["params"]) for g in every] for every in (groups, optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"model: the checkpoint's optimizer has parameter groups of {sizes[0]} tensors, the model now has "
            f"{sizes[1]}; resume with the arguments of the checkpoint, or start without --ckpt_path"
        )


def _refuse_unknown(stored: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    for name in ("optimizer", *_ARGUMENTS):
        if name in stored and name in hparams and stored[name] != hparams[name]:
            raise ConfigError(
                f"model.{name}: the checkpoint had {stored[name]!r}, now it is {hparams[name]!r}, and the checkpoint "
                "does not say how its optimizer was built, so the change cannot be made; resume with the first"
            )


def _replay(scheduler: LRScheduler | None, steps: int) -> None:
    # The only way to a position that holds for every scheduler: few have a closed form.
    if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects steps of the optimizer in between
        try:
            for _ in range(steps):
                scheduler.step()
        except ValueError as error:
            raise ConfigError(
                f"model.lr_scheduler: cannot be taken to the checkpoint's position, step {steps} ({error}); give a "
                "longer schedule"
            ) from error


def _position(checkpoint: Mapping[str, Any], interval: str) -> int:
    if interval == "step":
        return int(checkpoint["global_step"])
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def _rate_factor(group: Mapping[str, Any], built: Mapping[str, Any]) -> float:
    key = "initial_lr" if "initial_lr" in built else "lr"
    return _factor(group.get(key), built.get(key))


def _factor(now: Any, built: Any) -> float:
    if isinstance(now, float | int) and isinstance(built, float | int) and built:
        return now / built
    return 1.0


def _with_rates(state: Mapping[str, Any], changes: Sequence[float]) -> dict[str, Any]:
    """A scheduler's state, the rates that it starts from and was at multiplied by these, group by group."""
    made = dict(state)
    for key in ("base_lrs", "_last_lr"):
        if isinstance(rates := state.get(key), list) and len(rates) == len(changes):
            made[key] = [rate * change for rate, change in zip(rates, changes, strict=True)]
    if isinstance(inner := state.get("_schedulers"), list):
        made["_schedulers"] = [_with_rates(one, changes) for one in inner]
    return made


def _is_plateau(path: str | None) -> bool:
    return path is not None and path.endswith(".ReduceLROnPlateau")


def _plain_items(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in values.items():
        try:
            plain[key] = to_plain(value)
        except NotPlain:
            continue
    return plain
