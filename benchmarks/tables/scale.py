"""The tables of docs/scale.md."""

from benchmarks.tables.common import markdown, provenance, read, table

#: of results/memory.csv
COLUMNS = ("bytes_fast", "bytes_lean")


@table
def scale() -> str:
    """Operations, bytes and hours of the full recipes."""
    frame = read("scale")
    columns = {
        "recipe": "recipe",
        "steps": "steps",
        "batch": "samples a step",
        "precision": "precision",
        "flops_per_sample": "operations a sample",
        "bytes_per_sample": "bytes a sample",
        "flops": "operations in all",
        "bound": "limited by",
        "hours_1": "hours on 1",
        "hours_8": "on 8",
        "hours_64": "on 64",
    }
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def memory() -> str:
    """Bytes of a training step of the full recipes beside a card of 24 GB."""
    frame = read("memory")
    rows = [
        [row["recipe"], row["precision"], row["samples"], *(f"{float(row[c]) / 1e9:.3g}" for c in COLUMNS), row["fits"]]
        for row in frame.to_dict("records")
    ]
    header = ["recipe", "precision", "samples on a device", "GB, fast", "GB, lean", "on a card of 24 GB"]
    return markdown(header, rows) + provenance(frame)


@table
def launches() -> str:
    """Operations that a training step hands to an accelerator, before and now."""
    frame = read("launches")
    rows = [[row["method"], row["cpu_form"], row["accelerator_form"], row["waits"]] for row in frame.to_dict("records")]
    return markdown(["training step", "before", "now", "waits"], rows) + provenance(frame)
