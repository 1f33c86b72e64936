"""Table of docs/layers.md."""

import re

from benchmarks.tables.common import markdown, provenance, read, table


@table
def layers() -> str:
    """Every layer under every habit; what it does not do in words below."""
    frame = read("layers")
    habits = list(frame.columns[1 : list(frame.columns).index("hardware")])
    notes: dict[str, int] = {}

    def cell(found: str) -> str:
        if found in ("yes", "WRONG"):
            return found
        words = re.sub(r"^(\w+: )\w+: (?=torch)", r"\1", found)  # one note for all layers
        return f"({notes.setdefault(words, len(notes) + 1)})"

    rows = [[str(row["layer"]), *(cell(str(row[habit])) for habit in habits)] for _, row in frame.iterrows()]
    said = "".join(f"\n({number}) `{text.replace('|', '/').replace('`', '')}`\n" for text, number in notes.items())
    return markdown(["layer", *(h.replace("_", " ") for h in habits)], rows) + said + provenance(frame)


@table
def second_derivatives_speed() -> str:
    """Forward and backward pass beside the revision that was differentiable once."""
    frame = read("second_derivatives_speed")
    rows = [
        [
            row["layer"],
            row["before_ms"],
            row["after_ms"],
            f"{row['ratio']} [{row['lower_quartile']}, {row['upper_quartile']}]",
        ]
        for _, row in frame.iterrows()
    ]
    header = ["layer", "before, ms", "now, ms", "median of the ratios, quartiles"]
    return markdown(header, rows) + provenance(frame)
