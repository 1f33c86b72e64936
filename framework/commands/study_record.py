"""Figures of a run over its epochs, and the expressions by which a study keeps one number of them."""

import dataclasses
import math
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from framework.errors import ConfigError

#: figure -> (epoch counted from 1, value), in order
Curves = Mapping[str, Sequence[tuple[int, float]]]

_FORM = re.compile(r"(?P<figure>\S+?)(?:\s+(?P<what>max|min|mean|last|first\s*(?P<sign><=|>=|<|>)\s*(?P<goal>\S+)))?")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class StudyError(ConfigError):
    """What one cell has shown to be wrong with the whole study."""


class MissingFigure(StudyError):
    """A study keeps what its runs do not have."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """`val/iou max`, `val/loss last`, `val/iou first >= 0.99` (the epoch, or `> N` when it was never), `test/psnr`."""

    figure: str
    what: str = "last"
    sign: str = ">="
    goal: float = 0.0

    @classmethod
    def parse(cls, key: str, text: Any) -> "Kept":
        """Reads an expression.

        Raises:
            ConfigError: another form.
        """
        match = _FORM.fullmatch(str(text).strip())
        try:
            if match is not None:
                what = (match["what"] or "last").split()[0].rstrip("<>=")
                return cls(match["figure"], what, match["sign"] or ">=", float(match["goal"] or 0))
        except ValueError:
            pass
        raise ConfigError(
            f"{key}: expected a figure with max, min, mean, last or `first >= NUMBER` after it, such as `val/iou max`, "
            f"got {text!r}"
        )

    def of(self, curves: Curves) -> float | int | str:
        """The number that is kept: NaN, a step that diverged, is the largest and smallest only where there is no other.

        Raises:
            MissingFigure: the run has no such figure.
        """
        curve = curves.get(self.figure)
        if not curve:
            raise MissingFigure(f"keep: the run has no figure {self.figure}; there are {', '.join(sorted(curves))}")
        values = [value for _, value in curve]
        if self.what == "first":
            reached = [epoch for epoch, value in curve if _SIGNS[self.sign](value, self.goal)]
            return reached[0] if reached else f"> {curve[-1][0]}"
        if self.what == "mean":
            return math.fsum(values) / len(values)
        numbers = [value for value in values if not math.isnan(value)] or values
        return {"max": max(numbers), "min": min(numbers), "last": values[-1]}[self.what]

    def best(self, values: Mapping[str, float]) -> str:
        """The label whose value is the best one; the first of several. NaN, a run that diverged, is the worst."""
        numbers = {name: value for name, value in values.items() if not math.isnan(value)} or values
        return (min if self.what == "min" else max)(numbers, key=lambda name: numbers[name])


class RunRecord(Callback):
    """Keeps every figure of every epoch, and the time a run took, also over a kill and a resumption.

    Attributes:
        curves: figure -> [epoch counted from 1, value], `val/...` after a validation, the others after an epoch.
        parameters: of the module, those of grid cells not yet used included.
        finished: early stopping had ended the run when the checkpoint was written; it does not remember that itself.
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.parameters = 0
        self.steps = 0
        self.finished = False
        self._before = (0.0, 0.0)
        self._start = self._now()
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remembers the trainer, which knows when it is about to stop."""
        self._trainer = trainer

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the figures of a validation inside fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(trainer, lambda name: name.startswith("val/"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the other figures, and what the module is."""
        self._keep(trainer, lambda name: not name.startswith("val/"))
        self.parameters = sum(p.numel() for p in pl_module.parameters())
        self.steps = trainer.global_step

    def _keep(self, trainer: Trainer, wanted: Callable[[str], bool]) -> None:
        for name, value in trainer.callback_metrics.items():
            if wanted(name):
                self.curves.setdefault(name, []).append((trainer.current_epoch + 1, float(value)))

    @property
    def seconds(self) -> tuple[float, float]:
        """(wall, processor) seconds of the run so far, the time before a resumption included."""
        wall, processor = self._now()
        return self._before[0] + wall - self._start[0], self._before[1] + processor - self._start[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain form."""
        stops = [c for c in getattr(self._trainer, "callbacks", []) if isinstance(c, EarlyStopping)]
        over = any(stop.stopping_reason != EarlyStoppingReason.NOT_STOPPED for stop in stops)
        curves = {name: [list(pair) for pair in curve] for name, curve in self.curves.items()}
        plain = {"curves": curves, "parameters": self.parameters, "steps": self.steps}
        return {**plain, "seconds": list(self.seconds), "finished": over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.curves = {name: [(int(e), float(v)) for e, v in curve] for name, curve in state_dict["curves"].items()}
        self.parameters, self.steps = state_dict["parameters"], state_dict["steps"]
        self.finished = state_dict["finished"]
        self._before = (state_dict["seconds"][0], state_dict["seconds"][1])
        self._start = self._now()
