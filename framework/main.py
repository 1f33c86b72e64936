"""The `framework` command: verbs of our own by one function each, everything else by LightningCLI."""

import codecs
import contextlib
import difflib
import importlib
import importlib.util
import io
import locale
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.errors import ConfigError

#: verb -> (function `run(args) -> int`, one line for --help); imported only when called
VERBS = {
    "filters": (
        "framework.commands.filters:run",
        "fit, match, extract and show depthwise filters as scale-space operators",
    ),
    "study": ("framework.commands.study:run", "a table of runs: every cell of a study by fit and test, resumable"),
    "export": ("framework.commands.export:run", "a checkpoint as pt2, ONNX, TorchScript or bioimage.io files, checked"),
    "bench": ("framework.commands.bench:run", "time, memory and loss of every exported form of a checkpoint"),
    "list": ("framework.commands.listing:run", "methods, data, callbacks and configurations, a line each"),
    "doctor": ("framework.commands.doctor:run", "versions, devices, and whether this installation is healthy"),
}
TRAINER_VERBS = {
    "fit": "train a method",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "write predictions",
}
#: verbs of ours that build a method from a checkpoint
TAKES_CHECKPOINT = ("export", "bench")
#: set in the process of the command itself, which a second Ctrl-C may end by force
_is_command = False
OUR_PACKAGES = ("models", "datamodules", "callbacks")


def main(args: Sequence[str] | None = None) -> Any:
    """Runs one command.

    Args:
        args: the words after `framework`; None takes them from `sys.argv`.

    Returns:
        the LightningCLI of a Trainer verb (with `.trainer`, `.model`, `.datamodule`), or a verb's exit status.

    Raises:
        FrameworkError: what a user can mend; `console` shows it as a message.
    """
    words = list(sys.argv[1:] if args is None else args)
    words, modules = _take_imports(words)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb = words[0]
    if verb in VERBS:
        module, function = VERBS[verb][0].split(":")
        if verb == "study":
            _find_packages()
            words += [word for module_ in modules for word in ("--import", module_)]
        if verb in TAKES_CHECKPOINT:
            _find_packages()
            import_modules(modules)
        return getattr(importlib.import_module(module), function)(words[1:])
    if verb not in TRAINER_VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *TRAINER_VERBS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*TRAINER_VERBS, *VERBS])}."
        raise ConfigError(f"framework {verb}: no such command; {hint}")
    _find_packages()
    from framework.commands.cli import run_trainer_verb

    import_modules(modules)
    if _is_command:
        from framework.signals import force_on_second_interrupt

        force_on_second_interrupt()
    return run_trainer_verb(words)


def console() -> None:
    """Entry point of the console script: errors as one message, exit status 2; 130 and 143 after a signal."""
    global _is_command
    _is_command = True
    _take_text_for_utf8()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that ends makes torch print its C++ frames
    try:
        status = shown(sys.argv[1:])
    except (KeyboardInterrupt, SystemExit) as error:
        status = _after_signal(error)
    finally:
        if "framework.distributed" in sys.modules:
            from framework.distributed import leave

            leave()
    sys.exit(status)


def _take_text_for_utf8() -> None:
    """Files are UTF-8 to every library, whatever the locale says of the terminal, which gets what it can show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("C.UTF-8", "en_US.UTF-8"):
        if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
            return
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)


def shown(args: Sequence[str]) -> int:
    """Runs one command as a user sees it: an error is a message of at most three lines on the error stream.

    Args:
        args: the words after `framework`; `--debug` among them lets errors pass with their traceback.

    Returns:
        the exit status: 2 after an error.
    """
    words = [word for word in args if word != "--debug"]
    try:
        status = main(words)
    except Exception as error:
        if len(words) < len(args):
            raise
        signals = sys.modules.get("framework.signals")
        ended = signals.exit_status(error) if signals is not None else None
        if ended is not None:
            return ended  # by a signal, or by the failure of another rank, which says it itself
        from framework.commands.messages import message

        print(f"error{signals.which_rank() if signals is not None else ''}: {message(error)}", file=sys.stderr)
        return 2 if signals is None else signals.status_of(error)
    return status if isinstance(status, int) else 0


def import_modules(modules: Sequence[str]) -> None:
    """Imports a user's modules for their classes, and lets checkpoints name these.

    Raises:
        ConfigError: a module is not there, or fails.
    """
    from framework.trust import vouched_modules

    for module in modules:
        _import(module)
        vouched_modules.add(module)


def _import(module: str) -> None:
    if not module or module.startswith(".") or module.endswith((".py", ".")) or "/" in module:
        raise ConfigError(
            f"--import {module}: expected a module's name such as my_module or package.module, neither a path nor "
            "relative"
        )
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does when it is run
        raise ConfigError(
            f"--import {module}: {type(error).__name__}: {error}; it is looked for on sys.path and in {Path.cwd()}"
        ) from error


def _after_signal(error: BaseException) -> Any:
    """Exit status of a command that a signal ended, or whose end was asked for."""
    signals = sys.modules.get("framework.signals")
    if isinstance(error, KeyboardInterrupt) and os.environ.get("LOCAL_RANK", "0") == "0":
        print("interrupted before the first step; nothing was written", file=sys.stderr)
    if signals is not None and (status := signals.exit_status(error)) is not None:
        return status
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", 0)


def foreign_packages() -> dict[str, str]:
    """Those of our four import packages that Python finds somewhere else, with the path it finds."""
    home = Path(__file__).resolve().parent.parent
    foreign = {}
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or found.parent.parent != home:
            foreign[name] = str(found.parent) if found else "nowhere"
    return foreign


def check_packages() -> None:
    """Raises ConfigError when another `models`, `datamodules` or `callbacks` hides ours."""
    if foreign := foreign_packages():
        where = ", ".join(f"{name} at {path}" for name, path in foreign.items())
        raise ConfigError(
            f"PYTHONPATH: these packages are not ours: {where}; a folder of the same name hides them, so start from "
            "another directory, or take that folder off PYTHONPATH"
        )


def _find_packages() -> None:
    check_packages()
    # A user's modules lie in the working directory; at the end of the path they cannot shadow ours.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _take_imports(words: list[str]) -> tuple[list[str], list[str]]:
    rest, modules = [], []
    stream = iter(words)
    for word in stream:
        if word == "--import":
            modules.append(next(stream, ""))
        elif word.startswith("--import="):
            modules.append(word.split("=", 1)[1])
        else:
            rest.append(word)
    return rest, modules


def _usage() -> str:
    verbs = [*TRAINER_VERBS.items(), *((name, text) for name, (_, text) in VERBS.items())]
    lines = "\n".join(f"  {name:<10} {text}" for name, text in verbs)
    return (
        "usage: framework VERB [-c CONFIG ...] [--key value ...] [--import MODULE] [--debug]\n\n"
        f"{lines}\n\n"
        "A config is a path or a name such as korigins/quickstart; `framework VERB --help` shows every key.\n"
        "Start with: framework fit -c korigins/quickstart"
    )
