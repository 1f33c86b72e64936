"""The order of configuration layers: files, then the checkpoint, then the command line."""

import dataclasses
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datamodules
from datamodules.reading import Reading
from framework.checkpoints import check_whole, load_checkpoint, newest_whole
from framework.commands.yaml_files import as_yaml, parse, read_config
from framework.configs import find_config, run_name
from framework.elastic import checkpoint_to_go_on_from
from framework.errors import CheckpointError, ConfigError
from framework.serialization import import_target, same_class
from framework.trust import check_hyper_parameters, check_method, named_in

#: YAML's null as a word of the command line
_NULL = ("", "~", "null", "Null", "NULL")


@dataclasses.dataclass
class Layers:
    """The words of a command in order of precedence, lowest first, and what is to be said about them."""

    verb: str
    words: list[str]
    name: str | None
    checkpoint: Path | None = None
    hparams: dict[str, Any] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def command_line_overrides(self, final: Mapping[str, Any]) -> Iterator[str]:
        """One line for every hyper-parameter of the checkpoint that the parsed configuration `final` changed."""
        for key, stored, value in differences(self.hparams or {}, final):
            yield f"model.{key}: {value!r} from the command line (the checkpoint had {stored!r})"

    def check_overrides(self, final: Mapping[str, Any], decided_by_state: Collection[str]) -> None:
        """Refuses to change what the checkpoint's weights decide.

        Raises:
            ConfigError: names the argument and what to do.
        """
        for key, stored, value in differences(self.hparams or {}, final):
            if key.split(".")[0] in decided_by_state:
                raise ConfigError(
                    f"model.{key}: the weights of the checkpoint were made with {stored!r} and bring it with them, so "
                    f"{value!r} would change nothing; leave it out, or start without --ckpt_path"
                )


def layer_arguments(words: Sequence[str], verbs: Sequence[str], runs: Path) -> Layers:
    """Orders a command's words: verb, config files, the checkpoint's hyper-parameters, everything else.

    Args:
        words: the words after `framework`.
        verbs: the Trainer verbs.
        runs: the folder of run folders unless `trainer.default_root_dir` names another; there `--ckpt_path best` and
            `last` are looked up, below the name that fit gives the run.

    Raises:
        ConfigError: a config that is not there or is not YAML.
        CheckpointError: a checkpoint that is not there, is broken, or is of another class.
    """
    start = next((i for i, word in enumerate(words) if word in verbs), None)
    if start is None:
        return Layers("", list(words), None)
    head, verb, tail = list(words[:start]), words[start], list(words[start + 1 :])
    configs, rest = _take_option(tail, ("-c", "--config"))
    files = [file for config in configs for file in _with_bases(config)]
    contents = [content for _, content in files]
    _check_words(rest)
    named = [c for c in configs if not c.lstrip().startswith("{")]
    layers = Layers(verb, [], run_name(named[0]) if named else None)
    given: list[Any] = [content["ckpt_path"] for content in contents if "ckpt_path" in content]
    given += [None if word in _NULL else word for word in _values(rest, "--ckpt_path")]
    layers.checkpoint = _find_checkpoint(
        given[-1] if given else None, _run_folder(contents, rest, runs, layers.name), layers.notes
    )
    if verb == "fit" and (
        again := checkpoint_to_go_on_from(_run_folder(contents, rest, runs, layers.name), load_checkpoint)
    ):
        layers.notes.append(f"started again by torchrun: going on from {again}")
        layers.checkpoint = again
    words_of_files = [word for file, _ in files for word in ("--config", file)]
    if layers.checkpoint is not None:
        try:
            layers.hparams, layer = _checkpoint_layer(layers.checkpoint, contents, rest, layers.notes)
            if layer is not None and verb != "fit":
                layer |= _data_layer(layers.checkpoint, contents, rest, verb)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"ckpt_path: {layers.checkpoint} holds hyper-parameters of an unknown form ({error}); it is damaged, "
                "or not written by fit"
            ) from error
        words_of_files += ["--config", as_yaml(layer)] if layer else []
        rest = _drop_option(rest, "--ckpt_path")
    layers.words = [*head, verb, *words_of_files, *rest]
    return layers


def _check_words(words: Sequence[str]) -> None:
    """Values on the command line are YAML as well: those with aliases are read here first, where there are limits."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if "&" in value and "*" in value:
            try:
                parse(value)
            except ConfigError as error:
                raise ConfigError(f"{word[:80]}: {error}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever both have the key and the values differ; nested keys are dotted."""
    flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
    for key, value in flat_old.items():
        if key in flat_new and not _same(key, value, flat_new[key]):
            yield key, value, flat_new[key]


def _same(key: str, a: Any, b: Any) -> bool:
    if key.rsplit(".", 1)[-1] in ("class_path", "init_args") and isinstance(a, str) and isinstance(b, str):
        return same_class(a, b)
    return a == b


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_bases(config: str, above: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A configuration after those that its key `base` (a name or path, or a list of them) says it builds on.

    Returns:
        (what `--config` gets, the content) of each, the lowest first.
    """
    path = config if config.lstrip().startswith("{") else str(find_config(config))
    if path in above:
        raise ConfigError(f"-c {config}: base: the files {', '.join([*above, path])} build on each other in a circle")
    content = read_config(path)
    if "base" not in content:
        return [(path, content)]
    bases = content.pop("base")
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"-c {config}: base: expected the name or path of a configuration, or a list, got {bases!r}")
    lower = [file for base in bases for file in _with_bases(base, (*above, path))]
    return [*lower, (as_yaml(content), content)]


def sections(config: str, name: str) -> dict[str, Any]:
    """One section of a configuration and of those that it builds on, the higher winning key by key.

    Args:
        config: a path, or a name as `-c` takes it.
        name: `data`, `model` or `trainer`.
    """
    merged: dict[str, Any] = {}
    for _, content in _with_bases(config):
        found = content.get(name) or {}
        merged = _merge(merged, {"class_path": found} if isinstance(found, str) else found)
    return merged


def _checkpoint_layer(
    path: Path, contents: Sequence[Mapping[str, Any]], rest: Sequence[str], notes: list[str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The checkpoint's hyper-parameters and, as a configuration, its model section."""
    checkpoint = load_checkpoint(path)
    stored_hparams = checkpoint.get("hyper_parameters", {})
    stored = checkpoint.get("class_path") or stored_hparams.get("_class_path")
    if stored is None:
        return None, None
    asked = _asked_class(contents, rest)
    named = named_in([as_yaml(content) for content in contents] + list(rest))
    if asked is not None and "." in asked:
        import_target(asked, "model.class_path")  # the user's word; the class may be known by another path too
    check_method(stored, named)
    ours = stored.split(".")[0] == "models"
    hparams = {k: v for k, v in check_hyper_parameters(stored_hparams, named, ours=ours).items() if k[:1] != "_"}
    if asked is not None and not same_class(asked, stored):
        raise CheckpointError(
            f"ckpt_path: {path} holds a {stored}, but the configuration asks for {asked}; "
            "give a checkpoint of that class, or the configuration that belongs to this one"
        )
    init_args: dict[str, Any] = {}
    for model in _model_sections(contents):
        init_args = _merge(init_args, model.get("init_args") or {})
    for key, value, kept in differences(init_args, hparams):
        notes.append(f"model.{key}: {kept!r} from the checkpoint (the config file had {value!r})")
    return hparams, {"model": {"class_path": stored, "init_args": hparams}}


def _data_layer(
    path: Path, contents: Sequence[Mapping[str, Any]], rest: Sequence[str], verb: str
) -> dict[str, dict[str, Any]]:
    """The data module that the network was trained with, where no other is asked for; one of ours, nothing else."""
    stored = dict(load_checkpoint(path).get("preprocessing") or {})
    asked = [content.get("data") for content in contents] + _values(rest, "--data") + _values(rest, "--data.class_path")
    name = str(stored.pop("class_path", "")).rsplit(".", 1)[-1]
    if any(asked) or name not in datamodules.__all__:
        return {}
    arguments = inspect.signature(getattr(datamodules, name).__init__).parameters
    contract = {field.name for field in dataclasses.fields(Reading)}  # no folder and no file of the checkpoint's
    known = {key: value for key, value in stored.items() if key in contract & set(arguments)}
    if verb == "predict":
        known["eval_batch_size"] = 1  # pictures of any size
    return {"data": {"class_path": name, "init_args": known}}


def _model_sections(contents: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for content in contents:
        model = content.get("model") or {}
        yield {"class_path": model} if isinstance(model, str) else model


def _asked_class(contents: Sequence[Mapping[str, Any]], rest: Sequence[str]) -> str | None:
    """The model's class as the files and the command line name it."""
    given = [model.get("class_path") for model in _model_sections(contents)]
    given += [*_values(rest, "--model"), *_values(rest, "--model.class_path")]
    return next((g for g in reversed(given) if g), None)


def _run_folder(contents: Sequence[Mapping[str, Any]], rest: Sequence[str], runs: Path, config: str | None) -> Path:
    """The folder in which fit, given the same words, numbers its runs."""
    roots: list[Any] = [(content.get("trainer") or {}).get("default_root_dir") for content in contents]
    roots += _values(rest, "--trainer.default_root_dir")
    names: list[Any] = [content.get("name") for content in contents] + _values(rest, "--name")
    root, name = (next((v for v in reversed(values) if v and v != "null"), None) for values in (roots, names))
    fallback = config or (_asked_class(contents, rest) or "").rsplit(".", 1)[-1]
    return Path(root or runs, name or fallback)


def _find_checkpoint(given: str | None, folder: Path, notes: list[str]) -> Path | None:
    if not given:
        return None
    if given not in ("best", "last"):
        check_whole(Path(given))
        return Path(given)
    found = _newest_first(folder.glob("version_*/checkpoints/*.ckpt"))
    if not found:
        raise CheckpointError(f"ckpt_path: no run below {folder} has a {given}.ckpt; fit first, or give a path")
    # The newest run's; where that one is damaged or was never written, what else this run has, before an older run's.
    runs = list(dict.fromkeys(path.parent for path in found))
    of_run = [[path for path in found if path.parent == run] for run in runs]
    files = [path for paths in of_run for path in sorted(paths, key=lambda path: path.stem != given)]
    whole = newest_whole(files, notes.append)
    if whole is None:
        raise CheckpointError(f"ckpt_path: no whole checkpoint below {folder}; fit again, or give a path")
    if whole != runs[0] / f"{given}.ckpt":
        notes.append(f"--ckpt_path {given}: taking {whole}")
    return whole


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)


def _take_option(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    values, rest = [], []
    stream = iter(words)
    for word in stream:
        head, equals, value = word.partition("=")
        if word in names:
            value = next(stream, "")
            if not value:
                raise ConfigError(f"{word}: expected a path or a name after it")
            values.append(value)
        elif equals and head in names:
            values.append(value)
        else:
            rest.append(word)
    return values, rest


def _values(words: Sequence[str], name: str) -> list[str]:
    return _take_option(words, (name,))[0] if name in words or any(w.startswith(f"{name}=") for w in words) else []


def _drop_option(words: Sequence[str], name: str) -> list[str]:
    return _take_option(words, (name,))[1]


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
