"""One short fit of every method on `--device` in the precision of `--dtype`."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

PRECISION = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}

TINY: dict[str, list[str]] = {
    "korigins": ["--model.rfl=8", "--model.width=2", "--data.side=24", "--data.images=14", "--data.radius_range=[3,5]"],
    "kmunet": [
        *("--model.width=2", "--model.stages=1", "--data.images=16", "--data.side=32"),
        *("--trainer.callbacks=null",),
    ],
    "levels_of_experts": ["--data.crop=[32,32]", "--data.steps_per_epoch=4", "--model.width=8"],
    "master_key": [
        *("--data.train_images=64", "--data.val_images=32", "--data.image_size=32", "--trainer.callbacks=null"),
        "--model.model_args={depths: [1, 1, 1, 1], dims: [8, 16, 16, 16], patch_size: 4}",
    ],
    "finola": ["--model.channels=8", "--data.crops=4", "--model.decoder_width=8", "--model.encoder_width=8"],
}


@pytest.mark.parametrize("method", TINY)
def test_a_short_fit(method: str, run: Callable[..., Any], device: str, dtype: torch.dtype) -> None:
    words = [
        *("fit", "-c", f"{method}/quickstart", *TINY[method], f"--trainer.accelerator={_accelerator(device)}"),
        *("--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"),
        *("--trainer.enable_model_summary=false", f"--trainer.precision={PRECISION[dtype]}"),
    ]
    cli = run(*words)
    figures = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert math.isfinite(figures["train/loss"]), figures
    assert any(name.startswith("val/") for name in figures)
    assert all(p.isfinite().all() for p in cli.model.parameters())


def _accelerator(device: str) -> str:
    return "gpu" if device == "cuda" else "cpu"
