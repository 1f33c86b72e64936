"""Any exception as one message: at most three lines with what was got, what was expected and what to do.

`framework --debug ...` shows the traceback instead.
"""

import errno
import re
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.multiprocessing.spawn import ProcessExitedException

from framework.errors import FrameworkError
from framework.signals import is_consequence

LINES = 3
WIDTH = 500

_HOME = Path(__file__).resolve().parents[2]
_MISFIT = re.compile(r"Error\(s\) in loading state_dict for (?P<name>\w+)")
_SIZES = re.compile(
    r"size mismatch for (?P<name>[\w.]+): copying a param with shape (?:torch\.Size\()?(?P<stored>[\[(][\d, ]*[\])])\)?"
    r" from checkpoint, the shape in current model is (?:torch\.Size\()?(?P<own>[\[(][\d, ]*[\])])"
)


def message(error: BaseException) -> str:
    """What the command line prints for an exception, without a traceback.

    Args:
        error: ours, Lightning's, torch's or anybody's.

    Returns:
        one to three lines.
    """
    return three_lines(_explain(error))


def three_lines(text: str) -> str:
    """The text without empty lines, cut to three lines that a terminal can show."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[-1]]
    return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..." for line in lines) or "no message"


def in_chain(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first exception of a kind among the error and what it was raised from."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, kind):
        link = link.__cause__ or link.__context__
    return link


def _explain(error: BaseException) -> str:
    if ours := in_chain(error, FrameworkError):
        return str(ours)
    text = str(error)
    for explain in (
        _of_a_rank,
        _rank_gone,
        _waited,
        _memory,
        _misfit,
        _missing_package,
        _file,
        _epochs,
        _checkpoint,
        _optimizer,
        _interval,
        _monitor,
    ):
        if said := explain(error, text):
            return said
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    named = first if type(error).__name__ == "MisconfigurationException" else f"{type(error).__name__}: {first}"
    return f"{named}\n{_place(error)}; framework --debug ... shows the whole traceback"


def _of_a_rank(error: BaseException, text: str) -> str | None:
    # torch's spawn hands over a child's traceback as text
    if type(error).__name__ != "ProcessRaisedException":
        return None
    rank = re.search(r"Process (\d+) terminated", text)
    lines = [line for line in text.splitlines() if re.match(r"^[\w.]+(Error|Exception)?: ", line)]
    last = re.sub(r"^framework\.errors\.\w+: ", "", lines[-1]) if lines else text.strip().splitlines()[-1]
    return f"process {rank[1] if rank else '?'}: {_waited(RuntimeError(last), last) or last}"


def _rank_gone(error: BaseException, text: str) -> str | None:
    if not isinstance(error, ProcessExitedException):
        return None
    end = f"by signal {-error.exit_code}" if error.exit_code < 0 else f"with exit status {error.exit_code}"
    return (
        f"process {error.error_index}: it ended {end}, without a message\n"
        "look at its output: code of yours that ends the process, or the system for want of memory"
    )


def _waited(error: BaseException, text: str) -> str | None:
    """Of an operation that all ranks take part in, when one of them does not."""
    came = re.search(r"(\d+)/(\d+) clients joined", text)
    if came:
        return (
            f"trainer.num_nodes, trainer.devices: {came[1]} of {came[2]} processes have come together within the "
            "time-out\nstart the command on every node, with MASTER_ADDR, MASTER_PORT and NODE_RANK set; "
            "trainer.strategy.timeout is how long they wait"
        )
    if not is_consequence(error):
        return None
    if re.search(r"[Tt]imed out|timeout", text):
        return (
            "another rank has not come to an operation of all within the time-out: it stalls, or has ended\n"
            "look at what it does there; trainer.strategy.timeout is how long the others wait"
        )
    return "the connection to another rank broke: it was killed, or ended without a word; look at its output"


def _memory(error: BaseException, text: str) -> str | None:
    out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not out and "can't allocate memory" not in text and "not enough memory" not in text:
        return None
    wanted = re.search(r"(?:allocate|Unable to allocate) ([\d.]+ \w+|\d+ bytes)", text)
    return (
        f"out of memory{f' while asking for {wanted[1]}' if wanted else ''} ({_place(error)})\n"
        "use smaller images (data.side, data.crop), a smaller batch (data.batch_size) or a smaller model (model.width)"
    )


def _misfit(error: BaseException, text: str) -> str | None:
    found = _MISFIT.search(text)
    if found is None:
        return None
    parts = []
    if sizes := list(_SIZES.finditer(text)):
        first = sizes[0]
        parts.append(
            f"{len(sizes)} of other shapes (first {first['name']}: {first['stored']} in the file, {first['own']} here)"
        )
    for kind, said in (("Missing", "missing"), ("Unexpected", "not of this model")):
        names = re.findall(r'"([^"]+)"', (re.search(rf"{kind} key\(s\) in state_dict: (.*)", text) or [""])[0])
        if names:
            parts.append(f"{len(names)} {said} (first {names[0]})")
    detail = ", ".join(parts) or text.strip().splitlines()[-1].strip()
    return (
        f"ckpt_path: the weights in the checkpoint are not those of this {found['name']}: {detail}\n"
        "expected the arguments that the checkpoint was written with; leave out the --model.* options that change "
        "layers, or fit anew without --ckpt_path"
    )


def _missing_package(error: BaseException, text: str) -> str | None:
    if not isinstance(error, ImportError):
        return None
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name:
        return f"the package {name} is not installed, and {_place(error)} needs it\ninstall it: pip install {name}"
    return f"{text.splitlines()[0] if text else type(error).__name__}\nneeded at {_place(error)}"


def _file(error: BaseException, text: str) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    what = {
        errno.ENOSPC: "the disk is full: make room, or write elsewhere with --trainer.default_root_dir",
        errno.EACCES: "no permission: choose another place, or change its permissions",
        errno.EROFS: "the place is read-only: choose another with --trainer.default_root_dir",
        errno.ENOTDIR: "a file stands where a folder is needed: move it, or choose another place",
        errno.EEXIST: "a file stands where a folder is needed: move it, or choose another place",
        errno.ENOENT: "expected a file or folder that is there",
    }.get(error.errno, "")
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or text}\n{what or _place(error)}"


def _epochs(error: BaseException, text: str) -> str | None:
    found = re.search(r"restored a checkpoint with current_epoch=(\d+).*max_epochs=(\d+)", text, re.S)
    if found is None:
        return None
    return (
        f"trainer.max_epochs: got {found[2]}, but the checkpoint stands at epoch {found[1]}\n"
        "give more epochs than that to go on, or leave out --ckpt_path to start anew"
    )


def _optimizer(error: BaseException, text: str) -> str | None:
    frames = traceback.extract_tb(error.__traceback__)
    built = any(f.name in ("_build_optimizer", "configure_optimizers") for f in frames)
    if not built and (not frames or "torch/optim/" not in frames[-1].filename.replace("\\", "/")):
        return None
    key = "lr_scheduler" if any("lr_scheduler" in f.filename for f in frames) else "optimizer"
    said = text.splitlines()[0] if text else type(error).__name__
    return f"model.{key}: expected arguments that torch accepts, got its {type(error).__name__}: {said}\ngive others"


def _interval(error: BaseException, text: str) -> str | None:
    found = re.search(r"`val_check_interval` \((\d+)\).*number of the training batches \((\d+)\)", text, re.S)
    if found is None:
        return None
    return (
        f"trainer.val_check_interval: got {found[1]}, but an epoch has {found[2]} training batches\n"
        "give at most that many, a share up to 1.0, or set trainer.check_val_every_n_epoch to null to count over epochs"
    )


def _monitor(error: BaseException, text: str) -> str | None:
    found = re.search(r"[Ee]arly stopping conditioned on metric `(.+?)` which is not available.*following: (.*)", text)
    if found is None:
        return None
    return f"trainer.callbacks: EarlyStopping.monitor: expected one of {found[2]}, got {found[1]}\nname one of these"


def _checkpoint(error: BaseException, text: str) -> str | None:
    frames = traceback.extract_tb(error.__traceback__)
    if not any(
        "checkpoint_connector" in f.filename or f.name in ("on_load_checkpoint", "migrate_checkpoint") for f in frames
    ):
        return None
    first = text.splitlines()[0] if text else ""
    return (
        f"ckpt_path: the checkpoint cannot be restored ({type(error).__name__}: {first})\n"
        "give a whole checkpoint that fit has written, or start anew without --ckpt_path"
    )


def _place(error: BaseException) -> str:
    """The innermost line of ours or of the user's that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    near: Callable[[str], bool] = lambda name: "site-packages" not in name and "/lib/python" not in name  # noqa: E731
    chosen = next((f for f in reversed(frames) if near(f.filename)), frames[-1] if frames else None)
    if chosen is None:
        return "raised outside Python code"
    path = Path(chosen.filename)
    shown = path.relative_to(_HOME) if path.is_relative_to(_HOME) else path
    return f"raised in {shown}, line {chosen.lineno}"
