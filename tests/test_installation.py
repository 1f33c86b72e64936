"""A built wheel works in a clean environment, from another directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_in_a_clean_environment_runs_a_quickstart_by_name(tmp_path) -> None:
    uv = [sys.executable, "-m", "uv"] if shutil.which("uv") is None else ["uv"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(*uv, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    call(*uv, "venv", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next((tmp_path / "dist").glob("explicit_vision-*.whl"))
    call(*uv, "pip", "install", "--python", python, wheel)
    command = tmp_path / "venv" / "bin" / "framework"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "framework VERB" in call(command, "--help", cwd=elsewhere)
    assert "korigins/quickstart" in call(command, "list", "configs", cwd=elsewhere)
    call(command, "fit", "-c", "korigins/quickstart", "-c", "trainer/debug", cwd=elsewhere)
    assert list(elsewhere.glob("runs/korigins/quickstart/version_0/figures/*.png"))
