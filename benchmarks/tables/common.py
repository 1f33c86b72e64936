"""What every table is made with: the CSV files of `results/`, Markdown, spread over seeds, provenance."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.S)

Renderer = Callable[[], str]
RENDERERS: dict[str, Renderer] = {}


def table(render: Renderer) -> Renderer:
    """Registers a renderer under its function's name."""
    RENDERERS[render.__name__] = render
    return render


#: the CSV files that were read, in order
_read: list[str] = []


def sources(render: Renderer) -> tuple[str, list[str]]:
    """What a renderer gives, and the CSV files of `results/` that it has read for it."""
    _read.clear()
    return render(), list(dict.fromkeys(_read))


def read(name: str) -> pd.DataFrame:
    """A CSV of `results/`, every value as the text that the program wrote."""
    _read.append(name)
    return pd.read_csv(RESULTS / f"{name}.csv", dtype=str, keep_default_na=False)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def spread(values: pd.Series, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds (one value: the value)."""
    numbers = pd.to_numeric(values)
    if len(numbers) == 1:
        return f"{numbers.iloc[0]:.{digits}f}"
    return f"{numbers.mean():.{digits}f} ± {numbers.std():.{digits}f}"


def provenance(frame: pd.DataFrame) -> str:
    """Command, hardware, versions and dates of a CSV's rows, and the time they took.

    `made_by` names another command where the rows come from the forerunner of `command`.
    """
    commands = "; ".join(f"`{c}`" for c in frame["command"].unique())
    if "made_by" in frame and (kept := frame["made_by"].dropna()).size:
        commands += f" ({len(kept)} of {len(frame)} rows by its forerunner, column `made_by`)"
    parts = [commands, "; ".join(frame["hardware"].unique()), f"torch {', '.join(frame['torch'].unique())}"]
    if "wall_s" in frame:
        # several rows of one run state its time once each
        runs = frame.drop_duplicates([name for name in ("run", "seed", "wall_s") if name in frame])
        parts.append(f"{pd.to_numeric(runs['wall_s']).sum() / 60:.0f} minutes in all")
    return "\n" + ", ".join([*parts, ", ".join(sorted(frame["date"].unique()))]) + ".\n"
