"""`framework fit` that says at its end how many steps it took, how long, and how much memory: one line each.

python -m benchmarks.device.fit fit -c korigins/quickstart
"""

import sys
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from framework.main import main


class Clock(Callback):
    """Seconds between the first and the last step, the first left out: it compiles and allocates."""

    first = last = 0.0
    steps = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Notes the time after every step, the device waited for at the first only."""
        if self.steps == 0:
            self.first = time.perf_counter()
        self.steps += 1
        self.last = time.perf_counter()


def report(words: list[str]) -> None:
    """Runs the command and prints what it left."""
    clock, begin = Clock(), Trainer.__init__

    def with_clock(self: Trainer, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)  # type: ignore[arg-type]
        self.callbacks.append(clock)  # type: ignore[attr-defined]

    Trainer.__init__ = with_clock  # type: ignore[method-assign, assignment]
    cli = main(words)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        print(f"peak_mib={torch.cuda.max_memory_allocated() / 2**20:.0f}")
    print(f"steps={max(0, clock.steps - 1)}\nseconds={clock.last - clock.first:.3f}")
    for name, value in cli.trainer.callback_metrics.items():
        print(f"{name}={float(value):.5f}")


if __name__ == "__main__":
    report(sys.argv[1:])
