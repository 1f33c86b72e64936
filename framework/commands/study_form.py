"""What a study's YAML file may say: every key's form, and that no two columns of its rows have one name."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from framework.commands.study_record import Kept
from framework.errors import ConfigError, few

_KEYS = {"base", "set", "axes", "seeds", "skip", "choose", "fit", "test", "checkpoint", "keep", "table", "measure"}
_KEYS |= {"rows"}
#: keys of what calls a function instead of a fit
_ROWS_KEYS = {"rows", "set", "axes", "skip"}
#: columns that a fit has by itself; a table that the run writes may have its own in their place
MEASURED = ("parameters", "epochs", "steps")
#: columns that every row ends with
COSTS = ("wall_s", "cpu_s", "peak_mib", "peak_device_mib")
MADE_BY = ("hardware", "torch", "lightning", "date", "command", "run", "made_by")


def check_form(name: str, content: Any) -> dict[str, Any]:
    """Raises ConfigError for the first key of a study that cannot be.

    Args:
        name: of the study, for the message.
        content: of its file.

    Returns:
        the content; keys that hold nothing are left out.

    Raises:
        ConfigError: names the key, what was got and what is expected.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"study {name}: expected keys and values at its top, got {content!r}")
    try:
        _check_keys(content)
        content = {key: value for key, value in content.items() if value is not None}
        _check_settings(content)
        _check_axes(content.get("axes", {}), fits="rows" not in content)
        _check_seeds(content.get("seeds", [0]))
        for rule in _of(content, "skip", list, "a list of combinations, each {axis: label}", []):
            _check_rule(content, rule)
        _check_runs(content)
        _check_columns(content)
    except ConfigError as error:
        raise ConfigError(f"study {name}: {error}") from None
    return content


def _check_keys(content: Mapping[Any, Any]) -> None:
    allowed = _ROWS_KEYS if "rows" in content else _KEYS
    if unknown := [key for key in content if key not in allowed]:
        near = difflib.get_close_matches(str(unknown[0]), sorted(allowed), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(allowed))}"
        raise ConfigError(f"{unknown[0]}: there is no such key in a study; {hint}")
    if "rows" not in content and content.get("base") is None:
        raise ConfigError("base: expected one configuration or a list, as `framework fit -c` takes, got none")


def _of(content: Mapping[str, Any], key: str, kinds: Any, expected: str, default: Any) -> Any:
    value = content.get(key, default)
    if not isinstance(value, kinds):
        raise ConfigError(f"{key}: expected {expected}, got {value!r}")
    return value


def _check_settings(content: Mapping[str, Any]) -> None:
    _texts("base", content.get("base", []), "one configuration or a list, as `framework fit -c` takes")
    _check_changes("set", content.get("set", {}))
    for key in ("measure", "rows"):
        _of(content, key, str, "module:function", "")


def _texts(key: str, value: Any, expected: str) -> None:
    if not all(isinstance(entry, str) for entry in listed(value)):
        raise ConfigError(f"{key}: expected {expected}, got {value!r}")


def _check_changes(key: str, changes: Any) -> None:
    if not isinstance(changes, Mapping | None) or not all(isinstance(k, str) for k in changes or {}):
        raise ConfigError(f"{key}: expected keys and values, as on the command line, got {changes!r}")
    _texts(f"{key}.-c", (changes or {}).get("-c", []), "one configuration or a list, as `framework fit -c` takes")


# --------------------------------------------------------------------------------------------------- axes and seeds


def _check_axes(axes: Any, fits: bool) -> None:
    if not isinstance(axes, Mapping):
        raise ConfigError(f"axes: expected axis: values, got {axes!r}")
    for axis, values in axes.items():
        if not isinstance(axis, str):
            raise ConfigError(f"axes: expected text, got the name {axis!r}; put it in quotes")
        if axis in ((*COSTS, *MADE_BY, *MEASURED, "seed") if fits else (*COSTS, *MADE_BY)):
            raise ConfigError(f"axes.{axis}: every row has a column of this name already; give the axis another")
        if not isinstance(values, Mapping | list):
            raise ConfigError(
                f"axes.{axis}: expected a list of values, or labels with what they change, got {values!r}"
            )
        if not values:
            raise ConfigError(f"axes.{axis}: expected at least one value, got none; fill it or remove it")
        _check_distinct(f"axes.{axis}", list(values))
        for name, changes in values.items() if isinstance(values, Mapping) else ():
            _check_changes(f"axes.{axis}.{label(name)}", changes)


def _check_distinct(key: str, values: Sequence[Any]) -> None:
    for place, value in enumerate(values):
        if twin := [other for other in values[:place] if same_label(label(other), label(value))]:
            raise ConfigError(f"{key}: {label(twin[0])} and {label(value)} are one value; remove one")


def _check_seeds(seeds: Any) -> None:
    valid = isinstance(seeds, list) and bool(seeds)
    if not valid or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(f"seeds: expected a list of whole numbers from 0 on, such as [0, 1, 2], got {seeds!r}")
    _check_distinct("seeds", seeds)


def labels_of(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The labels of every axis, and of `seed` where a study has fits."""
    labels = {axis: [label(value) for value in values] for axis, values in content.get("axes", {}).items()}
    return labels if "rows" in content else {**labels, "seed": [str(seed) for seed in content.get("seeds", [0])]}


def _check_rule(content: Mapping[str, Any], rule: Any) -> None:
    labels = labels_of(content)
    if not isinstance(rule, Mapping) or not rule:
        raise ConfigError(f"skip: expected axis: label, or axis: [labels], got {rule!r}")
    for axis, wanted in rule.items():
        if axis not in labels:
            raise ConfigError(f"skip: there is no axis {axis!r}; there are {few(list(labels))}")
        for value in listed(wanted):
            find_label(f"skip.{axis}", label(value), labels[axis])


def find_label(key: str, text: str, labels: Collection[str]) -> str:
    """The label that a text means: the same text, or the same value written in another way.

    Raises:
        ConfigError: there is none.
    """
    found = text if text in labels else next((known for known in labels if same_label(known, text)), None)
    if found is None:
        raise ConfigError(f"{key}: there is no value {text}; there are {', '.join(labels)}")
    return found


def label(value: Any) -> str:
    """A value as it stands in a row."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def same_label(one: str, other: str) -> bool:
    """Whether two texts are one value: 0.001 is 1e-3, [1,2] is [1, 2]."""
    return one == other or _value(one) == _value(other)


def _value(text: str) -> tuple[str, Any]:
    try:
        return "number", float(text)
    except ValueError:
        pass
    try:
        return "value", json.dumps(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError):
        return "text", text


def listed(value: Any) -> list[Any]:
    """A list as it is, anything else as a list of itself."""
    return list(value) if isinstance(value, list) else [value]


# ------------------------------------------------------------------------------------------------- what is run and kept


def _check_runs(content: Mapping[str, Any]) -> None:
    fit = _of(content, "fit", bool, "true or false", True)
    test = _of(content, "test", bool | Mapping, "true, false, or names with what changes", False)
    for name, changes in test.items() if isinstance(test, Mapping) else ():
        if not isinstance(name, str) or "/" in name or (fit and name in ("train", "val")):
            raise ConfigError(f"test: expected text without `/` that is neither train nor val, got the name {name!r}")
        _check_changes(f"test.{name}", changes)
    if "rows" not in content and not fit and not test:
        raise ConfigError("fit: false leaves nothing to run; give `test: true`, or names with what changes")
    checkpoint = content.get("checkpoint", "best")
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"checkpoint: expected best or last, got {checkpoint!r}")


def _check_columns(content: Mapping[str, Any]) -> None:
    keep = _of(content, "keep", Mapping, "column: figure, such as iou: val/iou max", {})
    taken = dict.fromkeys([*COSTS, *MADE_BY], "every row has it") | dict.fromkeys(labels_of(content), "it is an axis")
    for column in keep:
        _check_column("keep", column, taken | dict.fromkeys(MEASURED, "every row has it"))
    table = content.get("table")
    if table is not None:
        _check_table(table)
        for column in columns_of(table["columns"]):
            _check_column("table.columns", column, taken | dict.fromkeys(keep, "it is kept"))
    for column, text in keep.items():
        _check_kept(f"keep.{column}", Kept.parse(f"keep.{column}", text).figure, content)
    if "choose" in content:
        _check_choice(content["choose"], content)


def _check_column(key: str, column: Any, taken: Mapping[str, str]) -> None:
    if not isinstance(column, str):
        raise ConfigError(f"{key}: expected text, got the column {column!r}; put it in quotes")
    if column in taken:
        raise ConfigError(f"{key}.{column}: there is a column of this name already ({taken[column]}); take another")


def _check_table(table: Any) -> None:
    valid = isinstance(table, Mapping) and set(table) == {"file", "columns"} and isinstance(table["file"], str)
    if not valid or not isinstance(table["columns"], list | Mapping) or not table["columns"]:
        raise ConfigError(f"table: expected `file` and `columns`, a list or column: column of the file, got {table!r}")


def columns_of(given: Any) -> dict[str, str]:
    """Column of the row -> column of the table."""
    return {c: c for c in given} if isinstance(given, list) else {k: str(v) for k, v in given.items()}


def _check_kept(key: str, figure: str, content: Mapping[str, Any]) -> None:
    """Refuses a figure that no run of the study can have; what callbacks log is known only when they have run."""
    split = figure.split("/")[0]
    test = content.get("test", False)
    tests = {"test"} if test is True else set(test or {})
    if split == "test" and split not in tests:
        more = f"its tests are {few(sorted(tests))}" if tests else "give `test: true`"
        raise ConfigError(f"{key}: {figure} is a figure of a test, which the study does not run; {more}")
    if split in ("train", "val") and not content.get("fit", True) and split not in tests:
        raise ConfigError(f"{key}: {figure} is a figure of a fit, which the study does not run; keep one of its tests")


def _check_choice(choose: Any, content: Mapping[str, Any]) -> None:
    if not isinstance(choose, Mapping) or set(choose) != {"axis", "by"}:
        raise ConfigError(f"choose: expected `axis` and `by`, such as {{axis: rate, by: psnr max}}, got {choose!r}")
    axes = list(content.get("axes", {}))
    if choose["axis"] not in axes:
        raise ConfigError(f"choose.axis: there is no axis {choose['axis']!r}; there are {few(axes) or 'none'}")
    column = Kept.parse("choose.by", choose["by"]).figure
    table = content.get("table") or {"columns": []}
    known = [*content.get("keep", {}), *columns_of(table["columns"]), *MEASURED, *COSTS]
    if column not in known and "measure" not in content:
        raise ConfigError(f"choose.by: the rows have no column {column!r}; there are {few(known, 12)}")
