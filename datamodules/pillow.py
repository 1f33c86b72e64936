"""What Pillow leaves open: files without its limit on pixels, and the colour that a PNG shows transparent."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """`Image.open`, but for `Image.MAX_IMAGE_PIXELS`, a setting of the whole process, which is left as it is.

    How much is decoded at once is decided by `picture.MOST_BYTES`, once the header is known. Formats that decode a part
    of the picture with the header, as WebP does, look at the setting themselves.

    Raises:
        UnidentifiedImageError: no format that Pillow knows.
    """
    with path.open("rb") as file:
        head = file.read(16)
        tried: set[str] = set()
        for load in (Image.preinit, Image.init):  # the usual formats, then all of them
            load()
            formats = [name for name in Image.ID if name not in tried]
            tried.update(formats)
            found = next(filter(None, (_as_format(name, file, path, head) for name in formats)), None)
            if found is not None:
                yield found
                return
    raise UnidentifiedImageError(f"cannot identify image file {str(path)!r}")


def _as_format(name: str, file: IO[bytes], path: Path, head: bytes) -> Image.Image | None:
    factory, accept = Image.OPEN[name]
    try:
        if accept is not None and (not (answer := accept(head)) or isinstance(answer, str)):
            return None  # an answer in words says why not
        file.seek(0)
        return factory(file, str(path))
    except (SyntaxError, IndexError, TypeError, struct.error):  # by which a format says that it is another's
        return None


def clear_in_png(path: Path, samples: int) -> tuple[int, ...] | None:
    """The value, or the colour, that a PNG without alpha shows transparent (its chunk tRNS); None: there is none."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"tRNS":
                return struct.unpack(f">{samples}H", file.read(length)) if length == 2 * samples else None
            if kind == b"IDAT":
                return None
            file.seek(length + 4, 1)
    return None
