"""A second bar beside the Trainer's own, for what takes long within one batch."""

import contextlib
from collections.abc import Callable, Iterator

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from tqdm import tqdm


@contextlib.contextmanager
def tile_progress(trainer: Trainer, text: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """Gives a function that moves the bar on by one; it moves nothing where the Trainer shows no bar.

    Args:
        trainer: whose bar it stands beside.
        text: what is counted.
        total: of them.
        done: before.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        progress = bar.progress
        task = progress.add_task(text, total=total, completed=done)

        def step() -> None:
            progress.update(task, advance=1)
            progress.refresh()

        try:
            yield step
        finally:
            progress.remove_task(task)
    elif isinstance(bar, ProgressBar) and trainer.is_global_zero:
        with tqdm(desc=text, total=total, initial=done, leave=False, position=1) as own:

            def advance() -> None:
                own.update()

            yield advance
    else:
        yield lambda: None
