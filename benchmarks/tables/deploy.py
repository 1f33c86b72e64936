"""Tables of docs/deploy.md and of the layers in docs/layers.md."""

from benchmarks.tables.common import markdown, provenance, read, table


@table
def export() -> str:
    """Every form of the quickstart checkpoints."""
    frame = read("export")
    rows = []
    for (config, form), group in frame.groupby(["config", "form"], sort=False):
        eager = float(group[group["format"] == "eager"]["cpu_ms"].iloc[0])
        for _, row in group.iterrows():
            size = f"{int(row['bytes']) / 1024:.0f}" if row["bytes"] else ""
            name = "as it is" if row["format"] == "eager" else f"{row['format']} {row['precision']}"
            first = row["format"] == "eager"
            rows.append([str(config).split("/")[0] if first else "", str(form) if first else "", name, size,
                         row["share"], f"{float(row['cpu_ms']):.2f}", f"{eager / float(row['cpu_ms']):.1f}",
                         row["memory_mib"], row["score"]])  # fmt: skip
    header = ["method", "file", "form", "KiB", "largest difference", "one sample, CPU ms", "times as quick",
              "memory, MiB", "Dice or accuracy"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)


@table
def layers() -> str:
    """Every layer under every habit; what it does not do in words below."""
    frame = read("layers")
    habits = list(frame.columns[1 : list(frame.columns).index("hardware")])
    notes: dict[str, int] = {}
    rows = []
    for _, row in frame.iterrows():
        cells = [
            row[h] if row[h] in ("yes", "WRONG") else f"({notes.setdefault(row[h], len(notes) + 1)})" for h in habits
        ]
        rows.append([str(row["layer"]), *cells])
    said = "".join(f"\n({number}) {text.replace('|', '/')}\n" for text, number in notes.items())
    return markdown(["layer", *(h.replace("_", " ") for h in habits)], rows) + said + provenance(frame)
