"""One command in a forked process, as a shell would start it: own session, own folder, own exit."""

import atexit
import contextlib
import dataclasses
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

#: what a first fit imports
LATE = (
    "framework.main", "framework.commands.cli", "models", "datamodules", "callbacks", "matplotlib.pyplot",
    "tensorboard.summary", "torch.utils.tensorboard", "tifffile", "skimage.io", "skimage.filters", "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "torch.distributed.elastic.agent.server",
    "torch.distributed.launcher.api", "torch.optim.swa_utils", "timm", "pandas", "rich.progress", "rich._emoji_codes",
    "rich._unicode_data", "scipy.optimize", "matplotlib.backends.backend_agg", "fsspec.implementations.local", "attrs",
)  # fmt: skip

EARLY = (signal.SIGINT, signal.SIGTERM)


def warm_up() -> None:
    """Imports everything once, and starts nothing that a process cannot fork with."""
    torch.set_num_threads(1)
    for name in LATE:
        importlib.import_module(name)
    torch.zeros((), requires_grad=True).backward()  # before any device could be registered, as in the tests


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended.

    Args:
        status: as a shell shows it, 128 + N after signal N; None: it hung and was killed.
        seconds: since the last `since()`, until the last of its processes was gone.
        said: its output.
        left: processes that outlived the first one by more than a second, and were killed.
    """

    status: int | None
    seconds: float
    said: str
    left: int = 0


class Run:
    """A command that has been started.

    Args:
        folder: its working directory, which tells its processes from all others.
        words: after `framework`.
        prepare: called in the new process first.
        entry: what to run instead of the command.
    """

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        prepare: Callable[[], None] | None = None,
        entry: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.output = self.folder.with_name(f"{self.folder.name}.said")
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)  # none may meet the new process in these frames
        self.pid = os.fork()
        if self.pid == 0:
            _child(self.folder, self.output, words, prepare, entry or as_typed)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._since = self.began = time.monotonic()

    def since(self) -> None:
        """Seconds count from here."""
        self._since = time.monotonic()

    def over(self) -> bool:
        """Whether the first process has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def processes(self) -> list[int]:
        """The processes of this run, the first one among them while it lives."""
        return [pid for pid, folder in working_directories() if folder == self.folder]

    def wait(self, limit: float = 60) -> Ended:
        """Waits for the end, kills what hangs."""
        deadline = time.monotonic() + limit
        while not self.over() and time.monotonic() < deadline:
            time.sleep(0.01)
        hung = not self.over()
        at = time.monotonic()
        while not hung and self.processes() and time.monotonic() < min(deadline, at + 15):
            time.sleep(0.01)
        seconds = time.monotonic() - self._since
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        status = None if hung else code if code >= 0 else 128 - code
        return Ended(status, seconds, self.output.read_text(errors="replace"), 0 if hung else len(left))

    def kill(self) -> Ended:
        """SIGKILL to all of it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.wait()


def working_directories() -> Iterator[tuple[int, Path]]:
    """(process id, working directory) of every process that has one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), Path(os.readlink(entry / "cwd").removesuffix(" (deleted)"))


def without_figures() -> None:
    """In a forked process: nothing is drawn, which takes four fifths of so small a run's time."""
    from callbacks import figure_writer, origin_paths, segmentation_maps

    figure_writer.FigureWriter._write_all = lambda *_, **__: None  # type: ignore[method-assign]
    for module in (figure_writer, origin_paths, segmentation_maps):
        module.save_figure = lambda *_, **__: Path()  # type: ignore[attr-defined]


def as_typed(words: Sequence[str]) -> None:
    """The console script."""
    from framework.main import console

    sys.argv = ["framework", *words]
    console()


def _child(
    folder: Path,
    output: Path,
    words: Sequence[str],
    prepare: Callable[[], None] | None,
    entry: Callable[[Sequence[str]], None],
) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, file), (2, file)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
        if torch.cuda.device_count() == 0:  # who has only asked for devices may fork again
            torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
        if prepare is not None:
            prepare()
        entry(words)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # The interpreter's own way out, without the frames of the parent.
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


@contextlib.contextmanager
def room(where: Path | None = None) -> Iterator[Path]:
    """An empty folder `run` for one try, gone afterwards."""
    # no TemporaryDirectory: its clean-up at exit would run in every fork
    above = Path(tempfile.mkdtemp(prefix="faults_", dir=where))
    try:
        (above / "run").mkdir()
        yield above / "run"
    finally:
        shutil.rmtree(above, ignore_errors=True)
