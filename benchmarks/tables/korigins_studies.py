"""Tables of docs/korigins.md that come from its larger studies: contrast (E3), colours (E4)."""

from benchmarks.heat_maps import correlation
from benchmarks.tables.common import markdown, provenance, read, spread, table

NETWORKS = ("KRFL14", "RFL14", "RFL14 BatchNorm")
EXPLAINED_BY = {
    "hellinger": "H",
    "hellinger_squared": "H^2",
    "bayes_pixel": "Bayes, one pixel",
    "bayes_field": "Bayes, field of 14 x 14 pixels",
}


@table
def korigins_contrast() -> str:
    """How each network's IoU over the grid goes with every measure of difficulty."""
    frame = read("korigins_contrast")
    rows = []
    for network in NETWORKS:
        group = frame[frame["network"] == network]
        row = [network, group["parameters"].iloc[0], spread(group["iou"], 2), spread(group["accuracy"], 2)]
        for column in EXPLAINED_BY:
            value, low, high = correlation(group, "iou", column)
            row.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        rows.append(row)
    header = ["network", "parameters", "IoU over the grid", "pixel accuracy", *EXPLAINED_BY.values()]
    return markdown(header, rows) + provenance(frame)


@table
def korigins_colours() -> str:
    """IoU on several intensities and colours, squares and circles."""
    frame = read("korigins_colours")
    rows = []
    for (data, shape), group in frame.groupby(["data", "data.shape_kind"], sort=False):
        row = [str(data), str(shape), group["hellinger"].iloc[0]]
        rows.append([*row, *(spread(group[group["network"] == name]["iou"], 2) for name in NETWORKS)])
    header = ["data", "shapes", "H of the closest pair", *(f"{name}: IoU" for name in NETWORKS)]
    return markdown(header, rows) + provenance(frame)
