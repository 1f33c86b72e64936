"""Options stand once: in a dataclass or in a base class, with everything else handing them on."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from torch import nn

import datamodules
import models
from framework.method import BaseMethod

ROOT = Path(__file__).parents[1]
PACKAGES = ("framework", "models", "datamodules", "callbacks")
#: this many arguments with one default may stand in two signatures
MOST = 4
#: a layer that stands in for one of torch's has torch's arguments, in torch's order
OF_TORCH = {
    name
    for layer in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for name in layer.__init__.__code__.co_varnames[: layer.__init__.__code__.co_argcount]
}


def defaults(node: ast.AST) -> dict[str, str]:
    """Name -> default as it is written, of a function's arguments or of a dataclass's fields."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        plain = [*node.args.posonlyargs, *node.args.args]
        pairs = [*zip(plain[len(plain) - len(node.args.defaults) :], node.args.defaults, strict=True)]
        pairs += [(a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None]
        return {argument.arg: ast.unparse(default) for argument, default in pairs}
    if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and f.value is not None]
        return {ast.unparse(f.target): ast.unparse(f.value) for f in fields if f.value is not None}
    return {}


def signatures(sources: dict[str, str]) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """(where, pairs of name and default) of every function and dataclass that has more than `MOST`."""
    for where, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            pairs = defaults(node)
            if where.startswith("framework/nn/"):
                pairs = {name: default for name, default in pairs.items() if name not in OF_TORCH}
            if len(pairs) > MOST:
                yield f"{where}:{getattr(node, 'lineno', 0)}", set(pairs.items())


def repeated(sources: dict[str, str]) -> list[str]:
    """Pairs of signatures that share more than `MOST` arguments, and which."""
    return [
        f"{a} and {b}: {', '.join(sorted(name for name, _ in x & y))}"
        for (a, x), (b, y) in itertools.combinations(signatures(sources), 2)
        if len(x & y) > MOST
    ]


def test_no_list_of_arguments_stands_twice() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert repeated({p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}) == []


def test_a_list_that_stands_twice_is_found() -> None:
    twice = {
        "models/a.py": "class A:\n    def __init__(self, x, a=1, *, b='b', c=None, d=D, e=(1, 2)): ...",
        "models/b.py": "@dataclass(frozen=True)\nclass B:\n    e: tuple = (1, 2)\n    d: int = D\n    c: int = None\n"
        "    b: str = 'b'\n    a: int = 1",
    }
    assert repeated(twice) == ["models/a.py:2 and models/b.py:2: a, b, c, d, e"]
    assert repeated({**twice, "models/a.py": twice["models/a.py"].replace("a=1", "a=2")}) == []


def keys(kind: type) -> set[str]:
    """The arguments that a configuration may give."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "it", fail_untyped=False)
    return {
        action.dest.removeprefix("it.").split(".")[0] for action in parser._actions if action.dest.startswith("it.")
    }


@pytest.mark.parametrize("name", models.__all__)
def test_a_configuration_sees_what_a_method_hands_on(name) -> None:
    kind = getattr(models, name)
    found = keys(kind)
    assert {"optimizer", "lr_scheduler", "lr_interval"} <= found
    for base in kind.__mro__[: kind.__mro__.index(BaseMethod)]:
        if "__init__" in base.__dict__:
            code = base.__init__.__code__
            assert {*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]} <= found, base.__name__


@pytest.mark.parametrize("name", [name for name in datamodules.__all__ if name != "KodakDataModule"])
def test_a_configuration_sees_how_a_data_module_loads(name) -> None:
    assert {"batch_size", "eval_batch_size", "num_workers", "seed", "drop_last"} <= keys(getattr(datamodules, name))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (models.KOriginsSegmentation, {"width": 2, "num_classes": 3}),
        (models.KMUNet, {"width": 2, "stages": 1, "tile": 256}),
        (models.FinolaAutoencoder, {"channels": 4, "image_size": 16, "map_size": 4, "encoder_width": 4}),
        (models.MaskedFinola, {"channels": 4, "image_size": 16, "encoder_width": 4, "loss": "l1"}),
        (models.LevelsOfExperts, {"width": 8, "weights": "best"}),
    ],
)
def test_every_argument_is_stored_with_a_method(kind, given) -> None:
    method = kind(**given)
    assert set(method.hparams) == keys(kind)
    assert given.items() <= method.hparams.items()
    assert kind(**method.hparams).hparams == method.hparams
