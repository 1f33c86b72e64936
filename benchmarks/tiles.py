"""What do tiles cost, and what do they save?

- `seam`: how far the logits of tiles are from those of the whole picture, and how many predicted classes differ;
- `speed`: pictures of 2048 x 2048 in tiles beside the same pictures as a whole, in turn, one process;
- `memory`: `framework predict` of one TIFF of 12,000 x 12,000 pixels of 16 bits, made here, from the file to the mask
  of objects, `objects.csv` and overlay, in a process of its own: its largest resident memory beyond that after the
  imports.

    python -m benchmarks.tiles --out results/tiles.csv
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from lightning.pytorch import Trainer
from scipy import ndimage

from benchmarks.common import append_row, environment
from framework.tiling import AUTO, whole
from models import KMUNet, KOriginsSegmentation

SIDE = 2048

METHODS: dict[str, Any] = {
    "korigins": lambda: KOriginsSegmentation(
        rfl=8, num_classes=3, width=4, origins="random", deep_origins=0, deep_mean=0.5, deep_std=1.0
    ),
    "kmunet": lambda: KMUNet(num_classes=3, width=2, stages=2),
}

#: so that a child knows its memory before any work: the largest and the present resident memory, in MiB
CHILD = """
import json, resource, sys, time
import framework.main, callbacks, datamodules, models, framework.commands.cli
def resident(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
import torch
torch.set_num_threads({threads})
imports, start = resident("VmRSS"), time.perf_counter()
open("/proc/self/clear_refs", "w").write("5")  # forgets the largest so far
framework.main.main({words!r})
print("measured", json.dumps([imports, resident("VmHWM"), time.perf_counter() - start, time.process_time()]))
"""


def cells(side: int, seed: int) -> np.ndarray:
    """(side, side) uint16 discs of a few hundred pixels on a dark, uneven ground, some of them touching."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    bright = np.zeros((side, side), bool)
    for cy, cx, radius in zip(
        *rng.uniform(0, side, (2, side**2 // 1600)), rng.uniform(5, 14, side**2 // 1600), strict=True
    ):
        top, left = max(0, int(cy - radius)), max(0, int(cx - radius))
        part = np.s_[top : int(cy + radius) + 2, left : int(cx + radius) + 2]
        bright[part] |= (y[part] - cy) ** 2 + (x[part] - cx) ** 2 < radius**2
    light = 1000 + 200 * np.sin(y / 300) * np.cos(x / 400)
    return (light + 2000 * ndimage.gaussian_filter(bright.astype(np.float32), 1) + rng.normal(0, 60, y.shape)).astype(
        np.uint16
    )


def large_tiff(path: Path, side: int) -> None:
    """A TIFF of `side` x `side`, compressed in tiles of 512, written tile by tile from one patch of cells."""
    patch = cells(1024, 0)

    def parts() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(1)
        for _ in range((-(-side // 512)) ** 2):
            y, x = rng.integers(0, 512, 2)
            yield np.ascontiguousarray(np.roll(patch, (int(y), int(x)), (0, 1))[:512, :512])

    with tifffile.TiffWriter(path) as writer:
        writer.write(
            parts(), shape=(side, side), dtype=np.uint16, tile=(512, 512), compression="zlib", photometric="minisblack",
            resolution=(20000, 20000), resolutionunit="CENTIMETER", maxworkers=1,
        )  # fmt: skip


def standardized(image: np.ndarray) -> torch.Tensor:
    """(H, W) uint16 -> (1, 1, H, W) of mean 0 and deviation 1, as `normalize: zscore` gives it."""
    values = torch.from_numpy(image.astype(np.float32))[None, None]
    return (values - values.mean()) / values.std()


def trained(name: str, steps: int = 200) -> Any:
    """A network that tells cells, their borders and the ground from each other: what it says must not be one class."""
    torch.manual_seed(0)
    method, rng = METHODS[name](), np.random.default_rng(0)
    pixels = cells(1024, 5)
    clean = ndimage.gaussian_filter(pixels.astype(np.float32), 1.0)
    truth = torch.from_numpy(np.select([clean > 2000, clean > 1500], [1, 2], 0))[None]
    image = standardized(pixels)
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    method.train()
    for _ in range(steps):
        y, x = (int(v) for v in rng.integers(0, 1024 - 96, 2))
        logits = method(image[..., y : y + 96, x : x + 96])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, truth[:, y : y + 96, x : x + 96]).backward()
        optimizer.step()
    return method.eval()


def seam(name: str, side: int) -> dict[str, object]:
    """Tiles of a quarter of the side against the whole."""
    method, image = trained(name), standardized(cells(side, 9))
    with torch.inference_mode():
        expected = method(image)
        got = whole(method, image, method.network.stride, method.network.reach, side // 4)
    scale = float(expected.abs().max())
    return {
        "tile": side // 4,
        "largest_difference": f"{float((got - expected).abs().max()) / scale:.2e}",
        "classes_that_differ": int((got.argmax(1) != expected.argmax(1)).sum()),
    }


def speed(name: str, side: int, repeats: int) -> dict[str, object]:
    """Processor seconds of both, in turn: those of another process are not counted."""
    method, image = trained(name), standardized(cells(side, 9))
    ways = {
        "whole": lambda: method(image),
        "tiles": lambda: whole(method, image, method.network.stride, method.network.reach, "auto"),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            start = time.process_time()
            with torch.inference_mode():
                run()
            times[way].append(time.process_time() - start)
    seconds = {way: statistics.median(values) for way, values in times.items()}
    return {
        "tile": AUTO,
        "seconds": round(seconds["tiles"], 3),
        "seconds_whole": round(seconds["whole"], 3),
        "throughput_to_whole": round(seconds["whole"] / seconds["tiles"], 3),
    }


def memory(name: str, side: int, threads: int) -> dict[str, object]:
    """`framework predict` with the checkpoint alone."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "new").mkdir()
        large_tiff(root / "new" / "large.tif", side)
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        method = trained(name)
        method.preprocessing = {
            "class_path": "datamodules.segmentation.SegmentationDataModule", "channels": 1, "normalize": "zscore",
            "masks_are": "instances",
        }  # fmt: skip
        trainer = Trainer(accelerator="cpu", default_root_dir=root, **quiet)
        trainer.strategy.connect(method)
        trainer.save_checkpoint(root / "x.ckpt")
        words = [
            "predict", "--ckpt_path", str(root / "x.ckpt"), "--data.root", str(root / "new"), "--data.batch_size=1",
            "--trainer.accelerator=cpu", "--trainer.callbacks=PredictionWriter", "--trainer.logger=false",
            f"--trainer.callbacks.output_dir={root / 'out'}", "--trainer.callbacks.overlays=true",
            f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(words=words, threads=threads)],
            capture_output=True,
            text=True,
            check=False,
        )
        line = next((line for line in done.stdout.splitlines() if line.startswith("measured ")), None)
        if line is None:
            raise RuntimeError(done.stderr[-2000:])
        imports, highest, seconds, processor = json.loads(line.removeprefix("measured "))
        mask = root / "out" / "large_mask.tif"
        with tifffile.TiffFile(mask) as file:
            shape, dtype = file.series[0].shape, file.series[0].dtype
        assert shape == (side, side)
        return {
            "tile": AUTO,
            "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1),
            "mib_after_imports": round(imports),
            "mib_beyond_imports": round(highest - imports),
            "objects": len(pd.read_csv(root / "out" / "objects.csv", usecols=["object"])),
            "mask_mib": round(mask.stat().st_size / 2**20, 1),
            "mask_dtype": str(dtype),
        }


COLUMNS = (
    "tile", "seconds", "seconds_whole", "throughput_to_whole", "processor_seconds", "largest_difference",
    "classes_that_differ", "mib_after_imports", "mib_beyond_imports", "objects", "mask_mib", "mask_dtype",
)  # fmt: skip


def main() -> None:
    """Writes a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/tiles.csv"))
    parser.add_argument("--what", nargs="+", default=["seam", "speed", "memory"], choices=["seam", "speed", "memory"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--side", type=int, default=12000, help="of the picture for `memory`")
    parser.add_argument("--small", type=int, default=SIDE, help="side of the pictures for `seam` and `speed`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for what in arguments.what:
        torch.set_num_threads(1 if what == "memory" else arguments.threads)  # there the child has the threads
        for name in arguments.methods:
            side = arguments.side if what == "memory" else arguments.small
            if what == "seam":
                found = seam(name, side)
            elif what == "speed":
                found = speed(name, side, arguments.repeats)
            else:
                found = memory(name, side, arguments.threads)
            row = {"what": what, "method": name, "side": side, **{column: found.get(column, "") for column in COLUMNS}}
            append_row(arguments.out, {**row, **environment()})
            print(*(f"{k} {v}" for k, v in row.items() if v != ""), flush=True)


if __name__ == "__main__":
    main()
