"""What a subclass may override and a callback may copy, without losing what is done image by image."""

import copy
import functools
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from callbacks import SegmentationMaps
from datamodules import KodakDataModule
from models import LevelsOfExperts
from tests.models.loe_tools import EXPERTS, fit, make_model, write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", ["one", "two", "three"])


def own_weights(model: LevelsOfExperts, row: int) -> list[torch.Tensor]:
    return [p[row].detach() for p in model.network.parameters()]


class OverridesEverything(LevelsOfExperts):
    """Somebody's: hooks of Lightning's without super()."""

    def configure_callbacks(self) -> list[Any]:
        return []

    def on_train_start(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_train_epoch_end(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def setup(self, stage: str) -> None: ...

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


def test_hooks_overridden_without_super_switch_nothing_off(pictures: Path, tmp_path: Path) -> None:
    options = {"plateau_patience": 0, "plateau_factor": 0.25}
    ours = make_model(lr=2e-2, **options)
    fit(ours, pictures, steps=3, epochs=6).save_checkpoint(tmp_path / "ours.ckpt")
    optimizer = functools.partial(torch.optim.Adam, lr=2e-2)
    theirs = OverridesEverything(experts=EXPERTS, width=8, optimizer=optimizer, **options)  # type: ignore[arg-type]
    fit(theirs, pictures, steps=3, epochs=6).save_checkpoint(tmp_path / "theirs.ckpt")
    assert min(ours.progress["learning_rate_factor"]) < 1
    a, b = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("ours", "theirs"))
    assert a["images"].keys() == b["images"].keys()
    assert a["images"]["history"] == b["images"]["history"]
    for name, values in a["images"]["progress"].items():
        assert torch.equal(values, b["images"]["progress"][name]), name
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    again = OverridesEverything.load_from_checkpoint(tmp_path / "theirs.ckpt")
    assert again.names == ours.names
    assert again.history == ours.history


def test_copies_and_pickles_are_independent_and_know_no_trainer(pictures: Path) -> None:
    model = make_model()
    for _ in range(2):  # before and after a fit
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert made.attached_trainer is None
            assert made.state_dict().keys() == model.state_dict().keys()
            for a, b in zip(made.state_dict().values(), model.state_dict().values(), strict=True):
                assert torch.equal(a, b)
                assert a.data_ptr() != b.data_ptr()
            fit(made, pictures, steps=2, epochs=1)
        fit(model, pictures, steps=2, epochs=1)


@pytest.mark.parametrize("first", [True, False], ids=["before the maps", "after the maps"])
def test_averaged_weights_are_evaluated_kept_and_loaded(pictures: Path, tmp_path: Path, first: bool) -> None:
    def averaging() -> list[Any]:
        own = [EMAWeightAveraging(decay=0.9), SegmentationMaps()]
        return own if first else own[::-1]

    model, plain = make_model(lr=1e-2), make_model(lr=1e-2)
    trainer = fit(model, pictures, steps=4, epochs=3, callbacks=averaging())
    fit(plain, pictures, steps=4, epochs=3)
    assert not torch.equal(model.network.last.weight, plain.network.last.weight)
    assert int(model.segmentation_maps.max()) == int(plain.segmentation_maps.max()) == 3
    assert torch.equal(model.segmentation_maps, plain.segmentation_maps)
    curves = np.array([values for _, values in model.history])
    assert model.progress["best_psnr"].tolist() == pytest.approx(curves.max(0))
    last_is_best = curves.argmax(0) == len(curves) - 1
    assert last_is_best.any()
    for row in np.flatnonzero(last_is_best):  # what was evaluated last is the average, and so is what was kept
        for a, b in zip(own_weights(model, row), model.best.parameters(), strict=True):
            torch.testing.assert_close(a, b[row], rtol=0, atol=1e-6)
    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
    loaded = LevelsOfExperts.load_from_checkpoint(tmp_path / "averaged.ckpt")
    for a, b in zip(loaded.best.parameters(), model.best.parameters(), strict=True):
        assert torch.equal(a, b)


def test_stochastic_weight_averaging_ends(pictures: Path) -> None:
    model = make_model()
    fit(model, pictures, steps=3, epochs=4, callbacks=[SegmentationMaps(), StochasticWeightAveraging(swa_lrs=1e-3)])
    assert all(p.isfinite().all() for p in model.network.parameters())


def test_validate_then_fit_then_test_with_one_module(pictures: Path) -> None:
    model = make_model()
    data = KodakDataModule(root=str(pictures), images="*.png", steps_per_epoch=3)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
               "enable_model_summary": False, "max_epochs": 1}  # fmt: skip
    trainer = Trainer(**options, callbacks=[SegmentationMaps()])
    trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    Trainer(**options, callbacks=[SegmentationMaps()]).fit(model, data)
    assert [step for step, _ in model.history] == [3, 3]


def test_averaging_on_two_processes_is_that_of_one_and_resumes(pictures: Path, tmp_path: Path) -> None:
    def last_of(name: str, epochs: int, **options: Any) -> dict[str, Any]:
        keep = ModelCheckpoint(tmp_path / name, filename="last", save_on_train_epoch_end=True)
        options |= {"callbacks": [EMAWeightAveraging(decay=0.9), SegmentationMaps(), keep]}
        fit(make_model(lr=1e-3), pictures, steps=3, epochs=epochs, enable_checkpointing=True, **options)
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)

    one, two = last_of("one", 2), last_of("two", 2, strategy="ddp_fork", devices=2)
    resumed, whole = last_of("resumed", 3, ckpt_path=str(tmp_path / "two" / "last.ckpt")), last_of("whole", 3)
    for a, b in ((one, two), (whole, resumed)):
        for part in ("state_dict", "current_model_state"):
            assert a[part].keys() == b[part].keys()
            for key, value in a[part].items():
                torch.testing.assert_close(value, b[part][key], rtol=0, atol=1e-6, msg=f"{part} {key}")


def test_without_a_validation_best_weights_are_the_last_and_it_is_said(pictures: Path, tmp_path: Path) -> None:
    data = KodakDataModule(root=str(pictures), images="*.png", steps_per_epoch=3)
    figures = []
    for weights in ("last", "best"):
        model = make_model(lr=2e-2, weights=weights)
        trainer = fit(model, pictures, steps=3, limit_val_batches=0)
        trainer.save_checkpoint(tmp_path / f"{weights}.ckpt")
        loaded = LevelsOfExperts.load_from_checkpoint(tmp_path / f"{weights}.ckpt")
        for one in (model, loaded):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                tests = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
                                callbacks=[SegmentationMaps()]).test(one, data, verbose=False)  # fmt: skip
            said = {str(w.message) for w in caught if "model.weights" in str(w.message)}
            few = "model.weights: best, but no validation in fit has chosen any of one, three, two; "
            assert said == ({few + "the last weights are used"} if weights == "best" else set())
            figures.append(tests[0]["test/psnr"])
    assert figures == pytest.approx([figures[0]] * 4)


def test_only_images_without_an_evaluation_are_their_last_and_a_plain_state_holds(pictures: Path) -> None:
    model = make_model(lr=2e-2, weights="best")
    fit(model, pictures, steps=3)
    best = {name: p.clone() for name, p in model.best.named_parameters()}
    with torch.no_grad():
        [p.add_(1) for p in model.network.parameters()]
    assert all(torch.equal(p, best[name]) for name, p in model.best_parameters().items())
    model.progress["best_psnr"][1] = -torch.inf
    with pytest.warns(UserWarning, match="has chosen any of three; the last"):
        chosen = model.best_parameters()
    last = dict(model.network.named_parameters())
    for name, parameter in chosen.items():
        expected = [best[name][0], last[name][1], best[name][2]]
        assert torch.equal(parameter, torch.stack(expected))
    other = make_model(weights="best")
    other.configure_images(model.names, model.sizes)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(p, best[name]) for name, p in other.best_parameters().items())
    with pytest.warns(UserWarning, match="has chosen any of three; the last"):
        form = model.inference_forms()[0]
    weight = form.module.weights[-1]  # type: ignore[attr-defined]
    name = next(n for n, p in last.items() if p is model.network.last.weight)
    assert torch.equal(weight, chosen[name])
