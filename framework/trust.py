"""What a checkpoint may name. A checkpoint is data: nothing in it is called, and nothing is imported for it.

Configurations, the command line and `--import` are the user's own code. A checkpoint comes from anywhere: the classes
that its hyper-parameters name are built only if they are optimizers or schedulers of torch, Lightning or ours, methods
of ours, or classes that the user has named himself.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning.pytorch.core.saving import CHECKPOINT_PAST_HPARAMS_KEYS
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from framework.checkpoints import load_checkpoint
from framework.errors import CheckpointError
from framework.serialization import class_path

#: modules that may be imported to look for a class; everything else must have been imported by the user
OURS = ("framework", "models", "torch.optim", "lightning.pytorch.cli")
#: what is expected under a key of a method's hyper-parameters
EXPECTED: dict[str, type] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
#: what Lightning's command line leaves in the hyper-parameters
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
#: limits of a checkpoint's hyper-parameters: containers in each other, and values in all
DEEPEST, MOST = 32, 100_000

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_NAME = re.compile(r"[A-Za-z_]\w*")
#: the keys of a class and its arguments
_OF_A_CLASS = frozenset({"class_path", "init_args", "dict_kwargs"})

#: modules whose classes the user vouches for, by `--import`
vouched_modules: set[str] = set()


def class_named(path: str) -> Any:
    """The object that a class path names, without running any code of anybody's; None if that cannot be told."""
    head, _, name = path.rpartition(".")
    if head not in sys.modules and any(head == ours or head.startswith(f"{ours}.") for ours in OURS):
        try:
            importlib.import_module(head)
        except ImportError:
            return None
    return getattr(sys.modules.get(head), name, None)


def is_vouched_for(path: str, named: Collection[str]) -> bool:
    """Whether the user named this class, by its path or by `--import` of the module that defines it."""
    if path in named:
        return True
    found = class_named(path)
    if not isinstance(found, type):
        return False
    if any(found is class_named(name) for name in named):
        return True
    return any(found.__module__ == module or found.__module__.startswith(f"{module}.") for module in vouched_modules)


def check_method(path: str, named: Collection[str] = ()) -> None:
    """Raises CheckpointError unless a checkpoint's own class is a method of ours or vouched for."""
    from lightning.pytorch import LightningModule

    found = class_named(path) if path.split(".")[0] in ("framework", "models") else None
    ours = isinstance(found, type) and issubclass(found, LightningModule)
    if not ours and not is_vouched_for(path, named):
        raise CheckpointError(
            f"ckpt_path: the checkpoint is of a {path}, which is no method of ours, and a checkpoint imports nothing; "
            f"if it is yours, name it with --model={path} or --import {path.rpartition('.')[0] or path}"
        )


def check_hyper_parameters(
    hparams: Mapping[str, Any], named: Collection[str] = (), *, ours: bool = True
) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint, if building a method from them runs no code but ours and the user's.

    Args:
        hparams: plain values.
        named: class paths that the user's configuration or command line names.
        ours: the method is one of this repository, whose own words are words and nothing else.

    Returns:
        them, with `pretrained` off: weights come from the checkpoint.

    Raises:
        CheckpointError: they name something else than is expected there.
    """
    if hparams.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:
        raise _refused("_instantiator", hparams["_instantiator"], INSTANTIATOR)
    for key, base in EXPECTED.items():
        value = hparams.get(key)
        if value is not None and not (
            isinstance(value, Mapping) and isinstance(value.get("class_path"), str) and _OF_A_CLASS.issuperset(value)
        ):
            raise _refused(key, value, f"null, or the class_path of a {base.__name__} and its init_args")
    for path, key, value in _walk({k: v for k, v in hparams.items() if not str(k).startswith("_")}, ours):
        if key == "class_path":
            _check_class(path, value, named)
        elif isinstance(value, str):
            _check_word((*path, key), value, named, ours and not path)
    return {**hparams, **({"pretrained": False} if "pretrained" in hparams else {})}


def _walk(values: Any, ours: bool) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(keys above, key, value) of everything that is no container; keys that a parser would take apart are refused."""
    count = 0
    todo: list[tuple[tuple[str, ...], Any]] = [((), values)]
    while todo:
        path, container = todo.pop()
        if len(path) > DEEPEST:
            raise CheckpointError(
                f"ckpt_path: hyper_parameters.{'.'.join(path[:3])}... is nested more than {DEEPEST} deep, which no "
                "method's are"
            )
        for key, inner in container.items() if isinstance(container, Mapping) else enumerate(container):
            count += 1
            if count > MOST:  # the same list again and again takes no room in a file
                raise CheckpointError(f"ckpt_path: more than {MOST} hyper_parameters, which no method has")
            if isinstance(container, Mapping) and not _is_one_name(key, path, container, ours):
                place = ".".join((*path, repr(key)))
                raise _refused(place, inner, "a key that is one name, without dots or signs")
            if isinstance(inner, Mapping | list | tuple):
                todo.append(((*path, str(key)), inner))
            else:
                yield path, str(key), inner


def _is_one_name(key: Any, path: tuple[str, ...], container: Mapping[Any, Any], ours: bool) -> bool:
    """Whether a key means itself: `optimizer.class_path` would be taken apart and put in place of what was looked at.

    A user's own mapping, `{layer1.conv: 3}`, is left alone unless it is, or stands in, the arguments of a class.
    """
    if isinstance(key, str) and _NAME.fullmatch(key):
        return True
    return bool(path) and not ours and not _OF_A_CLASS & {*path, *container}


def _check_class(path: tuple[str, ...], name: Any, named: Collection[str]) -> None:
    base = EXPECTED.get(path[-1]) if path else None
    found = class_named(name) if isinstance(name, str) else None
    if base is not None and isinstance(found, type) and issubclass(found, base):
        return
    # What the user names himself is not known yet, before his configuration is parsed, or a function of his.
    of_another_kind = base is not None and isinstance(found, type)
    if not isinstance(name, str) or of_another_kind or not is_vouched_for(name, named):
        expected = f"a {base.__name__} of torch, Lightning or ours" if base else "no class of its own"
        raise _refused(".".join((*path, "class_path")), name, expected)


def _check_word(place: tuple[str, ...], word: str, named: Collection[str], is_plain: bool) -> None:
    """Words that a parser or a library would follow: to an object by its import path, to a file, to a server."""
    if ":" in word and word.split(":")[0].replace("_", "-") in ("hf-hub", "local-dir"):
        raise _refused(".".join(place), word, "the name of a model that timm carries itself")
    if is_plain:
        return
    if "://" in word or _is_file(word):
        raise _refused(".".join(place), word, "values, and no file or address to read them from")
    if _DOTTED.fullmatch(word) and word not in named and _can_be_imported(word.split(".")[0]):
        raise _refused(".".join(place), word, "a plain value, and nothing that can be imported")


def _is_file(word: str) -> bool:
    try:
        path = Path(word).expanduser()
        return path.exists() and not path.is_dir()
    except (OSError, ValueError, RuntimeError):  # no path at all
        return False


def _can_be_imported(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _refused(key: str, found: Any, expected: str) -> CheckpointError:
    shown = repr(found)
    return CheckpointError(
        f"ckpt_path: hyper_parameters.{key}: expected {expected}, got "
        f"{shown if len(shown) < 120 else shown[:117] + '...'}; nothing was imported or called, so if you trust it, "
        "name it in a configuration, on the command line or with --import"
    )


def named_in(words: Iterable[str]) -> set[str]:
    """Everything in a user's words, configurations among them, that may be the path of a class."""
    return {found.group() for word in words for found in _DOTTED.finditer(word)}


def check_stored_arguments(source: Any, method: type, given: Collection[str]) -> dict[str, Any]:
    """What `load_from_checkpoint` of a method is to be given in place of what a file from anywhere says.

    Args:
        source: path, address or open file.
        method: the class that is going to be built.
        given: names of the arguments that the user gives, which the file does not decide.

    Raises:
        CheckpointError: no checkpoint, or one that names what it must not.
    """
    if isinstance(source, str | Path) and "://" not in str(source):
        content = load_checkpoint(Path(source))
    elif isinstance(source, str | Path):
        with fsspec.open(str(source), "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    else:
        content = torch.load(source, map_location="cpu", weights_only=True)
        source.seek(0)
    instead: dict[str, Any] = {}
    for key in (*CHECKPOINT_PAST_HPARAMS_KEYS, "hyper_parameters"):
        stored = {k: v for k, v in (content.get(key) or {}).items() if k not in given}
        checked = check_hyper_parameters(stored, {class_path(method)}, ours=method.__module__.split(".")[0] == "models")
        instead |= {k: v for k, v in checked.items() if stored[k] is not v}
    return instead
