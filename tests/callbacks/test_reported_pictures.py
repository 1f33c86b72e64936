"""Under worst, median and best stand the pictures that were tested, as the network saw them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from callbacks import SegmentationReport
from datamodules import SegmentationDataModule
from framework.errors import DataError
from framework.figures import confusion_matrix, segmentation_panel
from models import KMUNet
from tests.callbacks.test_segmentation_report import cells, says

__all__ = ["cells"]

SIDE = 8


def sample(number: int, index: int | None) -> dict[str, torch.Tensor]:
    """What is said is the truth moved by `number` columns: the larger, the worse. One pixel tells the number."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    mask[:, :4] = 1
    image = mask.roll(number, 1).float()[None]
    image[0, 0, 0] += number / 100
    return {"image": image, "mask": mask, **({} if index is None else {"index": torch.tensor(index)})}


class Moved(Dataset):
    """The samples 0 to 3, or some of them, with an index from `first` on, or without one."""

    def __init__(self, numbers: Sequence[int] = range(4), first: int | None = 0) -> None:
        self.numbers, self.first = numbers, first

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return sample(self.numbers[place], None if self.first is None else self.first + place)


class Stream(IterableDataset):
    """The same without places."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (sample(number, number) for number in range(4))


class Reciting(KMUNet):
    """Says what is in the picture, and remembers what it is to draw."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, width=2, stages=1, baseline=2)
        self.drawn: list[tuple[str, int]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return says(image)

    def sample_figures(self, samples: Any, titles: Any) -> Any:
        numbers = [round(100 * float(s["image"][0, 0, 0] % 1)) for s in samples]
        self.drawn = [(t.split("\n")[0], n) for t, n in zip(titles, numbers, strict=True)]
        return super().sample_figures(samples, titles)


def report(tmp_path: Path, loader: Any, model: KMUNet | None = None, **options: Any) -> tuple[Any, pd.DataFrame]:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = Trainer(accelerator="cpu", logger=logger, callbacks=[SegmentationReport()], **{**quiet, **options})
    module = model or Reciting()
    data = {"datamodule": loader} if isinstance(loader, LightningDataModule) else {"dataloaders": loader}
    trainer.test(module, **data, verbose=False)
    return module, pd.read_csv(tmp_path / "run" / "test_images.csv", dtype={"image": str}).set_index("image")


@pytest.mark.parametrize("kind", ["in order", "shuffled", "of a part, shuffled", "indices from 10", "own sampler"])
def test_pictures_are_found_by_their_index(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)  # a permutation without a fixed point
    shuffle = kind in ("shuffled", "of a part, shuffled")
    dataset: Any = Moved((1, 2, 0), 10) if kind == "indices from 10" else Moved((1, 2, 0))
    if kind == "of a part, shuffled":
        dataset = Subset(Moved((0, 0, 1, 2, 0)), [2, 3, 4])
    more: dict[str, Any] = {"sampler": [2, 0, 1]} if kind == "own sampler" else {"shuffle": shuffle}
    module, table = report(tmp_path, DataLoader(dataset, batch_size=2, **more))
    first = {"indices from 10": 10, "of a part, shuffled": 2}.get(kind, 0)
    expected = [f"{title}: {first + place:06d}" for title, place in (("worst", 1), ("median", 0), ("best", 2))]
    assert module.drawn == list(zip(expected, [2, 1, 0], strict=True))
    assert table.index.tolist() == [f"{first + i:06d}" for i in range(3)] + ["all"]


def test_without_an_index_only_a_known_order_is_drawn(tmp_path: Path) -> None:
    dataset = Moved((1, 2, 0), None)
    module, _ = report(tmp_path / "a", DataLoader(dataset, batch_size=2))
    assert [number for _, number in module.drawn] == [2, 1, 0]
    module, table = report(tmp_path / "b", DataLoader(dataset, batch_size=2, shuffle=True))
    assert module.drawn == []
    assert sorted(table["dice"].iloc[:-1]) == pytest.approx([1 / 2, 3 / 4, 1], abs=0.1)


class Own:
    """A loader that is none of torch's."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return ({k: v[None] for k, v in sample(number, number).items()} for number in range(4))


@pytest.mark.parametrize(
    "loader",
    [DataLoader(Stream(), batch_size=2), DataLoader(list(Own()), batch_size=None), Own()],  # type: ignore[arg-type]
    ids=["stream", "batches", "own"],
)
def test_a_loader_without_places_has_its_table_and_no_pictures(tmp_path: Path, loader: Any) -> None:
    module, table = report(tmp_path, loader)
    assert table.index.tolist() == [f"{i:06d}" for i in range(4)] + ["all"]
    assert module.drawn == []
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == {"confusion.png"}


def test_a_sample_that_pads_a_process_has_one_row(tmp_path: Path) -> None:
    for first in (0, None):
        alone = report(tmp_path / f"one {first}", DataLoader(Moved((0, 1, 2), first)))[1]
        pair = {"strategy": "ddp_fork", "devices": 2}
        both = report(tmp_path / f"two {first}", DataLoader(Moved((0, 1, 2), first)), **pair)[1]
        pd.testing.assert_frame_equal(alone, both)


def test_what_is_left_to_the_device_is_done_before_a_picture_is_drawn(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    plain = KMUNet.sample_figures
    monkeypatch.setattr(KMUNet, "sample_figures", lambda self, s, t: (shown.append(s), plain(self, s, t))[1])
    words: Any = {"masks_are": "instances", "batch_size": 1, "test_fraction": 0.6}
    torch.manual_seed(0)
    model = KMUNet(num_classes=3, width=2, stages=1)
    for on_device in (False, True):
        report(tmp_path / str(on_device), SegmentationDataModule(str(cells), on_device=on_device, **words), model)
    for before, after in zip(*shown, strict=True):
        assert int(before["index"]) == int(after["index"])
        assert torch.allclose(before["image"], after["image"], atol=1e-6)
        assert np.array_equal(before["mask"], after["mask"])
    assert max(float(s["image"].abs().max()) for s in shown[1]) < 10


class Brightening(LightningDataModule):
    """A user's, that leaves something to the hook after the transfer."""

    class_names = ("ground", "cell")

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Moved((1, 2, 0)), batch_size=3)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"] + 0.5}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_hooks_and_precision_are_those_of_the_test(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    module, _ = report(tmp_path, Brightening(), KMUNet(num_classes=3, width=2, stages=1), precision=precision)
    module, _ = report(tmp_path, Brightening(), precision=precision)
    assert [number for _, number in module.drawn] == [52, 51, 50]


def test_names_of_other_classes_are_left_out() -> None:
    with pytest.raises(DataError, match="confusion_matrix: expected names of 3 classes, got 2"):
        confusion_matrix(np.ones((3, 3)), ["a", "b"])
    image, mask = np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 4), dtype=np.int64)
    with pytest.raises(DataError, match="segmentation_panel: expected names of 3 classes, got 2"):
        segmentation_panel(image, mask, mask, 3, ["a", "b"])


def test_a_second_test_of_one_trainer_leaves_the_first_ones_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = Trainer(
        accelerator="cpu", logger=logger, callbacks=[SegmentationReport()], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    for numbers in ((0, 1, 2), (0, 0, 0)):
        trainer.test(Reciting(), DataLoader(Moved(numbers)), verbose=False)
    first, second = (pd.read_csv(tmp_path / "run" / f"test_images{n}.csv")["dice"].iloc[-1] for n in ("", "_1"))
    assert first < 1 == second
    for name in ("confusion", "worst_median_best"):
        one, two = ((tmp_path / "run" / "figures" / f"{name}{n}.png").read_bytes() for n in ("", "_1"))
        assert one != two
