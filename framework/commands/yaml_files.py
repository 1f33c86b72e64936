"""Configurations read with limits: double keys, loops, alias bombs and wrong kinds of section are a message each."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from framework.errors import ConfigError

#: a configuration is a page of text; beyond these it is a mistake or an attack
MAX_BYTES = 4 * 2**20
MAX_DEPTH = 50
MAX_VALUES = 100_000

# how a section may be written
_SECTIONS: dict[str, tuple[tuple[type, ...], str]] = {
    "trainer": ((dict,), "keys and values"),
    "model": ((dict, str), "a class name, or class_path and init_args"),
    "data": ((dict, str), "a class name, or class_path and init_args"),
    "name": ((str,), "text; put a number in quotes"),
    "ckpt_path": ((str,), "a path, best or last"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that stands twice in one mapping is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses duplicate keys."""
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ConfigError(
                    f"the key {key.value!r} stands twice, in line {seen[key.value]} and in line {line}; remove one"
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


class _ConfigLoader(_Loader):
    """`1e-3` is a number, as it is to jsonargparse and in YAML 1.2; to PyYAML it is text without a point."""


_ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_config(path: str) -> dict[str, Any]:
    """The content of a configuration.

    Args:
        path: of a file, or YAML itself when it begins with a brace.

    Raises:
        ConfigError: it cannot be read, is not YAML, is too large or too deep, holds a key twice, or has a section of
            the wrong kind.
    """
    inline = path.lstrip().startswith("{")
    shown = f"-c {path if len(path) < 80 else path[:76] + ' ...'}"
    try:
        content = parse(path if inline else _text(Path(path)))
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from error.__cause__
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read as YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{shown}: expected keys and values at the top, got {type(content).__name__}")
    for key, (kinds, expected) in _SECTIONS.items():
        value = (content or {}).get(key)
        if value is not None and not isinstance(value, kinds):
            raise ConfigError(f"{shown}: {key}: expected {expected}, got {value!r}")
        if key in (content or {}) and value is None and key == "trainer":
            raise ConfigError(f"{shown}: {key}: expected {expected}, got nothing; remove the key or fill it")
        if isinstance(value, dict) and key in ("model", "data"):
            _check_class(f"{shown}: {key}", value)
    return content or {}


def parse(text: str) -> Any:
    """YAML as plain values.

    Raises:
        ConfigError: not YAML, a key that stands twice, a value that holds itself, over 50 levels or 100,000 values.
    """
    try:
        content = yaml.load(text, Loader=_ConfigLoader)  # a safe loader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        said = " ".join(str(error).split()) if not isinstance(error, RecursionError) else f"over {MAX_DEPTH} levels"
        raise ConfigError(f"cannot be read as YAML: {said}") from error
    _count(content, [], [0])
    return content


def load_yaml(text: str) -> Any:
    """YAML as PyYAML's safe loader reads it; a key that stands twice in one mapping is a ConfigError."""
    return yaml.load(text, Loader=_Loader)  # a safe loader


class _Dumper(yaml.SafeDumper):
    """Values on one line; text in quotes, so that no reader takes it for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes what stands twice twice."""
        return True


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    if math.isfinite(value):
        return dumper.represent_scalar("tag:yaml.org,2002:float", repr(float(value)))
    return dumper.represent_float(value)


_Dumper.yaml_representers = {k: v for k, v in _Dumper.yaml_representers.items() if k not in (str, float)}
_Dumper.add_multi_representer(str, lambda d, value: d.represent_scalar("tag:yaml.org,2002:str", str(value), style='"'))
_Dumper.add_multi_representer(float, _float)
_Dumper.add_multi_representer(dict, lambda d, value: d.represent_mapping("tag:yaml.org,2002:map", dict(value)))


def as_yaml(value: Any) -> str:
    """Plain values as one line for jsonargparse, which reads them as they were: as JSON, but for infinity and NaN.

    Args:
        value: text, numbers, true, false, null, and lists and dictionaries of them.

    Raises:
        TypeError: something else.
    """
    try:
        text = yaml.dump(
            value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False
        )
    except yaml.representer.RepresenterError as error:
        raise TypeError(f"expected plain values, got {type(error.args[-1]).__name__}") from error
    return text.removesuffix("\n").removesuffix("\n...")


def _text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError("expected a regular file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"expected a configuration of at most {MAX_BYTES} bytes, got {size}")
    return path.read_text(encoding="utf-8-sig")


def _count(value: Any, inside: list[int], total: list[int]) -> None:
    # Aliases share their value: memory stays small until somebody walks through it, as every reader does.
    total[0] += 1
    if total[0] > MAX_VALUES:
        raise ConfigError(f"holds more than {MAX_VALUES} values, aliases counted wherever they stand")
    if not isinstance(value, dict | list):
        if value is not None and not isinstance(value, str | int | float):
            raise ConfigError(
                f"expected text, a number, true, false or null, got a {type(value).__name__}, {value}; text belongs in "
                "quotes"
            )
        return
    if id(value) in inside:
        raise ConfigError("an anchor holds an alias of itself; write the value out")
    if len(inside) >= MAX_DEPTH:
        raise ConfigError(f"nested more than {MAX_DEPTH} levels deep")
    inside.append(id(value))
    for entry in value.values() if isinstance(value, dict) else value:
        _count(entry, inside, total)
    if isinstance(value, dict) and (wrong := [k for k in value if not isinstance(k, str)]):
        raise ConfigError(f"the key {wrong[0]!r} is no text; put it in quotes")
    inside.pop()


def _check_class(shown: str, value: Mapping[str, Any]) -> None:
    named = value.get("class_path")
    if "class_path" in value and not isinstance(named, str):
        raise ConfigError(f"{shown}.class_path: expected a class name, got {named!r}")
    arguments = value.get("init_args")
    if arguments is not None and not isinstance(arguments, dict):
        raise ConfigError(f"{shown}.init_args: expected keys and values, got {arguments!r}")
