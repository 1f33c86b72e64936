"""Windows of a picture are parts of the whole, in pixels and after every normalisation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from datamodules import windows as module
from datamodules.io import open_picture
from datamodules.planes import image_of
from datamodules.reading import Reading
from datamodules.segmentation_data import normalized
from datamodules.windows import windows

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 60000, (70, 90), dtype=np.uint16)
FIVE = RNG.integers(0, 60000, (5, 70, 90), dtype=np.uint16)
RGB = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)

FILES: dict[str, tuple[np.ndarray, dict[str, Any], dict[str, Any]]] = {
    "plain": (GREY, {}, {}),
    "tiles": (GREY, {"tile": (16, 16), "compression": "zlib"}, {}),
    "strips": (GREY, {"rowsperstrip": 7, "compression": "lzw"}, {}),
    "channels": (FIVE, {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}, {"channels": [4, 1]}),
    "compressed channels": (
        FIVE, {"metadata": {"axes": "CYX"}, "photometric": "minisblack", "compression": "zlib"}, {"channels": 5}
    ),
    "colour": (RGB, {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}, {"channels": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("normalize", ["none", "zscore", "percentile", "depth"])
def test_a_window_is_a_part_of_the_whole(
    tmp_path: Path, name: str, normalize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, options, arguments = FILES[name]
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    monkeypatch.setattr(module, "BAND", 1000)  # several bands
    picture = open_picture(tmp_path / "x.tif")
    reading = Reading(normalize=normalize, **arguments)
    whole = normalized(image_of(picture, reading.channels, None), reading, picture.white)
    read = windows(picture, reading)
    assert read is not None
    for y0, y1, x0, x1 in ((0, 70, 0, 90), (3, 40, 17, 18), (69, 70, 80, 90)):
        got = read(y0, y1, x0, x1)
        assert np.allclose(got, whole[:, y0:y1, x0:x1], rtol=1e-5, atol=1e-5)
        assert normalize != "none" or np.array_equal(got, whole[:, y0:y1, x0:x1])


def test_what_has_no_windows_says_so(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", GREY.astype(np.float32))
    picture = open_picture(tmp_path / "x.tif")
    assert windows(picture, Reading(normalize="percentile")) is None
    assert windows(picture, Reading(downscale=2)) is None
    assert windows(picture.cropped(0, 9, 0, 9), Reading()) is None
    assert picture.cropped(1, 9, 2, 9).size == (8, 7)
