"""LightningCLI with bare class names, one run folder, a fixed precedence and short errors.

Precedence: the command line wins over the checkpoint, the checkpoint over configuration files; every value that one
layer takes from another is printed. LightningCLI lets the checkpoint win silently, even over the class.
"""

import argparse
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelSummary
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

import callbacks
import datamodules
import framework
import models
from framework.commands.messages import in_chain
from framework.commands.precedence import layer_arguments
from framework.commands.run_folder import default_loggers, devices_of_torchrun, folder_without_logger, given_back
from framework.commands.trainer_arguments import check_trainer
from framework.commands.values import arguments_of, check_seed, check_values
from framework.compat import HookedCLI, is_parsing_error
from framework.distributed import say
from framework.elastic import meet_anew
from framework.errors import ConfigError, FrameworkError
from framework.lifecycle import FiniteLoss, missing_contracts
from framework.method import BaseMethod
from framework.outputs import optional_threads
from framework.protocols import MeasuresSamples
from framework.signals import handed_on
from framework.suggest import shorten
from framework.trust import class_named

DEFAULT_SEED = 0
RUNS = "runs"


# Lightning's advice that does not apply: loaders are light, runs get a folder each, epochs may be short.
_IRRELEVANT = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    "The dirpath has changed.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*args parameter is intended to run from within Python.*",
    ".*exists and is not empty.*",
    ".*was deprecated in v4.49.0.*",
)


def run_trainer_verb(words: Sequence[str]) -> "FrameworkCLI":
    """Builds and runs fit, validate, test or predict."""
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message=rf"\s*{message}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    listening = signal.getsignal(signal.SIGINT)
    meet_anew()
    try:
        with optional_threads(), given_back():
            return FrameworkCLI(args=list(words))
    finally:
        # Lightning leaves a process that goes on after Ctrl-C deaf to the next one.
        if threading.current_thread() is threading.main_thread() and listening is not None:
            signal.signal(signal.SIGINT, listening)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage().lower() and "litmodels" not in record.getMessage().lower()


class FrameworkCLI(HookedCLI):
    """The command line of all methods.

    Args:
        args: verb, options and values, e.g. `["fit", "-c", "korigins/quickstart", "--model.width", "8"]`.
    """

    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule

    def __init__(self, args: ArgsType = None) -> None:
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=DEFAULT_SEED,
            auto_configure_optimizers=False,
            parser_kwargs={**strict, **{verb: dict(strict) for verb in self.subcommands()}},
            args=args,
        )

    # ------------------------------------------------------------------ parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--name`, the run folder's name, and `--initial_weights`."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="Run folder below `runs`; by default the config's name."
        )
        parser.add_argument(
            "--initial_weights",
            type=str | None,
            default=None,
            help="Checkpoint of which fit takes over whatever fits, to be trained further on other data.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses in layers: config files, then the checkpoint's hyper-parameters, then the command line."""
        words = list(sys.argv[1:] if args is None else args)  # type: ignore[arg-type]
        self.layers = layer_arguments(words, list(self.subcommands()), Path(RUNS))
        for line in self.layers.notes:
            say(line)
        try:
            # LightningCLI warns when args and sys.argv are both there, as they are under pytest.
            self.config = parser.parse_args(self.layers.words)
        except Exception as error:  # jsonargparse lets through what its values raise
            if ours := in_chain(error, FrameworkError):
                raise ours from None
            keys = self.keys_of(self.layers.verb)
            raise ConfigError(shorten(str(error), keys, class_names(), argument_names())) from error
        if self.layers.verb:
            values = self.config[self.layers.verb].as_dict()
            check_values(values)
            check_seed(values.get("seed_everything"))
        if self.layers.checkpoint:
            self.config[self.layers.verb]["ckpt_path"] = str(self.layers.checkpoint)

    def take_checkpoint(self) -> None:
        """Says what the command line changes of the checkpoint, and refuses what it cannot change."""
        if self.layers.hparams is None:
            return
        final = yaml.safe_load(self.parser.dump(self.config, format="yaml"))[self.layers.verb].get("model", {})
        chosen = class_named(final.get("class_path", ""))
        self.layers.check_overrides(final.get("init_args", {}), getattr(chosen, "decided_by_state", ()))
        for line in self.layers.command_line_overrides(final.get("init_args", {})):
            say(line)

    def instantiate_classes(self) -> None:
        """As LightningCLI, with jsonargparse's wrapping taken off our errors."""
        try:
            super().instantiate_classes()
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            if ours := in_chain(error, FrameworkError):
                raise ours from None
            if missing := in_chain(error, ImportError):
                built = re.findall(r"class_path '([\w.]+)'", str(error)) or ["a class of the configuration"]
                raise ConfigError(
                    f"{built[-1].rpartition('.')[2]}: expected its package to be installed, got "
                    f"{str(missing).splitlines()[0]}; install it and start again"
                ) from error
            if isinstance(error, argparse.ArgumentError) or is_parsing_error(error):
                raise ConfigError(shorten(str(error), [], class_names(), argument_names())) from error
            raise

    # ------------------------------------------------------------------ run folder, loggers, default callbacks

    def build_trainer(self, config: dict[str, Any], callbacks_: list[Callback]) -> Trainer:
        """With the run's folder, loggers and default callbacks."""
        check_trainer(config)
        root = config.get("default_root_dir") or RUNS
        name = self.chosen("name") or self.layers.name or type(self.model).__name__
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(
                f"name: expected a folder below {root}, got {name}; trainer.default_root_dir names another"
            )
        self.config[self.layers.verb]["name"] = name  # so that the saved configuration names its reruns
        config |= devices_of_torchrun(config, os.environ)
        every = self._callbacks_and_loggers(config, callbacks_, str(root), name)
        try:
            return super().build_trainer(config, every)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def _callbacks_and_loggers(
        self, config: dict[str, Any], callbacks_: list[Callback], root: str, name: str
    ) -> list[Callback]:
        """All callbacks of the run; loggers and the folder of a run without any are put into `config`."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("barebones"):
            config |= {"logger": None, "log_every_n_steps": None}
            return callbacks_ + contracts_for(self.model)
        claim = not config.get("fast_dev_run")
        if config.get("logger") is False and claim:
            config["default_root_dir"] = folder_without_logger(config.get("default_root_dir"), root, name)
        config["logger"] = default_loggers(config.get("logger"), root, name, claim)
        if config.get("enable_model_summary") is not False and not any(isinstance(g, ModelSummary) for g in given):
            callbacks_ = [*callbacks_, callbacks.ParameterSummary()]
        if self.layers.verb == "predict" and not any(isinstance(g, BasePredictionWriter) for g in given):
            callbacks_ = [*callbacks_, callbacks.PredictionWriter()]
        keep = config.get("enable_checkpointing") is not False
        return callbacks_ + default_callbacks(self.model, [*given, *callbacks_], keep)

    def verb_arguments(self, verb: str) -> dict[str, Any]:
        """Checkpoints hold data alone, and predictions go to files."""
        kwargs = super().verb_arguments(verb)
        if kwargs.get("weights_only", True) is None:
            kwargs["weights_only"] = True  # all our checkpoints hold tensors and plain types only
        if verb == "predict" and kwargs.get("return_predictions") is None:
            kwargs["return_predictions"] = False  # they are written, and would fill the memory
        return kwargs

    def before_fit(self) -> None:
        """Hands on where the weights begin.

        Raises:
            ConfigError: the model is no BaseMethod, which alone takes them.
        """
        path = self._get(self.config, "initial_weights")
        if path is None:
            return
        if not isinstance(self.model, BaseMethod):
            raise ConfigError(
                f"initial_weights: expected a model that is a BaseMethod, got {type(self.model).__name__}; load them "
                "in its own code"
            )
        if self.layers.checkpoint is not None:
            say(f"initial_weights: {path} is not looked at, the weights come from {self.layers.checkpoint}")
        self.model.initial_weights = path

    def _run_subcommand(self, subcommand: str) -> None:
        with handed_on(self.trainer):
            super()._run_subcommand(subcommand)

    def before_test(self) -> None:
        """Says so when nothing that was trained is looked at."""
        if self.layers.checkpoint is None and not getattr(self.model, "evaluates_untrained", False):
            rank_zero_warn(
                f"no --ckpt_path: {self.layers.verb} works with the initial, untrained weights; --ckpt_path best takes "
                "those of the newest run"
            )

    before_validate = before_predict = before_test

    def after_fit(self) -> None:
        """Says where everything is and how long it took."""
        say(f"run folder: {self.trainer.log_dir}")
        for checkpoint in self.trainer.checkpoint_callbacks:
            if isinstance(checkpoint, callbacks.BestCheckpoint) and checkpoint.best_model_path:
                score = checkpoint.best_model_score
                shown = f" ({checkpoint.monitor} {float(score):.4f})" if score is not None else ""
                say(f"best checkpoint: {checkpoint.best_model_path}{shown}")
        wall = time.monotonic() - framework.IMPORTED_AT
        times = [f"{wall:.1f} s of wall time since the start, imports included"]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.FigureWriter) and callback.elapsed is not None:
                times.append(f"{callback.elapsed:.1f} s from the first training step to the last figure")
        say("; ".join(times))

    def after_test(self) -> None:
        """Says where everything is."""
        say(f"run folder: {self.trainer.log_dir}")

    def after_predict(self) -> None:
        """Says where the predictions are."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.PredictionWriter):  # forked ranks have decided the folder, not this one
                say(f"predictions: {getattr(callback, 'folder', callback.output_dir or self.trainer.default_root_dir)}")


class BuildOnly(FrameworkCLI):
    """Parses a command and builds model, data and callbacks, without a Trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None."""

    def run_verb(self, verb: str) -> None:
        """Runs nothing."""


def contracts_for(model: LightningModule) -> list[Callback]:
    """The contracts, for a module that does not bring them itself; what its losses may be is its own affair."""
    if isinstance(model, BaseMethod):
        return []
    return [contract for contract in missing_contracts(None) if not isinstance(contract, FiniteLoss)]


def default_callbacks(model: LightningModule, given: Sequence[Callback], keep: bool = True) -> list[Callback]:
    """The callbacks every run has, less those of a type that the configuration already gives.

    Args:
        model: whose `monitor` chooses `best.ckpt`.
        given: the configuration's.
        keep: False leaves out whatever writes checkpoints.
    """
    defaults = contracts_for(model)
    if keep and (monitor := getattr(model, "monitor", None)):
        defaults.append(callbacks.BestCheckpoint(monitor, getattr(model, "monitor_mode", "min")))
    if keep:
        defaults += [callbacks.LastCheckpoint(), callbacks.InterruptCheckpoint()]
    defaults.append(callbacks.FigureWriter())
    if isinstance(model, MeasuresSamples):
        defaults.append(callbacks.SegmentationReport())
    return [callback for callback in defaults if not any(isinstance(g, type(callback)) for g in given)]


# ---------------------------------------------------------------------- names for did-you-mean


def class_names() -> list[str]:
    """The bare class names of ours that a configuration may use, and the usual ones of torch."""
    ours = [*models.__all__, *datamodules.__all__, *callbacks.__all__]
    return [*ours, "Adam", "AdamW", "SGD", "StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau", "Trainer"]


def argument_names() -> dict[str, list[str]]:
    """The argument names of every class of ours, as they are written under `init_args`."""
    packages = (models, datamodules, callbacks)
    return {name: arguments_of(getattr(package, name)) for package in packages for name in package.__all__}
