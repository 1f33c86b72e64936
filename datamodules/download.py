"""Downloads that resume, are checked, and appear under their name only when they are whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from framework.errors import DataError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there two processes may fetch the same bytes twice
    fcntl = None  # type: ignore[assignment]


def download(url: str, path: Path, md5: str) -> None:
    """Fetches a file, going on where an earlier try stopped. Of several processes one fetches, the others wait.

    The bytes lie in `NAME.part`, which is locked while a process writes it; the lock ends with the process.

    Raises:
        DataError: the server cannot be reached, or the content has another checksum.
    """
    import pooch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _claimed(part, path) as file:
        if file is None:  # another process has brought it meanwhile
            return
        resumed = _fetch(url, file)
        found = pooch.file_hash(str(part), alg="md5")
        if found != md5 and resumed:  # the part was another file's, or the server does not resume
            file.truncate(0)
            _fetch(url, file)
            found = pooch.file_hash(str(part), alg="md5")
        if found != md5:
            part.unlink()
            raise DataError(f"{url}: expected a file with MD5 {md5}, got {found}; it was discarded, try again")
        os.replace(part, path)


@contextlib.contextmanager
def _claimed(part: Path, path: Path) -> Iterator[IO[bytes] | None]:
    """The part file, ours alone; None when `path` is there before it is ours."""
    while True:
        with part.open("ab") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it may have renamed or removed it: then this is no longer the file of that name.
            if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
                if path.exists():
                    yield None
                    return
                continue
            if path.exists():
                part.unlink()
                yield None
                return
            yield file
            return


def _fetch(url: str, file: IO[bytes]) -> bool:
    """Appends what is missing; returns whether there was something before."""
    import pooch
    import requests

    done = os.fstat(file.fileno()).st_size
    headers = {"Range": f"bytes={done}-"} if done else {}
    try:
        pooch.HTTPDownloader(headers=headers, timeout=60)(url, file, None)
    except (requests.RequestException, OSError) as error:
        response = getattr(error, "response", None)
        if response is None or response.status_code != 416:  # 416: all of it is there
            raise DataError(f"{url}: download failed ({error}); give data.root, a folder with the files") from error
    finally:
        file.flush()
    return done > 0
