"""Checkpoint files: written whole or not at all, and looked at before they are read.

The checksum is the one that every file of `torch.save` carries, an archive with a CRC-32 of each of its parts; torch
does not look at it, `check_whole` does.
"""

import contextlib
import os
import pickle
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from framework.errors import CheckpointError

#: bytes that a checkpoint may become in memory for each byte of its file; torch packs nothing, so 1 is usual
UNPACKED = 4
#: files of a process that have been looked at: a second reader need not look again
_seen: set[tuple[Any, ...]] = set()


def check_whole(path: Path) -> None:
    """Raises CheckpointError unless a file is a whole checkpoint, every byte as it was written."""
    try:
        state = path.stat()
    except OSError as error:
        raise CheckpointError(f"ckpt_path: there is no file {path} ({error.strerror})") from error
    if not stat.S_ISREG(state.st_mode):
        raise CheckpointError(f"ckpt_path: there is no file {path}: a folder, pipe or device has that name")
    identity = (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns)
    if identity in _seen:
        return
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return  # of a torch that had no archives, or no checkpoint: for the reader to tell
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
            if size > UNPACKED * state.st_size + 2**20:
                raise CheckpointError(
                    f"ckpt_path: {path} has {state.st_size} bytes that unpack to {size}; a checkpoint unpacks to at "
                    f"most {UNPACKED} times its size, so this is none"
                )
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if broken is not None:
        raise CheckpointError(
            f"ckpt_path: {path} cannot be read as a checkpoint (checksum of {broken} does not match: the file was "
            "damaged after it was written); take another one"
        )
    _seen.add(identity)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, tensors and plain types only.

    Raises:
        CheckpointError: the file is not there or is not a whole checkpoint.
    """
    check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"ckpt_path: {path} is not a Lightning checkpoint (it has no state_dict)")
    _check_content(path, content)
    return content


def _check_content(path: Path, content: dict[str, Any]) -> None:
    """Raises CheckpointError for parts of another kind than the readers below and Lightning expect."""
    version = content.get("pytorch-lightning_version", "0")
    if not all(isinstance(key, str) for key in content["state_dict"]):
        raise CheckpointError(f"ckpt_path: {path}: state_dict holds names that are no text; the file is damaged")
    if not isinstance(version, str) or not re.match(r"\d+(\.\d+)*", version):
        raise CheckpointError(
            f"ckpt_path: {path}: pytorch-lightning_version is {version!r}, expected text such as 2.6.4"
        )
    for key, kind in {"hyper_parameters": dict, "loops": dict, "class_path": str, "callbacks": dict}.items():
        if not isinstance(content.get(key, kind()), kind):
            raise CheckpointError(
                f"ckpt_path: {path}: {key} is a {type(content[key]).__name__}, which no fit has written; the file is "
                "damaged, give another one"
            )


def newest_whole(candidates: list[Path], say: Callable[[str], None]) -> Path | None:
    """The first of these files that is whole; says which were not."""
    for path in candidates:
        try:
            check_whole(path)
            with path.open("rb") as file:
                if file.read(2) == b"PK":
                    return path
            load_checkpoint(path)
        except (CheckpointError, OSError) as error:
            say(f"{path} is passed over: {' '.join(str(error).removeprefix('ckpt_path: ').split())[:200]}")
            continue
        return path
    return None


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's writer of checkpoints, in the target's own folder, flushed, and renamed only when all is there.

    A full disk or a kill leaves the file that was there before. Paths with a protocol (`s3://`) are Lightning's.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Lightning's hook.

        Raises:
            CheckpointError: it cannot be written; what was there is untouched.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = _operating_system_error(error)
            if cause is None:
                raise
            kept = "the one of that name is whole, as it was before" if target.is_file() else "nothing was replaced"
            raise CheckpointError(
                f"checkpoint {target}: cannot be written ({cause.strerror or cause}); {kept}. Make room or give "
                "another folder (trainer.default_root_dir, or the callback's dirpath), and go on with --ckpt_path last"
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Lightning's hook; looks at the file first.

        Raises:
            CheckpointError: the file is not there, is damaged or is no checkpoint.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, *args, **kwargs)
        check_whole(Path(path))
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except Exception as error:  # torch raises many kinds for a broken file
            raise _unreadable(Path(path), error) from error


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Any]:
    """A binary file that takes the target's name when the block is left, and is gone when the block fails."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    with contextlib.suppress(OSError):  # the name too; not every system lets a folder be flushed
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _operating_system_error(error: BaseException) -> OSError | None:
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def holds_code(error: Exception) -> bool:
    """Whether torch refuses a file because it holds more than tensors and plain values."""
    return isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    said = " ".join(str(error).split())
    if holds_code(error):
        return CheckpointError(
            f"ckpt_path: {path} cannot be read as a checkpoint: expected tensors and plain values, got objects of a "
            "class, whose code would run; nothing of it was run, take another one"
        )
    return CheckpointError(
        f"ckpt_path: {path} cannot be read as a checkpoint ({type(error).__name__}: {said[:200]}); take another one"
    )
