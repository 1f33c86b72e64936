"""Classification networks from timm, loaded as they were trained."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.checkpoints import holds_code
from framework.errors import CheckpointError, ConfigError
from framework.suggest import nearest_names


def build_network(
    model: str,
    num_classes: int = 1000,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
    identity_modules: Sequence[str] = (),
) -> nn.Module:
    """A timm network with the changes that it was trained with.

    Args:
        model: timm name, e.g. `convnextv2_tiny.fcmae_ft_in1k`.
        num_classes: outputs of the head.
        pretrained: download timm's weights.
        model_args: further arguments of timm's `create_model`, e.g. `{pad_type: same}`.
        identity_modules: names of modules to replace by the identity.

    Raises:
        ConfigError: an unknown model, argument or module.
    """
    import timm

    name = model.split(".")[0]
    if not timm.is_model(name):
        raise ConfigError(
            f"model.model: timm has no {model!r}; nearest: {', '.join(nearest_names(name, timm.list_models()))}"
        )
    try:
        network = timm.create_model(model, pretrained=pretrained, num_classes=num_classes, **dict(model_args or {}))
    except (TypeError, RuntimeError, LookupError, ValueError, AttributeError, OSError) as error:
        raise ConfigError(
            f"model.model_args: {model} cannot be built with {dict(model_args or {})}: {error}"
        ) from error
    for path in identity_modules:
        _set_identity(network, path)
    return network


def load_file_into(
    network: nn.Module, path: str, key_mapping: str | Mapping[str, str] = "names", load_head: bool = True
) -> None:
    """Loads a file of weights.

    Args:
        network: from `build_network`.
        path: safetensors, or a torch file, also one that keeps the weights under `model`, `model_ema` or `state_dict`.
        key_mapping: how its names become ours. `names`: they are ours; `timm`: timm's own conversion of the authors'
            checkpoints of this family; `torchvision/NAME`: they are those of that torchvision model, which lists the
            same shapes in the same order; or a mapping from regular expressions to replacements, applied in order.
        load_head: False leaves the classifier as it is initialised, for other classes, and with it what stands beside
            it in the network's head where the file has none: self-supervised ConvNeXts lack the last norm.

    Raises:
        ConfigError: a mapping that does not fit the network.
        CheckpointError: a file that is missing or broken, or whose names or shapes do not match.
    """
    load_weights(network, convert_keys(read_state_dict(path), network, key_mapping), path, load_head)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file, on the CPU, tensors only.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a broken file
        said = "objects of a class, whose code would run" if holds_code(error) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"checkpoint: {path} cannot be read: expected tensors, got {said}; give another file"
        ) from error
    for key in ("model_ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"checkpoint: {path} holds no named tensors")
    prefixes = ("network.", "module.")
    while prefix := next((p for p in prefixes if all(k.startswith(p) for k in tensors)), ""):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def convert_keys(
    state: Mapping[str, Tensor], network: nn.Module, key_mapping: str | Mapping[str, str]
) -> dict[str, Tensor]:
    """A checkpoint's tensors under the network's names.

    Raises:
        ConfigError: an unknown mapping, or a torchvision model of another architecture.
    """
    if isinstance(key_mapping, Mapping):
        renamed = {}
        for key, value in state.items():
            for pattern, replacement in key_mapping.items():
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
        return renamed
    if key_mapping == "names":
        return dict(state)
    if key_mapping == "timm":
        family = sys.modules[type(network).__module__]
        if not hasattr(family, "checkpoint_filter_fn"):
            raise ConfigError(f"model.key_mapping: timm converts no foreign checkpoints for {type(network).__name__}")
        return dict(family.checkpoint_filter_fn(dict(state), network))
    library, _, name = key_mapping.partition("/")
    if library != "torchvision":
        raise ConfigError(
            f"model.key_mapping: expected names, timm, torchvision/NAME or a mapping of regular expressions, "
            f"got {key_mapping!r}"
        )
    import torchvision

    if name not in torchvision.models.list_models():
        near = ", ".join(nearest_names(name, torchvision.models.list_models()))
        raise ConfigError(f"model.key_mapping: torchvision has no model {name!r}; nearest: {near}")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    ours = network.state_dict()
    # the classifier may have other classes, which load_weights explains
    pairs = list(zip(ours.items(), theirs.items(), strict=False))
    other = [f"{a} / {b}" for (a, x), (b, y) in pairs if x.shape[1:] != y.shape[1:]]
    if len(ours) != len(theirs) or other:
        raise ConfigError(
            f"model.key_mapping: {key_mapping} has {len(theirs)} tensors and the network {len(ours)}, and {len(other)} "
            f"shapes differ{': ' + other[0] if other else ''}; it is another architecture"
        )
    names = {b: a for a, b in zip(ours, theirs, strict=True)}
    return {names.get(key, key): value for key, value in state.items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: str, load_head: bool = True) -> None:
    """Loads weights by name and says which names or shapes do not match.

    Raises:
        CheckpointError: tensors are missing, unexpected (a decoder beside the encoder, say) or of other shapes.
    """
    ours = network.state_dict()
    head = classifier_names(network)
    state = dict(state)
    if not load_head:
        state = {key: value for key, value in state.items() if key not in head}
        # "head." of "head.fc.weight"; a classifier at the top level has nothing beside it
        beside = {".".join([*key.split(".")[:-2], ""]) for key in head} - {""}
        state |= {key: ours[key] for key in ours if key in head or (key not in state and key.startswith(tuple(beside)))}
    other = [key for key in ours if key in state and state[key].shape != ours[key].shape]
    if set(other) & head:
        key = next(k for k in other if k in head)
        raise CheckpointError(
            f"checkpoint: {path} was trained for {len(state[key])} classes, model.num_classes is {len(ours[key])}; set "
            f"num_classes: {len(state[key])}, or load_head: false to start with a new classifier"
        )
    missing, unexpected = [k for k in ours if k not in state], [k for k in state if k not in ours]
    problems = []
    for what, names in {"missing": missing, "unexpected": unexpected, "of another shape": other}.items():
        if names:
            problems.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    if problems:
        raise CheckpointError(
            f"checkpoint: {path} does not match the network's {len(ours)} tensors: {'; '.join(problems)}; set "
            "model.key_mapping, model.model or, for a checkpoint without a classifier, model.load_head: false"
        )
    network.load_state_dict(state)


def classifier_names(network: nn.Module) -> set[str]:
    """The state_dict names of the last linear layer."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return {f"{linear[-1]}.{key}" for key in ("weight", "bias")} & set(network.state_dict()) if linear else set()


def _set_identity(network: nn.Module, path: str) -> None:
    parent_path, _, name = path.rpartition(".")
    try:
        parent = network.get_submodule(parent_path)
        parent.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(f"model.identity_modules: the network has no module {path!r}") from error
    setattr(parent, name, nn.Identity())
