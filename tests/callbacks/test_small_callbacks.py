"""Figures, origins, probe, class maps and filters on batches, precisions and second runs of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from callbacks import FigureWriter, FilterReplacement, LinearProbe, OriginPaths, SegmentationMaps, SplinePruning
from callbacks import origin_paths as drawing
from framework.errors import ConfigError, DataError
from framework.nn import KOrigins
from tests.callbacks.test_filter_replacement import Plain, data
from tests.callbacks.test_grid_extension import cells, quiet, small
from tests.models.loe_tools import fit, make_model, write_pictures


class Samples(Dataset):
    """Eight samples of any kind."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Linear(LightningModule):
    """A linear layer over pictures of 2 by 2 pixels, with origins in front of it."""

    ignore_index: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.origins = KOrigins(1, torch.tensor([0.2, 0.8]))
        self.layer = nn.Linear(12, 3)
        self.drawn: Any = None

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(self.origins(image).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        image = batch["image"] if isinstance(batch, dict) else batch
        return self.features(image).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)

    def figures(self, batch: Any) -> dict[str, Any]:
        self.drawn = batch
        return {}


def labelled(index: int) -> dict[str, Any]:
    image = torch.full((1, 2, 2), index / 8)
    mask = torch.tensor([[0, 1], [index % 2, 255]])
    return {"image": image, "mask": mask, "label": torch.tensor(index % 2), "name": f"picture {index}"}


# ---------------------------------------------------------------------- figures


def test_lists_in_a_batch_are_cut_as_tensors_are(tmp_path: Path) -> None:
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        images = [s["image"] for s in samples]
        return {"image": torch.stack(images), "images": images, "scale": torch.tensor(2.0), "classes": ["a", "b", "c"]}

    module, loader = Linear(), DataLoader(Samples(labelled), batch_size=8)
    several = DataLoader(Samples(labelled), batch_size=8, collate_fn=collate)
    for batches in (loader, several):
        trainer = quiet(tmp_path, max_epochs=1, callbacks=[FigureWriter(max_samples=3)], logger=CSVLogger(tmp_path))
        trainer.fit(module, batches, batches)
        assert len(module.drawn["image"]) == 3
        if batches is loader:
            assert module.drawn["name"] == [f"picture {i}" for i in range(3)]
    assert len(module.drawn["images"]) == 3
    assert module.drawn["classes"] == ["a", "b", "c"]


def test_nothing_of_another_fit_is_drawn(tmp_path: Path) -> None:
    writer, loader = FigureWriter(), DataLoader(Samples(labelled), batch_size=4)
    modules = Linear(), Linear()
    for module, validation in zip(modules, (loader, None), strict=True):
        trainer = quiet(tmp_path, max_epochs=1, callbacks=[writer], logger=CSVLogger(tmp_path))
        trainer.fit(module, loader, validation)
    assert modules[0].drawn is not None
    assert modules[1].drawn is None


# ---------------------------------------------------------------------- origins


@pytest.fixture
def histograms(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    plain = drawing.origin_paths
    monkeypatch.setattr(
        drawing, "origin_paths", lambda p, e, h, *rest, **more: (seen.append(h), plain(p, e, h, *rest, **more))[1]
    )
    return seen


def test_pixels_without_a_label_are_in_no_histogram(tmp_path: Path, histograms: list[np.ndarray]) -> None:
    module = Linear()
    module.ignore_index = 255
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[OriginPaths()], logger=CSVLogger(tmp_path))
    trainer.fit(module, DataLoader(Samples(labelled), batch_size=3))
    assert [h.sum(1).tolist() for h in histograms] == [[12, 12]]


@pytest.mark.parametrize("keys", [None, {"image"}, {"mask", "image"}])
def test_batches_of_any_kind_train(tmp_path: Path, keys: set[str] | None, histograms: list[np.ndarray]) -> None:
    def make(index: int) -> Any:
        made = labelled(index)
        return made["image"] if keys is None else {key: made[key] for key in keys}

    trainer = quiet(
        tmp_path, max_epochs=1, callbacks=[OriginPaths()], logger=CSVLogger(tmp_path), precision="bf16-true"
    )
    trainer.fit(Linear(), DataLoader(Samples(make), batch_size=3))
    assert len(histograms) == (keys is not None and "mask" in keys)


def test_paths_of_a_second_fit_begin_anew(tmp_path: Path) -> None:
    paths = OriginPaths(every_n_steps=1)
    for _ in range(2):
        module = Linear()
        quiet(tmp_path, max_epochs=1, callbacks=[paths]).fit(module, DataLoader(Samples(labelled), batch_size=4))
        assert (len(paths._paths), len(paths._pixels)) == (3, 2)
        assert paths._paths[0] == pytest.approx([0.2, 0.8])


class Late(Linear):
    """Has its origins from `configure_model` on."""

    def __init__(self) -> None:
        super().__init__()
        del self.origins

    def configure_model(self) -> None:
        self.origins = KOrigins(1, torch.tensor([0.2, 0.8]))


def test_origins_may_be_made_late(tmp_path: Path) -> None:
    paths = OriginPaths(every_n_steps=1)
    quiet(tmp_path, max_epochs=1, callbacks=[paths]).fit(Late(), DataLoader(Samples(labelled), batch_size=4))
    assert len(paths._paths) == 3

    class Never(Late):
        def configure_model(self) -> None:
            self.origins = nn.Identity()

    with pytest.raises(ConfigError, match="OriginPaths: Never has no framework.nn.KOrigins layer"):
        quiet(tmp_path, callbacks=[OriginPaths()]).fit(Never(), DataLoader(Samples(labelled)))


# ---------------------------------------------------------------------- probe


class Splits(LightningDataModule):
    """The samples as every split."""

    def __init__(self, make: Any = labelled, splits: tuple[str, ...] = ("train", "val")) -> None:
        super().__init__()
        self.datasets = {split: Samples(make) for split in splits}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.datasets["train"], batch_size=4)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "32-true"])
def test_the_probe_works_in_every_precision(tmp_path: Path, precision: Any, capsys: Any) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[LinearProbe()], precision=precision)
    trainer.fit(Linear(), Splits())
    assert "on 8 validation images" in capsys.readouterr().out


def test_data_that_the_probe_cannot_work_on_is_refused_before_training(tmp_path: Path) -> None:
    trainer = quiet(tmp_path, max_epochs=1, callbacks=[LinearProbe()])
    with pytest.raises(ConfigError, match="LinearProbe: expected a data module .* got none in train and val of None"):
        trainer.fit(Linear(), DataLoader(Samples(labelled), batch_size=4))
    with pytest.raises(ConfigError, match="got none in val of Splits"):
        trainer.fit(Linear(), Splits(splits=("train",)))
    with pytest.raises(ConfigError, match="expected samples with image and label, got others in the train split"):
        trainer.fit(Linear(), Splits(lambda i: {"image": labelled(i)["image"]}))
    assert trainer.global_step == 0


# ---------------------------------------------------------------------- filters


class Columns(LightningDataModule):
    """Labels (B, 1)."""

    def test_dataloader(self) -> DataLoader:
        return DataLoader(
            Samples(lambda i: {"image": torch.rand(3, 16, 16), "label": torch.tensor([i % 8])}), batch_size=4
        )


def test_labels_in_a_column_are_refused(tmp_path: Path) -> None:
    trainer = quiet(tmp_path, callbacks=[FilterReplacement(["random"])])
    with pytest.raises(DataError, match=r"expected label \(B,\), one class per image, got \(4, 1\)"):
        trainer.test(Plain(), Columns(), verbose=False)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_filters_are_recalibrated_in_every_precision(tmp_path: Path, precision: Any, norm: bool) -> None:
    callback = FilterReplacement(["A", "random"], recalibrate="affine")
    trainer = quiet(tmp_path, callbacks=[callback], precision=precision)
    trainer.test(Plain(norm), data(calibration_images=6), verbose=False)
    assert callback.table is not None
    assert callback.table["recalibrated"].tolist() == [False, False, True, False, True]


class Telling(Plain):
    """Keeps what it says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        self.said.append(logits.float())
        return logits


@pytest.mark.parametrize("inference_mode", [True, False])
def test_every_bank_is_evaluated_under_autocast(tmp_path: Path, inference_mode: bool) -> None:
    torch.manual_seed(0)
    module = Telling(norm=False)
    module.said = []
    callback = FilterReplacement(["A", "random"], share_prefix=False)
    options: dict[str, Any] = {"precision": "bf16-mixed", "inference_mode": inference_mode, "limit_test_batches": 1}
    quiet(tmp_path, callbacks=[callback], **options).test(module, data(), verbose=False)
    _, original, first, second = module.said  # the test step's before the callback's
    assert not torch.equal(original, first)
    assert not torch.equal(first, second)


class LatePlain(Plain):
    """Has its network from `configure_model` on."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.net]  # a list's content is no part of the module
        self.net = nn.Sequential()

    def configure_model(self) -> None:
        self.net = self.kept[0]


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_filters_may_be_made_late(tmp_path: Path, verb: str) -> None:
    callback = FilterReplacement(["A"])
    getattr(quiet(tmp_path, callbacks=[callback]), verb)(LatePlain(), data(), verbose=False)
    assert callback.table is not None
    assert callback.table["bank"].tolist() == ["original", "A"]

    class Never(LatePlain):
        def configure_model(self) -> None: ...

    with pytest.raises(ConfigError, match="depthwise"):
        getattr(quiet(tmp_path, callbacks=[FilterReplacement(["A"])]), verb)(Never(), data(), verbose=False)


# ---------------------------------------------------------------------- no file is replaced


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_second_verb_replaces_no_table_and_no_figure(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = quiet(tmp_path, callbacks=[FilterReplacement(["A"])], logger=logger)
    for _ in range(2):
        trainer.test(Plain(), data(), verbose=False)
    tables = [pd.read_csv(tmp_path / "run" / f"filter_replacement{n}.csv") for n in ("", "_1")]
    assert tables[0]["explained_energy"].iloc[1] != tables[1]["explained_energy"].iloc[1]
    figures = {"filter_replacement.png", "filter_replacement_1.png", "explained_energy.png", "explained_energy_1.png"}
    assert figures <= names(tmp_path)


def test_a_second_fit_replaces_no_smaller_network(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        callback = SplinePruning([1], fraction=0.4, granularity="channel", structural=True)
        quiet(tmp_path, max_epochs=2, callbacks=[callback]).fit(small(), cells())
        kept.append((tmp_path / "checkpoints" / "shrunk.ckpt").read_bytes())
    assert kept[0] == kept[1]
    assert {"shrunk.ckpt", "shrunk_1.ckpt"} <= names(tmp_path)


def test_class_maps_and_images_of_every_fit_are_told(tmp_path: Path, capsys: Any) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["a", "b"])
    maps = SegmentationMaps()
    for name in ("one", "two", "two"):
        logger = CSVLogger(tmp_path, name="", version=name)
        fit(make_model(), pictures, steps=1, epochs=1, logger=logger, callbacks=[maps])
        assert "maps of 2 images cost" in capsys.readouterr().out
    tables = {"images.csv", "segmentation_maps.csv", "segmentation_maps.png"}
    assert tables <= names(tmp_path / "one")
    second = {"images_1.csv", "segmentation_maps_1.csv", "segmentation_maps_1.png"}
    assert tables | second <= names(tmp_path / "two")
    fit(make_model(experts=[2, 2, 2]), pictures, steps=1, epochs=1, callbacks=[maps])
    assert "cost" not in capsys.readouterr().out  # nothing of the fit before
