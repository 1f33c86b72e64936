"""Fixtures that every test of the command line uses."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.main import main

# Forked ranks and xdist workers share the cores; a test must not depend on how many threads there are.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Autograd starts its device threads at the first backward pass, and with such threads a process cannot fork any more.
# torch.compile registers a device of its own; so, where there is no real one, the first pass comes before it.
if torch.cuda.device_count() == 0:
    torch.zeros((), requires_grad=True).backward()

DTYPES = ("float32", "bfloat16", "float16")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device` and `--dtype`, for the tests that can be pointed at an accelerator."""
    parser.addoption(
        "--device",
        default="cpu",
        help="where tests/nn and the short fits of tests/test_short_fits.py run: cpu, cuda, or simulated (tests/nn "
        "only: an accelerator's rules, counted on the CPU)",
    )
    parser.addoption(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="precision of the short fits and of tests/nn/test_device_and_dtype.py",
    )


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """The device of `--device`."""
    name = pytestconfig.getoption("device")
    if name not in ("cpu", "simulated") and not torch.cuda.is_available():
        pytest.fail(f"--device: there is no {name} here")
    return name


@pytest.fixture(scope="session")
def dtype(pytestconfig: pytest.Config) -> torch.dtype:
    """The dtype of `--dtype`."""
    return getattr(torch, pytestconfig.getoption("dtype"))


# A K-network small enough for a fraction of a second, with two epochs' worth of everything.
TINY = [
    "-c",
    "korigins/quickstart",
    "--model.rfl=8",
    "--model.width=2",
    "--data.side=24",
    "--data.images=14",
    "--data.shapes_per_class=[1,1]",
    "--data.radius_range=[3,5]",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before Python 3.12 counting lines is dear: only the layers' tests are counted, in a run with --cov."""
    if sys.version_info < (3, 12):
        for item in items:
            if Path(__file__).parent / "nn" not in item.path.parents:
                item.add_marker("no_cover")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`run("fit", ...)` is the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["framework"])

    def call(*words: str) -> Any:
        return main(list(words))

    return call


@pytest.fixture
def tiny() -> list[str]:
    """Words that shrink the quickstart to a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}: tests on real images need the data folder beside the project")
    return folder
