"""Tables of docs/microscopy.md."""

from benchmarks.tables.common import RESULTS, markdown, provenance, read, table


def tiles() -> str:
    """Seam, speed and memory of prediction in tiles."""
    frame = read("tiles")
    rows = []
    for _, row in frame.iterrows():
        found = {
            "seam": f"logits differ by {row['largest_difference']} of the largest, "
            f"{row['classes_that_differ']} predicted classes",
            "speed": f"{row['seconds']} s in tiles, {row['seconds_whole']} s as a whole: "
            f"{row['throughput_to_whole']} of its throughput",
            "memory": f"{row['mib_beyond_imports']} MiB beyond the {row['mib_after_imports']} MiB after the imports, "
            f"{row['objects']} objects, {row['processor_seconds']} s of processor time",
        }[row["what"]]
        rows.append([row["what"], row["method"], row["side"], row["tile"], found])
    return markdown(["what", "method", "side of the picture", "side of a tile", "found"], rows) + provenance(frame)


if (RESULTS / "tiles.csv").is_file():  # from then on the page has to show it
    table(tiles)
