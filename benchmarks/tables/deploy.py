"""Table of docs/deploy.md."""

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
            of = str(config).replace("/quickstart", "")
            rows.append([of if first else "", str(form) if first else "", name, size,
                         row["share"], f"{float(row['cpu_ms']):.2f}", f"{eager / float(row['cpu_ms']):.1f}",
                         row["memory_mib"], row["score"]])  # fmt: skip
    header = ["method", "file", "form", "KiB", "largest difference", "one sample, CPU ms", "times as quick",
              "memory, MiB", "Dice or accuracy"]  # fmt: skip
    return markdown(header, rows) + provenance(frame)
