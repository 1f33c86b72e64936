"""docs/microscopy.md is run as it is written, on pictures made here."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from skimage import io

from tests.test_loading import picture

PAGE = (Path(__file__).parents[1] / "docs" / "microscopy.md").read_text(encoding="utf-8")
#: an epoch of a small network
SMALL = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def test_the_page_runs_as_it_is_written(run: Any) -> None:
    for part in ("images", "masks"):
        Path("cells", part).mkdir(parents=True)
    Path("new").mkdir()
    for i in range(10):
        image, objects = picture(i)
        tifffile.imwrite(f"cells/images/x{i}.tif", image)
        tifffile.imwrite(f"cells/masks/x{i}_labels.tif", objects)
    tifffile.imwrite("new/a.tif", picture(99, (50, 70))[0], resolution=(1e4, 1e4), resolutionunit="CENTIMETER")
    (block,) = re.findall(r"```\n(framework .*?)```", PAGE, re.S)
    lines = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]
    assert [words[0] for words in lines] == ["fit", "test", "predict", "predict"]
    for words in lines:
        small = ["--model.width=2", "--model.stages=2"] if words[0] == "fit" else []
        small = ["--model.tile=32"] if "--model.tile" in words else small  # so that there are several
        cli = run(*words, *SMALL, *small)
        if words[0] == "test":
            tested = Path(cli.trainer.log_dir)
    for name in re.findall(r"^\| `([\w./]+(?:csv|png))`", PAGE, re.M):
        assert (tested / name).is_file(), name
    (mask,) = Path("runs/cells").glob("version_*/predictions/a_mask.tif")
    written = tifffile.imread(mask)
    assert written.shape == (50, 70)
    table = pd.read_csv(mask.parent / "objects.csv") if (mask.parent / "objects.csv").is_file() else None
    assert (0 if table is None else len(table)) == len(np.unique(written[written > 0]))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    found: dict[str, Any] = {}
    exec(code, found)
    assert np.array_equal(found["labels"], written)
    assert np.array_equal(tifffile.imread("out/a_mask.tif"), written)
    assert tifffile.imread("out/a_probabilities.tif").shape == (3, 50, 70)
    assert io.imread("out/a_overlay.png").shape == (50, 70, 3)
