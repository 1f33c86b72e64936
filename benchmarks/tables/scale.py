"""The table of docs/scale.md."""

from benchmarks.tables.common import markdown, provenance, read, table


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
