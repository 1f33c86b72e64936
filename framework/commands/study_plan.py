"""A study's YAML file as a list of cells: what is run, in which order, and the words that `framework fit` gets."""

import dataclasses
import difflib
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from framework.commands.study_record import Kept
from framework.commands.values import arguments_of
from framework.configs import config_names, find_config
from framework.errors import ConfigError

_KEYS = {"base", "set", "axes", "seeds", "skip", "choose", "fit", "test", "checkpoint", "keep", "table", "measure"}
_KEYS |= {"rows"}
#: keys of what calls a function instead of a fit
_ROWS_KEYS = {"rows", "set", "axes", "skip"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        key: what its row is known by: the label of every axis, and the seed.
        words: of `framework fit`, without verb and name.
        arguments: of the study's function, where it has one.
    """

    key: dict[str, str]
    words: tuple[str, ...] = ()
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The key in words."""
        return ", ".join(f"{name} {value}" for name, value in self.key.items()) or "the only cell"


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's file says; see the page docs/studies.md."""

    name: str
    cells: list[Cell]
    keep: dict[str, Kept]
    fit: bool = True
    tests: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    checkpoint: str = "best"
    table: tuple[str, dict[str, str]] | None = None
    measure: str | None = None
    rows: str | None = None
    choose: tuple[str, Kept] | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a row is known by."""
        return list(self.cells[0].key) if self.cells else []

    def order(self) -> list[tuple[str, ...]]:
        """The keys' values in the order of the plan."""
        return [tuple(cell.key.values()) for cell in self.cells]


def load_study(name: str, extra: Sequence[str] = ()) -> Study:
    """Reads and checks a study.

    Args:
        name: a path, or a name such as `korigins/epochs` for `configs/korigins/studies/epochs.yaml`.
        extra: words that every cell's command ends with.

    Raises:
        ConfigError: there is no such study, or its file says what cannot be.
    """
    path = find_study(name)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study {name}: {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"study {name}: expected keys and values at the top of {path}")
    allowed = _ROWS_KEYS if "rows" in content else _KEYS
    if unknown := [key for key in content if key not in allowed]:
        near = difflib.get_close_matches(str(unknown[0]), sorted(allowed), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(allowed))}."
        raise ConfigError(f"study {name}: there is no key {unknown[0]!r} in a study; {hint}")
    short = _short_name(path)
    if "rows" in content:
        return Study(short, _function_cells(name, content, extra), {}, fit=False, rows=str(content["rows"]))
    if "base" not in content:
        raise ConfigError(f"study {name}: `base` is missing: one configuration or a list, as `framework fit -c` takes")
    choose = content.get("choose")
    table = content.get("table")
    return Study(
        short,
        list(_fit_cells(name, content, extra)),
        {column: Kept.parse(f"keep.{column}", text) for column, text in (content.get("keep") or {}).items()},
        fit=bool(content.get("fit", True)),
        tests=_tests(content.get("test", False)),
        checkpoint=str(content.get("checkpoint", "best")),
        table=None if table is None else (str(table["file"]), _columns(table["columns"])),
        measure=content.get("measure"),
        choose=None if choose is None else (str(choose["axis"]), Kept.parse("choose.by", choose["by"])),
    )


def find_study(name: str) -> Path:
    """The path of a study given by path or by name.

    Raises:
        ConfigError: there is no such study; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = dict(study_names())
    bare = name.removesuffix(".yaml").replace("/studies/", "/")
    if bare in known:
        return known[bare]
    near = difflib.get_close_matches(bare, known, n=3, cutoff=0.4) or sorted(known)
    raise ConfigError(f"study {name}: there is no such file and no study of this name; there are {', '.join(near)}")


def study_names() -> Iterator[tuple[str, Path]]:
    """Every shipped study as (name, path), e.g. ("korigins/epochs", .../korigins/studies/epochs.yaml)."""
    for name, path in config_names():
        if "/studies/" in name:
            yield name.replace("/studies/", "/"), path


def _short_name(path: Path) -> str:
    parent = path.resolve().parent
    return f"{parent.parent.name}/{path.stem}" if parent.name == "studies" else path.stem


# ---------------------------------------------------------------------------------------------------------- cells


def _fit_cells(name: str, content: Mapping[str, Any], extra: Sequence[str]) -> Iterator[Cell]:
    base = _listed(content["base"])
    for config in base:
        find_config(config)
    seeds = content.get("seeds", [0])
    read: dict[str, dict[str, Any]] = {}
    for seed, choices in itertools.product(seeds, list(_product(name, content.get("axes") or {}))):
        key = {axis: label for axis, (label, _) in choices.items()} | {"seed": str(seed)}
        if _skipped(key, content.get("skip") or []):
            continue
        configs, settings = list(base), dict(content.get("set") or {})
        for _, (_, changes) in choices.items():
            configs += _listed(changes.get("-c", []))
            settings |= {k: v for k, v in changes.items() if k != "-c"}
        words = [word for config in configs for word in ("-c", config)]
        words += [assign(k, v) for k, v in settings.items()]
        words += [
            word for word in seed_words(configs, seed, read) if word.split("=")[0].removeprefix("--") not in settings
        ]
        yield Cell(key, (*words, *extra))


def _function_cells(name: str, content: Mapping[str, Any], extra: Sequence[str]) -> list[Cell]:
    given = dict(word.removeprefix("--").split("=", 1) for word in extra if "=" in word)
    cells = []
    for choices in _product(name, content.get("axes") or {}):
        key = {axis: label for axis, (label, _) in choices.items()}
        if not _skipped(key, content.get("skip") or []):
            arguments = dict(content.get("set") or {})
            for _, changes in choices.values():
                arguments |= changes
            cells.append(Cell(key, (), arguments | {k: yaml.safe_load(v) for k, v in given.items()}))
    return cells


def _product(name: str, axes: Mapping[str, Any]) -> Iterator[dict[str, tuple[str, dict[str, Any]]]]:
    """Every combination: axis -> (label, what it changes)."""
    choices = []
    for axis, values in axes.items():
        if isinstance(values, Mapping):
            options = [(label(k), dict(v or {})) for k, v in values.items()]
        elif isinstance(values, list):
            options = [(label(v), {axis: v}) for v in values]
        else:
            raise ConfigError(f"study {name}: axes.{axis}: expected a list of values, or labels with what they change")
        choices.append([(axis, option) for option in options])
    for combination in itertools.product(*choices):
        yield dict(combination)


def label(value: Any) -> str:
    """A value as it stands in a row."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _skipped(key: Mapping[str, str], rules: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        all(key.get(axis) in [label(w) for w in _listed(wanted)] for axis, wanted in rule.items()) for rule in rules
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def assign(key: str, value: Any) -> str:
    """A setting as a word of the command line."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def seed_words(configs: Sequence[str], seed: int, read: dict[str, dict[str, Any]]) -> list[str]:
    """`--seed_everything`, and `--data.seed` and `--model.seed` where the classes have such an argument.

    Args:
        configs: of the cell, as `-c` takes them.
        seed: of the cell.
        read: configurations that were read before, by name; the others are added.
    """
    words = [f"--seed_everything={seed}"]
    for section, package in (("data", "datamodules"), ("model", "models")):
        path = None
        for content in itertools.chain.from_iterable(_contents(config, read) for config in configs):
            values = content.get(section) or {}
            path = values if isinstance(values, str) else values.get("class_path", path)
        if path and "seed" in _argument_names(path, package):
            words.append(f"--{section}.seed={seed}")
    return words


def _contents(config: str, read: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A configuration, after those that it builds on."""
    if config not in read:
        read[config] = yaml.safe_load(find_config(config).read_text()) or {}
    for base in _listed(read[config].get("base") or []):
        yield from _contents(base, read)
    yield read[config]


def _argument_names(path: str, package: str) -> set[str]:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module or package), name, None)
    if found is None:
        raise ConfigError(f"{path}: there is no such class in {module or package}")
    return set(arguments_of(found))


def _tests(given: Any) -> dict[str, tuple[str, ...]]:
    """Name of a test -> the words it has beside the fit's."""
    if isinstance(given, bool):
        return {"test": ()} if given else {}
    tests = {}
    for name, changes in given.items():
        changes = changes or {}
        configs = [word for config in _listed(changes.get("-c", [])) for word in ("-c", config)]
        tests[str(name)] = (*configs, *(assign(k, v) for k, v in changes.items() if k != "-c"))
    return tests


def _columns(given: Any) -> dict[str, str]:
    """Column of the row -> column of the table."""
    return {c: c for c in given} if isinstance(given, list) else {str(k): str(v) for k, v in given.items()}
