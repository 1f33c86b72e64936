"""Configurations by name: `-c korigins/quickstart` is found in the packaged configs, then in the checkout's."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from framework.errors import ConfigError

_PACKAGE = Path(__file__).parent


def config_roots() -> list[Path]:
    """The folders that hold configurations: inside the installed wheel, and beside the packages in a checkout."""
    return [root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()]


def config_names() -> Iterator[tuple[str, Path]]:
    """Every shipped configuration as (name, path), e.g. ("korigins/quickstart", .../quickstart.yaml)."""
    seen = set()
    for root in config_roots():
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            if name not in seen:
                seen.add(name)
                yield name, path


def find_config(name: str) -> Path:
    """The path of a configuration given by path or by name.

    Raises:
        ConfigError: there is no such file and no such name; lists the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    bare = name.removeprefix("configs/").removesuffix(".yaml")
    names = dict(config_names())
    if bare in names:
        return names[bare]
    if path.exists():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise ConfigError(
            f"-c {name}: expected a YAML file, got {kind}; `framework list` shows the shipped configurations"
        )
    near = difflib.get_close_matches(bare, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`framework list` shows the names."
    raise ConfigError(f"-c {name}: there is no such file, and no shipped configuration of this name; {hint}")


def run_name(config: str) -> str:
    """The run folder's name for a configuration: its last folder and stem, e.g. "korigins/quickstart"."""
    path = Path(config)
    parts = [p for p in (path.parent.name, path.stem) if p not in ("", ".", "..")]
    return "/".join(parts)
