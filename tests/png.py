"""PNG files of 16 bits per channel, which neither Pillow nor scikit-image writes in colour."""

import struct
import zlib
from pathlib import Path

import numpy as np


def write_png16(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Writes (H, W) grey or (H, W, 2 to 4) grey with alpha, RGB or RGBA, all uint16; returns the pixels."""
    height, width, channels = (*pixels.shape, 1)[:3]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)  # \0: no filter
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return pixels
