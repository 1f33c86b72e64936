"""Contracts hold under a plain Trainer, whatever hooks a user's module overrides without `super()`."""

import copy
import inspect

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks

from framework.distributed import checksum
from framework.errors import CheckpointError, DivergenceError
from framework.lifecycle import FIRST, LAST, EpochFigures
from framework.method import BaseMethod
from tests.helpers.small import Line, PointsData, quiet

# hooks that Lightning must find working: data, gradients, modes of layers
NEEDED = {
    "configure_gradient_clipping", "optimizer_zero_grad", "optimizer_step", "lr_scheduler_step",
    "on_validation_model_eval", "on_validation_model_train", "on_validation_model_zero_grad", "on_test_model_eval",
    "on_test_model_train", "on_predict_model_eval", "on_predict_model_train", "transfer_batch_to_device",
    "on_before_batch_transfer", "on_after_batch_transfer", "train_dataloader", "val_dataloader", "test_dataloader",
    "predict_dataloader", "configure_sharded_model",
}  # fmt: skip
HOOKS = sorted(
    name
    for base in (ModelHooks, DataHooks, CheckpointHooks)
    for name, function in vars(base).items()
    if inspect.isfunction(function) and not name.startswith("_") and name not in NEEDED
)


def deaf(base: type[BaseMethod]) -> type[BaseMethod]:
    """`base` with every hook of Lightning overridden by one that does nothing and calls nobody."""
    silent = {name: (lambda self, *args, **kwargs: None) for name in [*HOOKS, "configure_callbacks"]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

    return type(f"Deaf{base.__name__}", (base,), {**silent, "configure_optimizers": configure_optimizers})


DeafLine = deaf(Line)


def test_every_hook_that_the_base_class_has_is_overridden_in_these_tests() -> None:
    lightnings = {name for name in dir(LightningModule) if name.startswith(("on_", "setup", "teardown", "configure_"))}
    ours = [base for base in BaseMethod.__mro__ if base.__module__.startswith("framework.")]
    overridden = {name for name in lightnings if any(name in vars(base) for base in ours)}
    assert overridden <= set(vars(DeafLine))
    assert {"setup", "on_train_start", "on_validation_epoch_start", "on_save_checkpoint"} <= set(vars(DeafLine))


@pytest.mark.parametrize("kind", [Line, DeafLine])
def test_the_contracts_are_there_once_however_often_the_trainer_runs(tmp_path, kind) -> None:
    trainer, module = quiet(tmp_path, max_epochs=1), kind()
    trainer.fit(module, PointsData(batch_size=5))
    trainer.validate(module, PointsData(batch_size=5), verbose=False)
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert all(kinds.count(contract) == 1 for contract in FIRST + LAST)
    assert kinds.index(EpochFigures) < 2


@pytest.mark.parametrize("kind", [Line, DeafLine])
def test_initialised_once_before_training_and_never_after_a_checkpoint(tmp_path, kind) -> None:
    class Looks(Callback):
        def on_fit_start(self, trainer, pl_module):
            seen.append((float(pl_module.seen), len(trainer.optimizers)))

    seen: list[tuple[float, int]] = []
    keep = ModelCheckpoint(dirpath=tmp_path, filename="kept", enable_version_counter=False)
    module = kind()
    quiet(tmp_path, max_epochs=1, callbacks=[keep, Looks()]).fit(module, PointsData(batch_size=5))
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=Looks()).fit(module, PointsData(batch_size=5))
    assert seen == [(10.0, 1), (10.0, 1)]
    stored = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    stored["state_dict"]["seen"] += 1
    torch.save(stored, tmp_path / "kept.ckpt")
    for path, fresh in (
        (None, kind.load_from_checkpoint(tmp_path / "kept.ckpt", weights_only=True)),
        (tmp_path / "kept.ckpt", kind()),
    ):
        quiet(tmp_path, max_epochs=2, enable_checkpointing=False).fit(fresh, PointsData(batch_size=5), ckpt_path=path)
        assert float(fresh.seen) == 11.0
    by_hand = kind()
    by_hand.load_state_dict(stored["state_dict"])
    by_hand.initialise(None)
    assert float(by_hand.seen) == 11.0


def test_a_plain_loader_gives_no_data_module(tmp_path) -> None:
    data = PointsData(batch_size=5)
    data.setup("fit")
    module = Line()
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(module, data.train_dataloader())
    assert float(module.seen) == 1.0


class Spoilt(Line):
    def step(self, batch, split):
        outputs = super().step(batch, split)
        return {"loss": outputs["loss"] * (float("nan") if self.current_epoch == 1 else 1.0)}


@pytest.mark.parametrize("kind", [Spoilt, deaf(Spoilt)])
def test_a_loss_that_is_not_finite_stops(tmp_path, kind) -> None:
    trainer = quiet(tmp_path, max_epochs=3, callbacks=[ModelCheckpoint(save_on_train_epoch_end=True)])
    with pytest.raises(DivergenceError, match=r"nan at step 2 \(epoch 1\); the last good checkpoint is .*ckpt"):
        trainer.fit(kind(), PointsData(batch_size=5))


def test_checkpoints_say_whose_they_are_and_are_refused_elsewhere(tmp_path) -> None:
    class Other(Line):
        pass

    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(DeafLine(), PointsData(batch_size=5))
    path = trainer.checkpoint_callback.best_model_path
    assert torch.load(path, weights_only=True)["class_path"].endswith("DeafLine")
    with pytest.raises(CheckpointError, match=r"holds a .*DeafLine, but the model is a .*Other"):
        quiet(tmp_path, max_epochs=2).fit(deaf(Other)(), PointsData(batch_size=5), ckpt_path=path)


def test_an_epoch_cut_short_starts_again_and_schedulers_catch_up(tmp_path) -> None:
    kind = deaf(Line)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    kind.configure_optimizers = configure_optimizers
    keep = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, filename="{step}", dirpath=tmp_path)
    quiet(tmp_path, max_epochs=2, callbacks=[keep]).fit(kind(), PointsData(batch_size=5))
    for step, steps_in_all in ((2, 4), (3, 5)):  # the end of the first epoch, the middle of the second
        trainer = quiet(tmp_path, max_epochs=2, enable_checkpointing=False)
        trainer.fit(kind(), PointsData(batch_size=5), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert trainer.global_step == steps_in_all
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**2


@pytest.mark.parametrize("kind", [Line, DeafLine])
def test_buffers_are_equal_in_validation_and_no_step_has_a_collective(tmp_path, kind) -> None:
    class Uneven(Callback):
        """3 validation samples on 2 ranks: a broadcast in a step would wait for ever."""

        def on_validation_epoch_start(self, trainer, pl_module):
            pl_module.norm.running_mean.fill_(float(trainer.global_rank))

        def on_validation_batch_start(self, trainer, pl_module, *args):
            assert not trainer.model.broadcast_buffers
            assert float(pl_module.norm.running_mean) == 0.0

        def on_train_batch_start(self, trainer, pl_module, *args):
            assert trainer.model.broadcast_buffers

    words = {"strategy": "ddp_fork", "devices": 2, "callbacks": [Uneven()], "num_sanity_val_steps": 0}
    quiet(tmp_path, max_epochs=2, **words).fit(kind(), PointsData(batch_size=5, eval_batch_size=1))


def test_initial_values_are_rank_zeros(tmp_path) -> None:
    class Differs(Line):
        def initialise(self, data):
            self.seen.fill_(7.0 + self.global_rank)
            with torch.no_grad():
                self.layer.weight.fill_(7.0 + self.global_rank)

    class Equal(Callback):
        def on_train_start(self, trainer, pl_module):
            assert (float(pl_module.seen), float(pl_module.layer.weight.detach())) == (7.0, 7.0)

    quiet(tmp_path, max_epochs=1, strategy="ddp_fork", devices=2, callbacks=[Equal()]).fit(
        Differs(), PointsData(batch_size=5)
    )


@pytest.mark.parametrize("verbs", ["validate fit", "test fit", "predict fit validate", "fit test fit predict fit"])
@pytest.mark.parametrize("trainers", ["one", "several"])
def test_any_order_of_verbs(tmp_path, verbs, trainers) -> None:
    module, data = Line(), PointsData(batch_size=5)
    module.predict_step = lambda batch, batch_idx: module.layer(module.norm(batch["image"]))
    one = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    for number, verb in enumerate(verbs.split()):
        trainer = one if trainers == "one" else quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
        if verb == "fit":
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
        before = checksum(module.state_dict())
        getattr(trainer, verb)(module, data)
        assert (checksum(module.state_dict()) != before) == (verb == "fit"), (number, verb)


def test_a_copy_is_independent(tmp_path) -> None:
    module = Line()
    trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, PointsData(batch_size=5))
    other = copy.deepcopy(module)
    assert other.attached_trainer is None
    assert other.data is None
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(other, PointsData(batch_size=5))
    assert module.attached_trainer is trainer
    assert not torch.equal(module.layer.weight, other.layer.weight)
