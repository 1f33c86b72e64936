"""The tables of docs/reliability.md."""

import pandas as pd

from benchmarks.tables.common import markdown, provenance, read, table

GOOD = "as promised"


def _seconds(frame: pd.DataFrame) -> str:
    seconds = pd.to_numeric(frame["seconds"])
    return f"{seconds.median():.1f}, {seconds.max():.1f}"


def _rest(frame: pd.DataFrame) -> str:
    counts = frame.loc[frame["outcome"] != GOOD, "outcome"].value_counts()
    return "; ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "-"


def _tries(kind: str, by: list[str]) -> str:
    frame = read("faults")
    frame = frame[frame["kind"] == kind]
    rows = []
    for names, group in frame.groupby(by, sort=False):
        good = str((group["outcome"] == GOOD).sum())
        equal = group["equal"]
        resumed = f"{(equal == 'True').sum()} of {(equal != '').sum()}"
        rows.append([*map(str, names), str(len(group)), good, resumed, _seconds(group), _rest(group)])
    if kind == "signals":
        rows = [[*row[:-3], *row[-2:]] for row in rows]
        head = [*by, "tries", "as promised", "seconds to the end: median, largest", "otherwise"]
    else:
        head = [*by, "tries", "as promised", "resumed, bit for bit equal", "seconds: median, largest", "otherwise"]
    return markdown(head, rows) + provenance(frame.drop(columns="seconds"))


@table
def faults_kills() -> str:
    """Kills by what was done."""
    return _tries("kills", ["fault"])


@table
def faults_signals() -> str:
    """Signals by target and number of processes."""
    return _tries("signals", ["processes", "fault"])


@table
def faults_disks() -> str:
    """Disks by what was done."""
    return _tries("disks", ["fault"])


@table
def faults_fuzz() -> str:
    """Fuzzed inputs by kind and exit status."""
    frame = read("faults")
    frame = frame[frame["kind"] == "fuzz"]
    rows = []
    for what, group in frame.groupby("what", sort=False):
        status = group["status"]
        rows.append([str(what), str(len(group)), str((status == "2").sum()), str((status == "0").sum()), _rest(group)])
    total = [str(sum(int(row[i]) for row in rows)) for i in (1, 2, 3)]
    rows.append(["all", *total, _rest(frame)])
    head = ["input", "tries", "one message, status 2", "a whole run, status 0", "otherwise"]
    return markdown(head, rows) + provenance(frame)


@table
def faults_accepted() -> str:
    """What was otherwise in the inputs that were taken, so that each can be looked at."""
    frame = read("faults_accepted")
    rows = []
    for what, group in frame.groupby("what", sort=False):
        nothing = group["changed"].str.startswith("nothing")
        rest = group.loc[~nothing, "changed"].value_counts(sort=False)
        said = "; ".join(f"`{text}`" + (f" ({count})" if count > 1 else "") for text, count in rest.items())
        rows.append([str(what), str(len(group)), str(nothing.sum()), said or "-"])
    return markdown(["input", "accepted", "means the same as before", "otherwise, with what"], rows) + provenance(frame)


@table
def mutants() -> str:
    """Changed lines by part of the code, and how many the tests notice."""
    frame = read("mutants")
    parts = {"callbacks": "callbacks", "framework/nn/splines": "spline layers", "framework": "base, ranks, resumption"}
    frame["part"] = [
        next(name for start, name in parts.items() if module.startswith(start)) for module in frame["module"]
    ]
    rows = []
    for part, group in [*frame.groupby("part", sort=True), ("all", frame)]:
        counts = group["outcome"].value_counts()
        noticed = counts.get("killed", 0) + counts.get("timeout", 0)
        survived = group[group["outcome"] == "survived"]
        later = (survived["now"] == "killed").sum() if "now" in frame else 0
        rows.append(
            [str(part), str(len(group)), f"{noticed} ({noticed / len(group):.0%})", str(len(survived)), str(later)]
        )
    head = [
        "part",
        "lines changed",
        "noticed",
        "survived",
        "of these noticed by the neighbourhood's tests, new ones among them",
    ]
    return markdown(head, rows) + provenance(frame)


@table
def mutants_left() -> str:
    """The changes that still nobody notices."""
    frame = read("mutants")
    left = frame[(frame["outcome"] == "survived") & (frame.get("now", "") != "killed")]
    rows = [[f"`{r['module']}`", f"`{r['before']}`", f"`{r['after']}`"] for _, r in left.iterrows()]
    return markdown(["where", "line", "changed to"], rows) + provenance(frame)
