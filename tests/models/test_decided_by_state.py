"""Arguments that a checkpoint's weights bring with them: others given with it would change nothing, and are refused."""

from typing import Any

import pytest
import torch

import models
from framework.commands.precedence import Layers
from framework.errors import ConfigError
from framework.method import BaseMethod
from tests.helpers.methods import ATTO, FINOLA

SMALL: dict[str, Any] = {"width": 2, "class_mean": [1.0, 2.0], "class_std": [1.0, 1.0]}
MASTER = ATTO
#: method -> argument -> two values, with what else they need
VALUES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "KOriginsSegmentation": {
        "origins": (SMALL, {**SMALL, "origins": "random"}),
        "class_mean": (SMALL, {**SMALL, "class_mean": [5.0, 9.0]}),
        "class_std": (SMALL, {**SMALL, "class_std": [3.0, 9.0]}),
        "deep_mean": (SMALL, {**SMALL, "deep_mean": 1.0}),
        "deep_std": (SMALL, {**SMALL, "deep_std": 1.0}),
        "data_bias": ({**SMALL, "origins": "none"}, {**SMALL, "origins": "none", "data_bias": True}),
    },
    "KMUNet": {
        "grid_size": ({"width": 2, "stages": 1}, {"width": 2, "stages": 1, "max_grid_size": 5, "grid_size": 4}),
        "korigins": (
            {"width": 2, "stages": 1, "korigins": [1.0, 2.0]},
            {"width": 2, "stages": 1, "korigins": [7.0, 9.0]},
        ),
    },
    "LevelsOfExperts": {"seed": ({"experts": [2, 1], "width": 4}, {"experts": [2, 1], "width": 4, "seed": 3})},
    "MasterKeyClassifier": {
        "checkpoint": (MASTER, {**MASTER, "checkpoint": "x.pth"}),
        "key_mapping": (MASTER, {**MASTER, "key_mapping": "timm"}),
        "load_head": (MASTER, {**MASTER, "load_head": False}),
        "filters": (MASTER, {**MASTER, "filters": "B"}),
        "filters_file": (MASTER, {**MASTER, "filters_file": "x.npz", "filters": "learned"}),
        "match_checkpoint": (MASTER, {**MASTER, "filters": "B", "match_checkpoint": "x.pth"}),
        "start_sigma": (
            {**MASTER, "filters": "learned-scale"},
            {**MASTER, "filters": "learned-scale", "start_sigma": 1.5},
        ),
        "bank_seed": ({**MASTER, "filters": "random"}, {**MASTER, "filters": "random", "bank_seed": 3}),
    },
    "FinolaAutoencoder": {"init_std": ({**FINOLA, "map_size": 8}, {**FINOLA, "map_size": 8, "init_std": 0.9})},
    "MaskedFinola": {"init_std": (FINOLA, {**FINOLA, "init_std": 0.9})},
}
CASES = [(name, argument) for name, values in VALUES.items() for argument in values]


@pytest.mark.parametrize("name", models.__all__)
def test_every_such_argument_is_looked_at(name) -> None:
    assert set(getattr(models, name).decided_by_state) == set(VALUES[name])


def weights(module: BaseMethod) -> dict[str, torch.Tensor]:
    if isinstance(module, models.LevelsOfExperts):
        module.configure_images(["a"], [[8, 8]])
    return module.state_dict()


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_the_weights_replace_what_the_argument_began_with(name, argument) -> None:
    first, second = (getattr(models, name)(**values) for values in VALUES[name][argument])
    stored = weights(first)
    weights(second)
    second.load_state_dict(stored)
    after = second.state_dict()
    assert stored.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in stored.items())


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_another_value_beside_a_checkpoint_is_refused(name, argument) -> None:
    first, second = VALUES[name][argument]
    before = {argument: first.get(argument)}
    layers = Layers("test", [], None, hparams=before)
    kind = getattr(models, name)
    with pytest.raises(ConfigError, match=rf"model\.{argument}.*: the weights of the checkpoint were made with"):
        layers.check_overrides({argument: second[argument]}, kind.decided_by_state)
    layers.check_overrides(before, kind.decided_by_state)
