"""How many operations does a training step hand to the device: by the form a CPU takes, and by the accelerator's?

    python -m benchmarks.launches --out results/launches.csv

Counted on a CPU, the accelerator's form on a simulated one: forward, backward, optimizer and figures of the second
step, views and allocations left out. Numbers of launches are these, or fewer where a compiler fuses. `waits` are the
places where the host would wait for the device. The networks are as deep as the recipes and narrow: no count changes.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import append_row, environment
from benchmarks.device.count import Launches
from benchmarks.device.methods import ADAM, METHODS, Batch, on_device, pictures, prepared, stepper, whole_images
from framework.method import BaseMethod
from models import FinolaAutoencoder, KMUNet, LevelsOfExperts
from models.levels_of_experts.per_image import PerImage
from tests.helpers.accelerator import Accelerator


def experts(pictures: int, side: int) -> tuple[BaseMethod, Batch]:
    """Networks with the paper's tiles and a map of uneven classes."""
    method = LevelsOfExperts([side // 4, 8, 4, "map"], width=8)
    method.configure_images([str(i) for i in range(pictures)], [[side, side]] * pictures)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    classes = ((y + 0.3 * x).div(side / 9).sin() * 1.9 + 2).long().clamp(0, 3).to(torch.uint8)
    method.set_segmentation_maps(classes.expand(pictures, -1, -1).contiguous())
    method._build_metrics()
    return method, whole_images(pictures, side, side)


def large_map() -> tuple[BaseMethod, Batch]:
    """FINOLA with the papers' map: launches grow with its side."""
    sizes: dict[str, int] = {"encoder_width": 8, "decoder_width": 8, "encoder_depth": 1}
    method = FinolaAutoencoder(channels=8, image_size=64, map_size=64, stride=8, optimizer=ADAM, **sizes)  # type: ignore[arg-type]
    method._build_metrics()
    return method, pictures(2, 64)


def counted(make: Callable[[], tuple[BaseMethod, Batch]], device: str, waits: list) -> int:
    """Operations of the second step; `waits` keeps that step's only."""
    method, batch = make()
    step = stepper(method, on_device(method, batch, device))
    step()
    waits.clear()
    with Launches() as seen:
        step()
    return seen.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128, help="of the pictures of levels_of_experts")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--out", type=Path, required=True, help="CSV file, written anew")
    parser.add_argument("--only", nargs="*", help="rows to count; all by default")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*self.trainer.*")
    args.out.unlink(missing_ok=True)
    # without a Trainer they look at every step
    KMUNet._check_finite = lambda *_: None  # type: ignore[method-assign]
    PerImage._freeze_diverged = lambda *_: None  # type: ignore[method-assign]
    makes: dict[str, Callable[[], tuple[BaseMethod, Batch]]] = {
        name: lambda name=name: prepared(name, small=True)  # type: ignore[misc]
        for name in METHODS
        if not name.startswith("levels")
    }
    makes["finola, map 64 x 64"] = large_map
    for count in args.pictures:
        name = f"levels_of_experts, {count} x {args.side} x {args.side}"
        makes[name] = lambda count=count: experts(count, args.side)  # type: ignore[misc]
    for name in makes if args.only is None else args.only:
        make = makes[name]
        on_cpu = counted(make, "cpu", [])
        with Accelerator() as accelerator:
            there = counted(make, "cuda", accelerator.waits)
        row = {"method": name, "cpu_form": on_cpu, "accelerator_form": there, "waits": len(accelerator.waits)}
        print(row, flush=True)
        append_row(args.out, {**row, **environment()})


if __name__ == "__main__":
    main()
