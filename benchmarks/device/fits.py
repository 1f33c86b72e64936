"""Short real fits through `framework fit`: as many steps as fit into the time, their rate, figure and peak memory."""

import argparse
import gc
import re
import time
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.common import append_row, environment
from framework.main import main


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
            *("--data.root={data}/imagenet_sample_256", "--data.partial=true", "--data.batch_size=64"),
            *("--data.num_workers=8", "--data.calibration_step=2"),
            "--model.checkpoint={data}/mobilenetv2_imagenet/mobilenet_v2.fp16.safetensors",
            "--trainer.callbacks.init_args.filters_file={data}/masterkey/mk_filters.npz",
        ),
        "test/top1",
        verb="test",
        smoke=("--data.num_workers=0", "--trainer.limit_test_batches=1", "--trainer.callbacks=null"),
    ),
]


class Clock(Callback):
    """Seconds between the end of the first step and of the last: the first one compiles and allocates."""

    latest: "Clock"

    def __init__(self) -> None:
        self.steps, self.first, self.last = 0, 0.0, 0.0
        Clock.latest = self

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Notes the time after every step; the host runs ahead of a device by a few steps at most."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.steps += 1


def run(name: str, args: argparse.Namespace) -> None:
    """Gives every fit its share of the time and writes `fits.csv`; one process, for starting one costs seconds."""
    path = args.out / f"{name}.csv"
    path.unlink(missing_ok=True)
    begun, seconds = time.monotonic(), args.seconds or 60.0
    for number, fit in enumerate(FITS):
        share = (seconds - (time.monotonic() - begun)) / (len(FITS) - number)
        if share < (0 if args.smoke else 6):
            break
        row = one(fit, share, args)
        print(row, flush=True)
        append_row(path, {**row, **environment()})
        if args.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def words_of(fit: Fit, seconds: float, args: argparse.Namespace) -> list[str]:
    """The command line."""
    folder = args.out.resolve() / "runs" / re.sub(r"\W+", "_", fit.name)
    words = [fit.verb, "-c", fit.config, *(word.format(data=args.data.resolve()) for word in fit.words)]
    words += [f"--trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}", "--trainer.devices=1"]
    words += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"]
    if fit.verb == "fit":
        # what is left is for the start, the evaluation and the figures
        words += ["--trainer.max_epochs=-1", f"--trainer.max_time=00:00:00:{max(2, int(0.7 * seconds)):02d}"]
    if args.smoke:
        words += [*fit.smoke, *(["--trainer.max_steps=2"] if fit.verb == "fit" else [])]
    return [*words, "--trainer.callbacks+=benchmarks.device.fits.Clock"]


def one(fit: Fit, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one of them in its own folder; a failure is a row."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun, figures, failure = time.monotonic(), {}, ""
    Clock()
    try:
        figures = main(words_of(fit, seconds, args)).trainer.callback_metrics
    except (Exception, SystemExit) as error:  # its message is in the log
        failure = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    clock = Clock.latest
    took = clock.last - clock.first
    return {
        "fit": fit.name,
        "steps": clock.steps,
        "steps_per_second": round((clock.steps - 1) / took, 3) if took > 0 else "",
        "figure": fit.figure,
        "value": round(float(figures[fit.figure]), 4) if fit.figure in figures else "",
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if args.device == "cuda" else "",
        "seconds": round(time.monotonic() - begun, 1),
        "failure": failure,
    }
