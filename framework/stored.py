"""The part of BaseMethod that is kept: plain hyper-parameters, checkpoints that are checked, copies and pickles."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import Any, Self

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from framework import preprocessing
from framework.distributed import say
from framework.errors import CheckpointError
from framework.guards import kept
from framework.optimization import OptimizedModule
from framework.resume import apply_changed_settings, settle_epoch
from framework.serialization import NotPlain, class_path, is_class, to_plain
from framework.trust import check_stored_arguments


class StoredModule(OptimizedModule):
    """A module that is stored in plain form and comes back with its optimizer; see BaseMethod."""

    _initialised: bool
    #: False once it has been trained or restored; an evaluation initialises, and leaves it a beginner
    _begins_anew: bool = True
    preprocessing: dict[str, Any] | None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Lightning's, for a file from anywhere: nothing that it names is called or imported (`framework.trust`).

        `weights_only` is true unless it is given. Arguments of the class that are given win over the file's.

        Raises:
            CheckpointError: no whole checkpoint, or one that names what it must not.
        """
        kwargs |= check_stored_arguments(checkpoint_path, cls, kwargs)
        if len(args) < 4 and kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without Trainer and without the graphs of tensors kept from a step."""
        state = super().__getstate__()
        return {k: v.detach() if isinstance(v, Tensor) and not v.is_leaf else v for k, v in state.items()}

    def save_hyperparameters(
        self, *args: Any, ignore: Sequence[str] | str | None = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Lightning's, with every value in plain form, so that checkpoints load with `weights_only=True`.

        A value without a plain form (a module, an open file) is left out with a warning.
        """
        if frame is None:
            current = inspect.currentframe()
            frame = current.f_back if current is not None else None
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        for name in list(self._hparams):
            try:
                self._hparams[name] = to_plain(self._hparams[name])
            except NotPlain as value:
                warnings.warn(
                    f"{type(self).__name__}: argument {name!r} ({value}) has no plain form and is not stored; "
                    f"pass {name}=... to load_from_checkpoint",
                    stacklevel=2,
                )
                del self._hparams[name]
        self._hparams_initial = copy.deepcopy(self._hparams)

    @kept("_store")
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; the class and how the optimizer was built are stored by then."""

    def _store(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = class_path(type(self))
        preprocessing.keep(self, checkpoint)
        hparams = checkpoint.get("hyper_parameters", {})
        if "pretrained" in hparams:
            # a class rebuilt from it would download weights only to overwrite them
            hparams["pretrained"] = False
        if self._optimizer_settings is not None:
            checkpoint["optimizer_settings"] = self._optimizer_settings

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's; a method with restored weights is not initialised any more."""
        if "initialise" not in self.__dict__.get("_running", ()):
            self._begins_anew = False
        self._initialised = True
        return super().load_state_dict(*args, **kwargs)

    @kept("_restore")
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; the checkpoint has been checked and put between two epochs by then."""

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another class's checkpoint; rewinds one from the middle of an epoch to that epoch's start.

        In fit, settings of optimizer and scheduler that differ from the checkpoint's replace them (`framework.resume`).

        Raises:
            CheckpointError: the checkpoint belongs to another class.
            ConfigError: a setting that the checkpoint's optimizer cannot take over.
        """
        stored = checkpoint.get("class_path")
        if stored is not None and not is_class(stored, type(self)):
            raise CheckpointError(
                f"ckpt_path: the checkpoint holds a {stored}, but the model is a {class_path(type(self))}; "
                "give the configuration of the first or a checkpoint of the second"
            )
        self._initialised, self._begins_anew = True, False
        preprocessing.restore(self, checkpoint)
        if (epoch := settle_epoch(checkpoint)) is not None:
            say(f"The checkpoint was saved in the middle of epoch {epoch}: epoch {epoch} starts again.")
        if (trainer := self.attached_trainer) is not None and trainer.state.fn == TrainerFn.FITTING:
            apply_changed_settings(checkpoint, self._build_optimizer, self.hparams)
