"""A picture's header, and its pixels when they are asked for; what `datamodules.io` opens and the decoders describe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from framework.errors import DataError

#: what one picture may take when decoded
MOST_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Picture:
    """A picture's header: all that is known without decoding it.

    Attributes:
        path: the file.
        shape: of the pixels, one number per axis.
        axes: a letter per axis: Y, X; S colour samples; C channels; Z, T and others slices; I, Q unknown.
        dtype: of the pixels.
        bits: of an unsigned number in the file (1 for bool); 0 for signed and floating ones.
        colour: the samples of S begin with red, green, blue.
        alpha: the last sample of S is alpha.
        palette: (n, 4) uint8 RGBA of the indices that the pixels are; None without.
        premultiplied: the colours have been multiplied by alpha.
        clear: the one value, or colour, that is shown transparent; None: there is none.
        maxval: the largest number, where a PNM names one that is not that of its bits.
        white_is_zero: a TIFF whose 0 is shown white.
        pixel_size: (y, x) in micrometres; None where the file does not say.
        decode: reads the pixels.
        window: reads a part of the pixels, given a slice for each axis; None: the format cannot.
    """

    path: Path
    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype
    bits: int
    decode: Callable[[], np.ndarray]
    colour: bool = False
    alpha: bool = False
    premultiplied: bool = False
    clear: tuple[int, ...] | None = None
    palette: np.ndarray | None = None
    maxval: int | None = None
    white_is_zero: bool = False
    pixel_size: tuple[float, float] | None = None
    window: Callable[[tuple[slice, ...]], np.ndarray] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.shape[self.axes.index("Y")], self.shape[self.axes.index("X")]

    @property
    def white(self) -> int:
        """The largest number, which is shown white (or black, see `white_is_zero`); 0: the numbers have no bound."""
        if self.palette is not None:
            return 255
        return 2**self.bits - 1 if self.maxval is None else self.maxval

    def cropped(self, y0: int, y1: int, x0: int, x1: int) -> "Picture":
        """Rows [y0, y1) and columns [x0, x1) as a picture, of which only they are read where there is a `window`."""
        sides = {"Y": slice(y0, y1), "X": slice(x0, x1)}
        where = tuple(sides.get(a, slice(None)) for a in self.axes)
        shape = tuple(len(range(n)[part]) for n, part in zip(self.shape, where, strict=True))
        read, decode = self.window, self.decode
        part = (lambda: read(where)) if read is not None else (lambda: decode()[where])
        return replace(self, shape=shape, decode=part, window=None)

    def pixels(self) -> np.ndarray:
        """The pixels as they are stored, in the order of `axes`.

        Raises:
            DataError: larger than `MOST_BYTES`, or not decodable.
        """
        size = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        if size > MOST_BYTES:
            raise DataError(
                f"data: {self.path} is {' x '.join(map(str, self.shape))} {self.dtype}, {size / 2**30:.1f} GiB when "
                f"decoded; at most {MOST_BYTES / 2**30:.0f} GiB are read at once, so cut it into parts"
            )
        try:
            return self.decode()
        except Exception as error:  # decoders raise many kinds for a broken file
            raise unreadable(self.path, error) from error


def unreadable(path: Path, error: BaseException) -> DataError:
    """The one error of a file that cannot be decoded."""
    if isinstance(error, Image.DecompressionBombError):  # of a format that looks at the limit itself
        return DataError(
            f"{path} has more pixels than Pillow takes in this format, {2 * (Image.MAX_IMAGE_PIXELS or 0)}; save it as "
            "PNG or TIFF, or set PIL.Image.MAX_IMAGE_PIXELS"
        )
    reason = str(error).splitlines()[0] if str(error) else ""
    return DataError(
        f"{path} cannot be read as a picture ({type(error).__name__}: {reason}); it may be truncated, restore or "
        "remove it"
    )
