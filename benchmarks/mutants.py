"""How much the tests hold: lines of the code are changed one at a time, and the tests that belong to them run.

    python -m benchmarks.mutants --out results/mutants.csv --count 150

A draw from all changes that cosmic-ray's operators make to the modules of `TESTS` (a comparison turned, a number moved
by one, a loop left out, ...), one operator a place. Each change is made in a forked process, in memory: no file is
touched. `killed` is a change that a test notices (or that no import survives), `timeout` one that makes the tests
stand still, `survived` one that nobody notices. A row each; rows there are not done again. `--again` hands survivors
to the tests of the whole neighbourhood, `WIDER`, and keeps what came of them as `now`. Needs `pip install cosmic-ray`.
"""

import argparse
import ast
import contextlib
import csv
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType

from benchmarks.common import append_row, environment

ROOT = Path(__file__).parents[1]
SPLINES = ["tests/nn/test_bspline.py", "tests/nn/test_kan.py", "tests/nn/test_state.py"]
#: the modules and the tests that belong to them
TESTS: dict[str, list[str]] = {
    "framework/method.py": ["tests/test_contracts.py", "tests/test_customs.py", "tests/test_schedules.py"],
    "framework/lifecycle.py": ["tests/test_lifecycle.py", "tests/test_contracts.py"],
    "framework/distributed.py": ["tests/test_contracts.py", "tests/distributed/test_kmunet_ranks.py"],
    "framework/resume.py": ["tests/test_nothing_lost.py", "tests/models/test_decided_by_state.py"],
    "framework/best.py": ["tests/test_nothing_lost.py"],
    "framework/checkpoints.py": ["tests/test_nothing_lost.py", "tests/test_trust.py"],
    "framework/guards.py": ["tests/test_guards.py"],
    "callbacks/checkpoints.py": ["tests/test_nothing_lost.py"],
    "callbacks/filter_replacement.py": ["tests/callbacks/test_filter_replacement.py"],
    "callbacks/grid_extension.py": ["tests/callbacks/test_grid_extension.py"],
    "callbacks/prediction_writer.py": ["tests/datamodules/test_predictions.py"],
    "callbacks/segmentation_maps.py": ["tests/callbacks/test_segmentation_maps.py"],
    "callbacks/segmentation_report.py": ["tests/callbacks/test_segmentation_report.py"],
    "callbacks/spline_pruning.py": ["tests/callbacks/test_spline_pruning.py"],
    "framework/nn/splines/bspline.py": SPLINES,
    "framework/nn/splines/coefficients.py": SPLINES,
    "framework/nn/splines/expansion.py": ["tests/nn/test_spline_operator.py", *SPLINES],
    "framework/nn/splines/kan.py": SPLINES,
    "framework/nn/splines/layer.py": SPLINES,
    "framework/nn/splines/lifts.py": ["tests/nn/test_spline_forms.py", "tests/nn/test_spline_operator.py", *SPLINES],
    "framework/nn/splines/low_rank.py": ["tests/nn/test_spline_forms.py"],
    "framework/nn/splines/forms.py": ["tests/nn/test_spline_forms.py"],
    "framework/nn/splines/int8.py": ["tests/nn/test_spline_forms.py"],
    "framework/nn/splines/moments.py": SPLINES,
    "framework/nn/splines/optimizer.py": [*SPLINES, "tests/callbacks/test_grid_extension.py"],
    "framework/nn/splines/plain.py": ["tests/nn/test_plain_form.py"],
    "framework/nn/splines/pruning.py": SPLINES,
    "framework/nn/splines/stored.py": SPLINES,
}
#: for the survivors: what else may notice, by the beginning of the module's path
WIDER = {
    "framework/nn/splines": [
        "tests/callbacks/test_spline_pruning.py", "tests/callbacks/test_grid_extension.py",
        "tests/nn/test_spline_forms.py", "tests/nn/test_every_layer.py", "tests/models/test_kmunet.py",
    ],
    "callbacks": ["tests/datamodules/test_large.py", "tests/test_short_fits.py", "tests/models/test_kmunet.py"],
    "framework": ["tests/test_command_line.py", "tests/test_short_fits.py", "tests/models/test_decided_by_state.py"],
}  # fmt: skip
#: characters of a line in the CSV
LONGEST = 200
#: changes that are none: `== None` for `is None`; and those that ask for arguments
LEFT_OUT = ("_Is_Eq", "_IsNot_NotEq", "VariableReplacer", "VariableInserter", "RemoveDecorator", "_BitOr_")


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads one module from another text than its file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec", dont_inherit=True)

    @classmethod
    def install(cls, module: str, text: str) -> None:
        name, path = module.removesuffix(".py").replace("/", "."), str(ROOT / module)

        class Finder:
            @staticmethod
            def find_spec(fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
                if fullname != name:
                    return None
                return importlib.util.spec_from_file_location(name, path, loader=cls(name, path, text))

        sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]


def places(module: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Every place (line, column) of a module that can be changed, and by which (operator, occurrence)."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import get_ast

    source = (ROOT / module).read_text(encoding="utf-8")
    silent = _silent(ast.parse(source))
    tree = get_ast(source)
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in plugins.operator_names():
        if any(part in name for part in LEFT_OUT):
            continue
        operator, occurrence = plugins.get_operator(name)(), 0
        for node in _walk(tree):
            for start, _ in operator.mutation_positions(node):
                if not any(a <= start <= b for a, b in silent):
                    found.setdefault((start[0], start[1]), []).append((name, occurrence))
                occurrence += 1
    return found


def _walk(node: object) -> Iterator:
    """In the order of cosmic-ray's visitor, which counts the occurrences."""
    yield node
    for child in getattr(node, "children", ()):
        yield from _walk(child)


def _silent(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans where a change means nothing: annotations and messages of errors."""
    spans = []
    for node in ast.walk(tree):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise):
            annotations.append(node.exc)
        spans += [
            ((a.lineno, a.col_offset), (a.end_lineno or 0, a.end_col_offset or 0))
            for a in annotations
            if isinstance(a, ast.expr)
        ]
    return spans


def draw(count: int, seed: int) -> list[tuple[str, tuple[int, int], str, int]]:
    """`count` changes (module, place, operator, occurrence), evenly over all places, one operator each."""
    rng = random.Random(seed)
    everywhere = [(m, place, ops) for m in TESTS for place, ops in sorted(places(m).items())]
    drawn = rng.sample(everywhere, min(count, len(everywhere)))
    return [(m, place, *rng.choice(ops)) for m, place, ops in drawn]


def run(module: str, text: str, tests: Sequence[str], limit: float) -> tuple[str, float]:
    """`killed`, `survived` or `timeout` of the tests in a forked process that has the module as `text`, and seconds."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = 1
        try:
            import pytest

            _Changed.install(module, text)
            status = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", *tests]))
        finally:
            os._exit(status)
    while time.perf_counter() - started < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            seconds = time.perf_counter() - started
            _end(child)
            return ("survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"), seconds
        time.sleep(0.05)
    _end(child)
    os.waitpid(child, 0)
    return "timeout", limit


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def again(out: Path) -> None:
    """The survivors once more, with more tests: column `now`."""
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["now"] = row.get("now") or ""  # a row that came behind the last round has none
    for row in sorted(rows, key=lambda row: row["now"]):
        if row["outcome"] == "survived" and row["now"] != "killed":
            source = (ROOT / row["module"]).read_text(encoding="utf-8")
            lines = source.splitlines(keepends=True)
            place = int(row["place"].partition(":")[0]) - 1
            same = [at for at, line in enumerate(lines) if line.strip() == row["before"]]
            if place in same or len(same) == 1:  # else the line has changed since
                at = place if place in same else same[0]
                lines[at] = lines[at].replace(row["before"], row["after"])
                wider = next(tests for start, tests in WIDER.items() if row["module"].startswith(start))
                row["now"], _ = run(row["module"], "".join(lines), [*wider, *TESTS[row["module"]]], 900)
                print(f"{row['now']:9} {row['module']}  {row['after']}", flush=True)
                _replace(out, rows)


def _replace(out: Path, rows: list[dict[str, str]]) -> None:
    part = out.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Draws, changes, tests, and writes a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="the survivors once more")
    args = parser.parse_args(argv)
    # before the fork, so that no child waits for it
    import lightning
    import pandas
    import scipy.signal
    import skimage.measure
    import torch
    import torchmetrics
    import torchvision
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    del lightning, pandas, scipy, skimage, torchmetrics, torchvision
    torch.set_num_threads(1)
    os.chdir(ROOT)
    if args.again:
        again(args.out)
        return
    done = set()
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            done = {(r["module"], r["place"], r["operator"]) for r in csv.DictReader(file)}
    whole: dict[str, float] = {}
    for module, place, operator, occurrence in draw(args.count, args.seed):
        key = (module, "{}:{}".format(*place), operator.removeprefix("core/"))
        if key in done:
            continue
        source = (ROOT / module).read_text(encoding="utf-8")
        if module not in whole:
            for _ in range(3):  # on a busy machine a test of moments may miss its own
                outcome, whole[module] = run(module, source, TESTS[module], 900)
                if outcome == "survived":
                    break
            else:
                print(f"{module} is left out: its tests do not pass here unchanged", flush=True)
                whole[module] = 0.0
        if not whole[module]:
            continue
        changed = mutate_code(source, plugins.get_operator(operator)(), occurrence)
        if changed is None or changed == source:
            raise SystemExit(f"{module}: {operator} {occurrence} changes nothing")
        outcome, seconds = run(module, changed, TESTS[module], 30 + 4 * whole[module])
        before, now = next(
            (a, b) for a, b in zip(source.splitlines(), [*changed.splitlines(), ""], strict=False) if a != b
        )
        row = {"module": module, "place": key[1], "operator": key[2], "before": before.strip()[:LONGEST],
               "after": now.strip()[:LONGEST], "outcome": outcome, "seconds": f"{seconds:.1f}"}  # fmt: skip
        append_row(args.out, {**row, **environment()})
        print(f"{outcome:9} {seconds:6.1f} s  {module}:{key[1]}  {row['before']}  ->  {row['after']}", flush=True)


if __name__ == "__main__":
    main()
