"""The pages that show how to extend the framework are run as they stand."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).parents[1] / "docs"
SMALL = ["-c", "trainer/debug", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize("page", ["add-a-method", "add-a-dataset", "add-a-callback"])
def test_the_page_runs_as_it_is_written(page, run, tmp_path) -> None:
    text = (DOCS / f"{page}.md").read_text()
    name = re.search(r"Save this as `(\w+\.py)`", text).group(1)
    (tmp_path / name).write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    command = re.search(r"```\n(framework fit .*?)```", text, re.S).group(1).replace("\\\n", " ")
    verb, *words = shlex.split(command)[1:]
    cli = run(verb, *words, *SMALL)
    folder = Path(cli.trainer.log_dir)
    log = pd.read_csv(folder / "metrics.csv")
    assert log["train/loss"].notna().any()
    assert any(folder.joinpath("figures").glob("*.png"))
    if page == "add-a-callback":
        assert (log["origins/spread"].dropna() > 0).all()
