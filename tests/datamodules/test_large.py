"""Pictures that are read, predicted and written by windows: the same files as of the whole, resumable, one message."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from rich.progress import Progress
from skimage import io

from callbacks import PredictionWriter
from datamodules import SegmentationDataModule, large
from datamodules.unfinished import FilePlane, Unfinished
from framework import blocks, signals
from framework.errors import ConfigError, DataError
from models import KMUNet
from tests.datamodules.test_predictions import QUIET
from tests.test_loading import picture

KINDS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "tiles": {"tile": (32, 32), "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    for i, (name, options) in enumerate(KINDS.items()):
        image, _ = picture(i, (150 + 7 * i, 190))
        tifffile.imwrite(
            tmp_path / "new" / f"{name}.tif", image, resolution=(20000, 10000), resolutionunit="CENTIMETER", **options
        )
    return tmp_path


class Bright(KMUNet):
    """Ground, bright or between, by the mean of 5 x 5 pixels: what it says is known to be some of each."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, 1)
        return -40 * (mean - torch.tensor([0.1, 0.9, 0.5])[:, None, None]).abs()


def network(tile: Any = 48) -> Bright:
    torch.manual_seed(3)
    return Bright(num_classes=3, width=2, stages=2, baseline=2, tile=tile)


def data_of(folder: Path, **arguments: Any) -> SegmentationDataModule:
    common: dict[str, Any] = {"masks_are": "instances", "batch_size": 1, "normalize": "percentile"}
    return SegmentationDataModule(str(folder / "new"), **{**common, **arguments})


def predict(folder: Path, out: str, model: Any = None, more: list[Callback] | None = None, **arguments: Any) -> Path:
    writer = PredictionWriter(str(folder / out), probabilities=True, overlays=True)
    trainer = Trainer(**QUIET, callbacks=[writer, *(more or [])], default_root_dir=folder)
    trainer.predict(model or network(), data_of(folder, **arguments), return_predictions=False)
    return folder / out


def assert_same(one: Path, other: Path) -> None:
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in sorted(one.iterdir()):
        if path.suffix == ".csv":
            first, second = pd.read_csv(path), pd.read_csv(other / path.name)
            pd.testing.assert_frame_equal(first, second, rtol=1e-5)
        elif path.suffix == ".png":
            assert np.array_equal(io.imread(path), io.imread(other / path.name)), path.name
        else:
            with tifffile.TiffFile(path) as a, tifffile.TiffFile(other / path.name) as b:
                first, second = a.asarray(), b.asarray()
                assert a.series[0].axes == b.series[0].axes
                for tag in (259, 282, 283, 296):
                    assert a.pages[0].tags[tag].value == b.pages[0].tags[tag].value
            assert first.dtype == second.dtype
            if "probabilities" in path.name:
                np.testing.assert_allclose(first, second, atol=2e-5)
            else:
                assert np.array_equal(first, second), path.name


@pytest.mark.parametrize("kind", ["instances", "classes"])
def test_windows_give_the_files_of_the_whole(folder: Path, kind: str) -> None:
    arguments: dict[str, Any] = {} if kind == "instances" else {"masks_are": "classes", "labels": [7, 0, 300]}
    whole = predict(folder, "whole", network(None), **arguments)
    windows = predict(folder, "windows", **arguments)
    assert len(list(whole.iterdir())) == 3 * len(KINDS) + 1
    assert_same(whole, windows)
    mask = tifffile.imread(whole / "mapped_mask.tif")
    table = pd.read_csv(whole / "objects.csv")
    own = table[table["image"] == "mapped"]
    assert len(np.unique(mask)) > 2
    assert len(own) == (mask.max() if kind == "instances" else len(own))
    assert own["area_um2"].tolist() == pytest.approx((own["area"] * 0.5).tolist())
    probabilities = tifffile.imread(whole / "mapped_probabilities.tif")
    assert probabilities.shape == (3, *mask.shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)


class Stop(Callback):
    """Ctrl-C behind so many tiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiles: int) -> None:
        self.tiles, self.seen = tiles, 0
        plain = large.LargePicture.put

        def put(picture: Any, *arguments: Any) -> None:
            plain(picture, *arguments)
            self.seen += 1
            if self.seen == self.tiles:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(large.LargePicture, "put", put)


def test_ctrl_c_keeps_the_tiles_and_the_next_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = predict(folder, "whole")
    with monkeypatch.context() as patch:
        stop = Stop(patch, 27)  # in the second picture
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            predict(folder, "out", more=[stop])
    printed = capsys.readouterr().out
    assert "tiles of" in printed
    assert f"--trainer.callbacks.output_dir={folder / 'out'}" in printed
    finished = {p.name for p in (folder / "out").iterdir() if not p.name.startswith(".")}
    assert len(finished) == 3  # the first picture's
    before = {p: p.stat().st_mtime_ns for p in (folder / "out").iterdir() if p.name in finished}
    with monkeypatch.context() as patch:
        counting = Stop(patch, 10**9)
        out = predict(folder, "out", more=[counting])
    assert "1 of 3 pictures" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    tiles = {name: -(-(150 + 7 * i) // 48) * -(-190 // 48) for i, name in enumerate(KINDS)}
    assert counting.seen == sum(tiles.values()) - 27
    assert_same(whole, out)


def in_a_fork(task: Callable[[], None]) -> int | None:
    """Exit status of a process that does it, below 0 for the signal that ended it."""

    def alone() -> None:
        torch.set_num_threads(1)  # the pool's threads are not forked
        task()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("moment", ["tiles", "objects"])
def test_a_killed_run_goes_on(folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(folder, "whole")
    place, name = (large.LargePicture, "put") if moment == "tiles" else (large.ObjectSums, "add")
    plain: Any = getattr(place, name)
    seen: list[int] = []

    def dies(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        seen.append(1)
        if len(seen) == 27 if moment == "tiles" else len(seen) == 14:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dies)
        assert in_a_fork(lambda: (predict(folder, "out"), None)[1]) == -signal.SIGKILL
    assert (folder / "out" / ".unfinished").is_dir()
    assert not (folder / "out" / "objects.csv").exists()
    assert len(list((folder / "out").glob("*_mask.tif"))) == 1
    assert_same(whole, predict(folder, "out"))


def test_what_was_begun_with_another_network_is_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(folder, "out", more=[Stop(patch, 3)])
    other = network()
    other.network.head.bias.data += 1
    with pytest.raises(ConfigError, match=r"\.unfinished was begun with another network or other settings; remove it"):
        predict(folder, "out", other)
    # a picture that has changed begins anew
    image, _ = picture(50, (150, 190))
    tifffile.imwrite(folder / "new" / "mapped.tif", image)
    out = predict(folder, "out")
    assert_same(predict(folder, "whole"), out)


def test_one_process_writes_into_a_folder(folder: Path) -> None:
    held = Unfinished(folder / "out", {})
    with pytest.raises(ConfigError, match="another process writes predictions into"):
        predict(folder, "out")
    held.release()


def test_nothing_is_replaced_and_nothing_is_computed_before_that_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    tifffile.imwrite(folder / "out" / "tiles_overlay.png", np.zeros((3, 3), np.uint8))
    monkeypatch.setattr(Bright, "forward", lambda *_: pytest.fail("computed"))
    with pytest.raises(DataError, match=r"tiles_overlay\.png is there already, and no file is replaced"):
        predict(folder, "out")


def test_two_processes_share_the_pictures(folder: Path, run: Any) -> None:
    whole = predict(folder, "whole")
    trainer = Trainer(**QUIET, default_root_dir=folder)
    model = network()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "x.ckpt")
    run(
        "predict", f"--model={__name__}.Bright", "--ckpt_path", str(folder / "x.ckpt"), "--data=SegmentationDataModule",
        f"--data.root={folder / 'new'}",
        "--data.masks_are=instances", "--data.batch_size=1", "--data.normalize=percentile",
        "--trainer.callbacks=PredictionWriter", f"--trainer.callbacks.output_dir={folder / 'out'}",
        "--trainer.callbacks.probabilities=true", "--trainer.callbacks.overlays=true", "--trainer.accelerator=cpu",
        "--trainer.strategy=ddp_fork", "--trainer.devices=2",
    )  # fmt: skip
    assert_same(whole, folder / "out")


@pytest.mark.parametrize(("tile", "most"), [(48, 20000), (None, 20000), (48, 200)])
def test_a_full_disk_is_one_message(folder: Path, tile: int | None, most: int) -> None:
    def fills() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        try:
            predict(folder, "out", network(tile))
        except DataError as error:
            text = "cannot be written (File too large); make room or give another folder"
            os._exit(5 if text in str(error) else 6)

    assert in_a_fork(fills) == 5


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_a_bar_counts_the_tiles(
    folder: Path, kind: type[Callback], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: dict[str, int] = {}
    names: dict[Any, str] = {}
    add, update = Progress.add_task, Progress.update

    def added(self: Progress, description: str, *arguments: Any, **more: Any) -> Any:
        task = add(self, description, *arguments, **more)
        names[task] = description
        return task

    def updated(self: Progress, task: Any, **more: Any) -> None:
        steps[names[task]] = steps.get(names[task], 0) + more.get("advance", 0)
        update(self, task, **more)

    monkeypatch.setattr(Progress, "add_task", added)
    monkeypatch.setattr(Progress, "update", updated)
    writer = PredictionWriter(str(folder / "out"))
    trainer = Trainer(**{**QUIET, "enable_progress_bar": True}, callbacks=[writer, kind()], default_root_dir=folder)
    trainer.predict(network(), data_of(folder), return_predictions=False)
    tiles = {f"tiles of {name}": -(-(150 + 7 * i) // 48) * -(-190 // 48) for i, name in enumerate(KINDS)}
    if kind is RichProgressBar:
        assert {name: steps[name] for name in tiles} == tiles
        assert steps["objects of mapped"] == 2 * 3 * 3
    else:
        shown = capsys.readouterr().err
        assert all(f"{name}: " in shown for name in tiles)


def test_a_plane_holds_windows(tmp_path: Path) -> None:
    plane = FilePlane(tmp_path / "x", (9, 11), np.uint32)
    values = np.arange(99, dtype=np.uint32).reshape(9, 11)
    plane.write(0, 0, values[:5])
    plane.write(5, 3, values[5:, 3:])
    assert np.array_equal(plane.read(2, 9, 3, 10), values[2:, 3:10])
    assert plane.read(6, 7, 0, 3).tolist() == [[0, 0, 0]]
    plane.close()


def test_no_signal_has_arrived() -> None:
    assert not signals.arrived()
