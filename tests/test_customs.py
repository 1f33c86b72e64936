"""What people know from Lightning and torch works here too, or ends in a message that says what to do."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection

import datamodules
from callbacks.origin_paths import OriginPaths
from framework.commands.values import arguments_of
from framework.errors import ConfigError
from framework.figures import origin_paths
from framework.figures.origins import nearest_class
from framework.figures.style import PALETTE
from framework.method import BaseMethod
from models import KMUNet, KOriginsSegmentation
from tests.helpers.methods import NoiseData, method_and_data
from tests.helpers.small import Line, Points, PointsData, quiet
from tests.models.loe_tools import make_model


class Returns(Line):
    """A line whose step returns what `make` makes of its loss."""

    def __init__(self, make: Callable[[Tensor], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.make = make

    def step(self, batch, split):
        return self.make(super().step(batch, split)["loss"])


def test_a_step_may_return_the_loss_alone(tmp_path) -> None:
    figures = []
    for make in (lambda loss: loss, lambda loss: {"loss": loss}):
        torch.manual_seed(0)
        trainer, module = quiet(tmp_path, max_epochs=2, enable_checkpointing=False), Returns(make)
        trainer.fit(module, PointsData(batch_size=5))
        figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert figures[0] == figures[1]
    assert figures[0]["val/loss"] > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda loss: None, r"Returns.step: expected a dict with `loss`.*, got NoneType"),
        (lambda loss: (loss, loss), r"Returns.step: expected a dict with `loss`.*, got tuple"),
        (lambda loss: {"lose": loss}, r"Returns.step: expected a dict with `loss`.*, got a dict with lose"),
        (lambda loss: loss.expand(2), r"Returns.step: expected .* a scalar.*, got a loss of shape \(2,\)"),
        (lambda loss: {"loss": 0.5}, r"Returns.step: expected a dict with `loss`, a scalar.*, got float"),
    ],
)
def test_another_return_is_refused_by_name(tmp_path, make, said) -> None:
    with pytest.raises(ConfigError, match=said):
        quiet(tmp_path, max_epochs=1).fit(Returns(make), PointsData(batch_size=5))


class Measured(Line):
    """A line with a metric that gets nothing to count."""

    def update_metrics(self, metrics, outputs, batch) -> None:
        BaseMethod.update_metrics(self, metrics, outputs, batch)

    def configure_metrics(self, split):
        return {"mse": MeanSquaredError()}


def test_metrics_without_anything_to_count_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"Measured.step: expected preds too, which the metrics count, got loss"):
        quiet(tmp_path, max_epochs=1).fit(Measured(), PointsData(batch_size=5))


# ------------------------------------------------------------------------------------------- states and initial values


class FirstOrigins(Callback):
    """Remembers the origins of the first layer when training starts."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.origins = pl_module.network.origin_parameters()[0].detach().clone()


def begins_at(module: KOriginsSegmentation, folder) -> Tensor:
    first = FirstOrigins()
    trainer = quiet(folder, max_epochs=1, enable_checkpointing=False, callbacks=[first])
    trainer.fit(module, NoiseData(1, 16))
    return first.origins


def korigins() -> KOriginsSegmentation:
    return KOriginsSegmentation(rfl=8, width=2, class_mean=[0.2, 0.8], class_std=[0.1, 0.1])


def test_a_state_that_was_given_counts_as_restored_and_a_copy_is_as_it_was(tmp_path) -> None:
    untrained, given = korigins(), korigins()
    copied = copy.deepcopy(untrained)
    given.load_state_dict(untrained.state_dict())
    before = untrained.network.origin_parameters()[0].detach().clone()
    expected = torch.tensor([0.0, 0.4, 0.6, 1.0])  # mean - 2 std and mean + 2 std of both classes
    for module in (untrained, copied):
        begins = begins_at(module, tmp_path)
        torch.testing.assert_close(begins.flatten().sort().values, expected)
    assert torch.equal(begins_at(given, tmp_path), before)
    assert not torch.allclose(before.flatten().sort().values, expected)


# ----------------------------------------------------------------------------------------------------- paths of origins


def test_the_paths_begin_before_the_first_step_also_after_a_resumption(tmp_path) -> None:
    paths, first = OriginPaths(every_n_steps=1), FirstOrigins()
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[paths, first])
    trainer.fit(korigins(), NoiseData(1, 16))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    state = paths.state_dict()
    assert state["epochs"] == [0.0, 0.5, 1.0]
    np.testing.assert_array_equal(np.float32(state["paths"][0]), first.origins.mean(1).numpy())
    assert state["paths"][1] != state["paths"][0]
    again = OriginPaths(every_n_steps=1)
    trainer = quiet(tmp_path, max_epochs=2, callbacks=[again])
    trainer.fit(korigins(), NoiseData(1, 16), ckpt_path=tmp_path / "whole.ckpt")
    assert again.state_dict()["epochs"] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_path_has_the_colour_of_the_class_that_it_began_beside() -> None:
    # class 1 has no pixels, class 2 lies at 7, the background at 1
    histograms = np.array([[4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]])
    edges = np.linspace(0, 8, 5)
    np.testing.assert_array_equal(nearest_class(np.array([-3.0, 3.9, 4.1, 99.0]), histograms, edges), [0, 0, 2, 2])
    figure = origin_paths(np.array([[6.5, 0.0], [0.5, 7.0]]), np.array([0.0, 1.0]), histograms, edges)
    colors = [line.get_color() for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert colors == [PALETTE[2], "0.55"]


# --------------------------------------------------------------------------------------------------------- data modules


# a training batch of Kodak is all pictures of a rank, so it has neither batches to choose nor a last one
@pytest.mark.parametrize("name", sorted({*datamodules.__all__} - {"KodakDataModule"}))
def test_every_data_module_has_the_keys_of_the_base(name: str) -> None:
    assert {"batch_size", "num_workers", "seed", "drop_last"} <= set(arguments_of(getattr(datamodules, name)))


# ---------------------------------------------------------------------------------------- batches, datasets and names


class Without(NoiseData):
    """Samples that lack a key, or are tuples."""

    def __init__(self, channels: int, side: int, key: str | None) -> None:
        super().__init__(channels, side)
        self.key = key

    def configure_dataset(self, split):
        samples = [super(Without, self).configure_dataset(split)[i] for i in range(4)]
        if self.key is None:
            return [(s["image"], s["mask"]) for s in samples]
        return [{name: value for name, value in s.items() if name != self.key} for s in samples]


STEPS = {"korigins": "image", "kmunet": "mask", "master_key": "label", "finola": "image", "masked_finola": "index"}


@pytest.mark.parametrize("name", STEPS)
def test_what_a_batch_lacks_is_named(tmp_path, name) -> None:
    module, data = method_and_data(name, tmp_path)
    assert isinstance(data, NoiseData)
    kind, words = type(module).__name__, {"max_epochs": 1, "enable_checkpointing": False}
    for key, got in ((STEPS[name], f"without `{STEPS[name]}`"), (None, "got a list")):
        with pytest.raises(ConfigError, match=f"{kind}: expected a batch with .*`.*{got}; give a dataset whose"):
            quiet(tmp_path, **words).fit(module, Without(data.channels, data.side, key))
    for key, got in (("index", "without `index`"), (None, "got a list")):
        with pytest.raises(ConfigError, match=f"{kind}.*: expected a batch with .*`.*{got}; give a dataset whose"):
            quiet(tmp_path, **words).predict(module, Without(data.channels, data.side, key))


def test_what_a_batch_of_levels_of_experts_lacks_is_named(tmp_path) -> None:
    module = make_model(experts=[2, None])
    module.configure_images(["a"], [[16, 16]])
    trainer = quiet(tmp_path, max_epochs=1)
    with pytest.raises(ConfigError, match="LevelsOfExperts: expected a batch with .* got a dict with image, mask, l"):
        trainer.fit(module, NoiseData(3, 16))


def test_batches_that_are_no_dicts_are_refused_where_nothing_counts_them(tmp_path) -> None:
    class Pairs(Line):
        def step(self, batch, split):
            return self.layer(batch[0]).square().mean()

    class Counted(Pairs):
        def samples_in(self, batch):
            return len(batch[0])

    points = DataLoader(TensorDataset(torch.rand(4, 1), torch.rand(4, 1)), batch_size=2)
    with pytest.raises(ConfigError, match="Pairs.samples_in: expected a dict of tensors .*, got list; give a dataset"):
        quiet(tmp_path, max_epochs=1).fit(Pairs(), points)
    quiet(tmp_path, max_epochs=1, enable_checkpointing=False).fit(Counted(), points)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Points(4)[i] for i in range(4)])


class Gives(PointsData):
    def __init__(self, split: str, made: Any) -> None:
        super().__init__(batch_size=5)
        self.split, self.made = split, made

    def configure_dataset(self, split):
        return self.made if split == self.split else super().configure_dataset(split)


def test_no_validation_set_is_an_empty_one(tmp_path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(Line(), Gives("val", None))
    assert "train/loss" in trainer.callback_metrics
    assert "val/loss" not in trainer.callback_metrics
    with pytest.raises(ConfigError, match="Gives: the val split is empty"):
        trainer.validate(Line(), Gives("val", None))


@pytest.mark.parametrize(
    ("split", "made", "got"),
    [("train", None, "NoneType"), ("train", Stream(), "Stream"), ("val", Stream(), "Stream"), ("test", None, "None")],
)
def test_a_dataset_without_a_length_is_named(tmp_path, split, made, got) -> None:
    trainer = quiet(tmp_path, max_epochs=1)
    verb = trainer.test if split == "test" else trainer.fit
    said = rf"Gives.configure_dataset\('{split}'\): expected a dataset with __len__ .*, got a {got}"
    with pytest.raises(ConfigError, match=said):
        verb(Line(), Gives(split, made))


def test_a_loader_of_ones_own_takes_any_dataset(tmp_path) -> None:
    class Streams(Gives):
        def val_dataloader(self):
            return DataLoader(self.datasets["val"], batch_size=2)

    trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(Line(), Streams("val", Stream()))
    assert "val/loss" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("data", 3, "call it otherwise"),
        ("metrics", {"mse": MeanSquaredError()}, "return them from configure_metrics"),
        ("metrics", MetricCollection({"mse": MeanSquaredError()}), "return them from configure_metrics"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_a_name_that_the_base_class_needs_is_refused(name, value, advice, early) -> None:
    class Clashes(BaseMethod):
        def __init__(self) -> None:
            if early:
                setattr(self, name, value)
            super().__init__()
            setattr(self, name, value)

    with pytest.raises(ConfigError, match=rf"Clashes.{name}: expected a name that BaseMethod .*, got a .*; {advice}"):
        Clashes()


def test_a_rate_may_be_set_before_everything_else() -> None:
    class Rated(Line):
        def __init__(self) -> None:
            self.lr = 0.25
            super().__init__()

        @property
        def data(self):  # one's own, which may be set
            return self.__dict__.get("mine")

        @data.setter
        def data(self, value) -> None:
            self.__dict__["mine"] = value

    module = Rated()
    module.data = 3
    assert (module.lr, module.data) == (0.25, 3)


@pytest.mark.parametrize("kind", [KOriginsSegmentation, KMUNet])
def test_more_classes_than_8_bits_hold_are_refused(kind) -> None:
    kind(num_classes=256, width=2)
    with pytest.raises(ConfigError, match="model.num_classes.*: expected 2 to 256 .*, got 257"):
        kind(num_classes=257, width=2)
