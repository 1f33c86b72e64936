"""Short real fits through `framework fit`: as many steps as fit into the time, their rate, figure and peak memory."""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import append_row, environment

STEPS = "--trainer.max_epochs=-1"


class Fit(NamedTuple):
    """Words behind `framework fit` (or `test`), `{data}` standing for the folder of the data, and the figure kept."""

    name: str
    config: str
    words: tuple[str, ...]
    figure: str
    verb: str = "fit"
    smoke: tuple[str, ...] = ()


KODAK = ("--data.root={data}/kodak", "--data.images=kodim0[1-6].png", "--data.steps_per_epoch=100")
TINY_KODAK = ("--data.crop=[32,32]", "--data.steps_per_epoch=2", "--model.width=8", "--model.experts=[4,2,1,null]")
FITS = [
    Fit("kodak, fine to coarse", "levels_of_experts/table1_fine_to_coarse", KODAK, "val/psnr", smoke=TINY_KODAK),
    Fit("kodak, Multi-Otsu", "levels_of_experts/paper", KODAK, "val/psnr", smoke=TINY_KODAK),
    Fit("kodak, SIREN", "levels_of_experts/table1_siren", KODAK, "val/psnr", smoke=TINY_KODAK),
    Fit(
        "FINOLA, 64 px",
        "finola/quickstart",
        (
            *("--model.image_size=64", "--model.map_size=16", "--model.decoder_width=64", "--data.image_size=64"),
            *("--data.batch_size=64", "--data.num_workers=8", "--data.crops=200"),
        ),
        "val/psnr",
        smoke=("--data.crops=2", "--data.num_workers=0", "--model.channels=8", "--model.decoder_width=8"),
    ),
    Fit(
        "KRFL18, 400 x 400",
        "korigins/e2_krfl18",
        ("--data.num_workers=8",),
        "val/iou",
        smoke=("--data.images=6", "--data.side=32", "--data.num_workers=0", "--data.shapes_per_class=[1,1]"),
    ),
    Fit(
        "KM-UNet, nuclei",
        "kmunet/dsb2018",
        ("--data.root={data}/dsb2018_nuclei", "--data.num_workers=8", "--trainer.callbacks=null"),
        "val/dice",
        smoke=("--data.num_workers=0", "--model.width=2", "--model.stages=1", "--trainer.limit_train_batches=2"),
    ),
    Fit(
        "MobileNet, filters replaced",
        "master_key/mobilenetv2",
        (
            *("--data.root={data}/imagenet_sample_256", "--data.batch_size=64", "--data.num_workers=8"),
            "--model.checkpoint={data}/mobilenetv2_imagenet/mobilenet_v2.fp16.safetensors",
            "--trainer.callbacks.init_args.filters_file={data}/masterkey/mk_filters.npz",
        ),
        "test/top1",
        verb="test",
        smoke=("--data.num_workers=0", "--trainer.limit_test_batches=1", "--trainer.callbacks=null"),
    ),
]


def run(name: str, args: argparse.Namespace) -> None:
    """Gives every fit its share of the time and writes `fits.csv`."""
    path = args.out / f"{name}.csv"
    path.unlink(missing_ok=True)
    begun, seconds = time.monotonic(), args.seconds or 60.0
    for number, fit in enumerate(FITS):
        share = (seconds - (time.monotonic() - begun)) / (len(FITS) - number)
        if share < (1 if args.smoke else 8):
            break
        row = one(fit, share, args)
        print(row, flush=True)
        append_row(path, {**row, **environment()})


def one(fit: Fit, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one of them in its own folder."""
    folder = args.out.resolve() / "runs" / re.sub(r"\W+", "_", fit.name)
    data = args.data.resolve()
    words = [sys.executable, "-m", "benchmarks.device.fit", fit.verb, "-c", fit.config]
    words += [word.format(data=data) for word in fit.words]
    words += [f"--trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}", "--trainer.devices=1"]
    words += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    if fit.verb == "fit":
        # a third of the time is the start
        words += [STEPS, f"--trainer.max_time=00:00:00:{max(2, int(0.65 * seconds)):02d}"]
    if args.smoke:
        words += [*fit.smoke, *(["--trainer.max_steps=2"] if fit.verb == "fit" else [])]
    begun = time.monotonic()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=os.environ, cwd=Path.cwd())
        said, state = done.stdout + done.stderr, "done" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired as cut:
        said, state = str(cut.stdout or ""), "cut off"
    print(said[-3000:], flush=True)
    found = dict(re.findall(r"^(steps|peak_mib|seconds|[a-z]+/\S+)=(\S+)$", said, re.MULTILINE))
    steps, took = found.get("steps", ""), found.get("seconds", "")
    rate = round(float(steps) / float(took), 3) if steps and took and float(took) > 0 else ""
    return {
        "fit": fit.name,
        "state": state,
        "steps": steps,
        "seconds_training": took,
        "steps_per_second": rate,
        "figure": fit.figure,
        "value": found.get(fit.figure, ""),
        "peak_mib": found.get("peak_mib", ""),
        "seconds": round(time.monotonic() - begun, 1),
    }
