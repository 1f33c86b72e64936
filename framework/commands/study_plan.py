"""A study's YAML file as a list of cells: what is run, in which order, and the words that `framework fit` gets."""

import dataclasses
import difflib
import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from framework.commands.study_form import check_form, columns_of, find_label, label, labels_of, listed
from framework.commands.study_record import Kept
from framework.commands.values import arguments_of
from framework.commands.yaml_files import as_yaml, load_yaml
from framework.configs import config_names, find_config
from framework.errors import ConfigError


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
        read = load_yaml(path.read_text(encoding="utf-8-sig"))
    except ConfigError as error:
        raise ConfigError(f"study {name}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study {name}: {path} cannot be read as YAML: {error}") from error
    content = check_form(name, read)
    short = _short_name(path)
    if "rows" in content:
        cells = _function_cells(content, extra)
        return _with_cells(Study(short, cells, {}, fit=False, rows=content["rows"]), name)
    choose, table = content.get("choose"), content.get("table")
    study = Study(
        short,
        list(_fit_cells(content, extra)),
        {column: Kept.parse(f"keep.{column}", text) for column, text in content.get("keep", {}).items()},
        fit=content.get("fit", True),
        tests=_tests(content.get("test", False)),
        checkpoint=content.get("checkpoint", "best"),
        table=None if table is None else (table["file"], columns_of(table["columns"])),
        measure=content.get("measure"),
        choose=None if choose is None else (choose["axis"], Kept.parse("choose.by", choose["by"])),
    )
    return _with_cells(study, name)


def _with_cells(study: Study, name: str) -> Study:
    if not study.cells:
        raise ConfigError(f"study {name}: skip: leaves no cell of the study; take rules out")
    return study


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


def _fit_cells(content: Mapping[str, Any], extra: Sequence[str]) -> Iterator[Cell]:
    base = listed(content["base"])
    for config in base:
        find_config(config)
    read: dict[str, dict[str, Any]] = {}
    for seed, choices in itertools.product(content.get("seeds", [0]), list(_product(content.get("axes", {})))):
        key = {axis: name for axis, (name, _) in choices.items()} | {"seed": str(seed)}
        if _skipped(key, content):
            continue
        configs, settings = list(base), dict(content.get("set", {}))
        for _, (_, changes) in choices.items():
            configs += listed(changes.get("-c", []))
            settings |= {k: v for k, v in changes.items() if k != "-c"}
        words = [word for config in configs for word in ("-c", config)]
        words += [assign(k, v) for k, v in settings.items()]
        words += [
            word for word in seed_words(configs, seed, read) if word.split("=")[0].removeprefix("--") not in settings
        ]
        yield Cell(key, (*words, *extra))


def _function_cells(content: Mapping[str, Any], extra: Sequence[str]) -> list[Cell]:
    given = dict(word.removeprefix("--").split("=", 1) for word in extra if "=" in word)
    cells = []
    for choices in _product(content.get("axes", {})):
        key = {axis: name for axis, (name, _) in choices.items()}
        if not _skipped(key, content):
            arguments = dict(content.get("set", {}))
            for _, changes in choices.values():
                arguments |= changes
            cells.append(Cell(key, (), arguments | {k: yaml.safe_load(v) for k, v in given.items()}))
    return cells


def _product(axes: Mapping[str, Any]) -> Iterator[dict[str, tuple[str, dict[str, Any]]]]:
    """Every combination: axis -> (label, what it changes)."""
    choices = []
    for axis, values in axes.items():
        if isinstance(values, Mapping):
            options = [(label(k), dict(v or {})) for k, v in values.items()]
        else:
            options = [(label(v), {axis: v}) for v in values]
        choices.append([(axis, option) for option in options])
    for combination in itertools.product(*choices):
        yield dict(combination)


def _skipped(key: Mapping[str, str], content: Mapping[str, Any]) -> bool:
    labels = labels_of(content)
    return any(
        all(
            key[axis] in [find_label(f"skip.{axis}", label(w), labels[axis]) for w in listed(wanted)]
            for axis, wanted in rule.items()
        )
        for rule in content.get("skip", [])
    )


def assign(key: str, value: Any) -> str:
    """A setting as a word of the command line."""
    return f"--{key}={value if isinstance(value, str) else as_yaml(value)}"


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
        read[config] = yaml.safe_load(find_config(config).read_text(encoding="utf-8-sig")) or {}
    for base in listed(read[config].get("base") or []):
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
        configs = [word for config in listed(changes.get("-c", [])) for word in ("-c", config)]
        tests[str(name)] = (*configs, *(assign(k, v) for k, v in changes.items() if k != "-c"))
    return tests
