"""Every method under Lightning's own tools: copies, averaging, finders, any order of verbs, checkpoints of others."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from framework.compat import averaged_models
from framework.distributed import checksum
from framework.errors import ConfigError
from tests.helpers.methods import BUILD, method_and_data
from tests.helpers.small import quiet

pytestmark = pytest.mark.timeout(120)
ONE_EPOCH = {"max_epochs": 1, "enable_checkpointing": False}


def holds_a_trainer(module: LightningModule) -> bool:
    return b"trainer.trainer" in pickle.dumps(module)


@pytest.mark.parametrize("name", BUILD)
def test_copies_and_pickles_are_independent_before_and_after_a_fit(tmp_path, name) -> None:
    module, data = method_and_data(name, tmp_path)
    for epochs in (0, 1):
        if epochs:
            quiet(tmp_path, **ONE_EPOCH).fit(module, data)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other.attached_trainer is None
            assert not holds_a_trainer(other)
            assert checksum(dict(other.named_parameters())) == checksum(dict(module.named_parameters()))
            shared = {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in other.parameters()}
            assert not shared - {0}
    before = checksum(module.state_dict())
    quiet(tmp_path, **ONE_EPOCH).fit(copy.deepcopy(module), data)
    assert checksum(module.state_dict()) == before


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging])
@pytest.mark.parametrize("name", BUILD)
def test_averaging(tmp_path, name, kind, devices) -> None:
    if (devices == 2 and name == "master_key_scale") or (kind is WeightAveraging and name != "korigins"):
        pytest.skip("the same code as its neighbours")
    module, data = method_and_data(name, tmp_path)
    averaging = kind(1e-3, swa_epoch_start=1) if kind is StochasticWeightAveraging else kind()
    pair = {"strategy": "ddp_fork", "devices": 2} if devices == 2 else {}
    trainer = quiet(tmp_path, max_epochs=2, enable_checkpointing=False, callbacks=[averaging], **pair)
    trainer.fit(module, data)
    assert trainer.state.finished
    if devices == 1:
        (average,) = averaged_models(trainer)
        for a, b in zip(average.parameters(), module.parameters(), strict=True):
            assert torch.equal(a.data, b.data)


@pytest.mark.slow
def test_spawned_processes_train_the_classifier(tmp_path) -> None:
    module, data = method_and_data("master_key", tmp_path)
    trainer = quiet(tmp_path, max_epochs=1, strategy="ddp_spawn", devices=2)
    trainer.fit(module, data)
    assert trainer.state.finished


@pytest.mark.parametrize("name", BUILD)
def test_verbs_in_any_order_on_one_module(tmp_path, name) -> None:
    module, data = method_and_data(name, tmp_path)
    one = quiet(tmp_path, **ONE_EPOCH)
    one.validate(module, data, verbose=False)
    one.predict(module, data)
    one.fit(module, data)
    another = quiet(tmp_path, **ONE_EPOCH)
    another.test(module, data, verbose=False)
    another.fit(module, data)
    assert another.state.finished


@pytest.mark.parametrize("name", BUILD)
def test_finders_run_or_say_why_not(tmp_path, name) -> None:
    module, data = method_and_data(name, tmp_path)
    finder = LearningRateFinder(num_training_steps=5, early_stop_threshold=None)
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[finder])
    if name == "korigins":
        said = r"LearningRateFinder: .* parameter groups \['origins'\] at .*\nleave it out \(Tuner.lr_find, or"
        with pytest.raises(ConfigError, match=said):
            trainer.fit(module, data)
        with pytest.raises(ConfigError, match=said):
            Tuner(quiet(tmp_path, max_epochs=1)).lr_find(module, data)
    else:
        trainer.fit(module, data)
        assert trainer.state.finished
    module, data = method_and_data(name, tmp_path)
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[BatchSizeFinder(steps_per_trial=1, max_trials=1)])
    trainer.fit(module, data)
    assert trainer.state.finished
