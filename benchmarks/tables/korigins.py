"""Tables of docs/korigins.md."""

from benchmarks.heat_maps import correlation
from benchmarks.tables.common import markdown, provenance, read, spread, table


def headline() -> str:
    """The README's figure."""
    epochs = read("korigins_epochs").query("rfl == '18'").groupby("variant")["epochs_to_goal"].agg(", ".join)
    return (
        f"epochs to 0.99 IoU, three seeds: KRFL18 {epochs['K-Origins, first level only']}; plain {epochs['plain']}; "
        f"plain with BatchNorm {epochs['plain, BatchNorm']}"
    )


def one_origin_ends() -> str:
    """How often E0's origin ends between the means."""
    frame = read("korigins_one_origin")
    frame = frame[frame["noise"] == "0"]
    return f"ends there in {(frame['between'] == '1').sum()} of {len(frame)}"


def contrast_follows() -> str:
    """E3's correlations with the Hellinger distance."""
    frame = read("korigins_contrast")
    said = (f"{n} {correlation(g, 'iou', 'hellinger')[0]:.2f}" for n, g in frame.groupby("network", sort=False))
    return f"correlation of the IoU with H: {', '.join(said)}"


def colours_reached() -> str:
    """E4's IoU of every network over all kinds of data."""
    frame = read("korigins_colours")
    said = (f"{name} {spread(group['iou'], 2)}" for name, group in frame.groupby("network", sort=False))
    return f"IoU after 10 epochs, all data: {', '.join(said)}"


@table
def korigins_one_origin() -> str:
    """Where E0's origin ends, by seed."""
    frame = read("korigins_one_origin")
    rows = []
    for noise, group in frame.groupby("noise", sort=False):
        group = group.sort_values("seed")
        ends = ", ".join(f"{float(origin):,.0f}" for origin in group["origin"])
        rows.append([str(noise), ends, spread(group["iou"])])
    return markdown(["noise", "the origin ends at, one per seed", "test IoU"], rows) + provenance(frame)


@table
def korigins_summary() -> str:
    """One row per experiment: the paper's claim and our figure."""
    epochs, e5 = read("korigins_epochs"), read("korigins_e5")

    def ours(variant: str) -> str:
        group = epochs[epochs["variant"] == variant]
        parts = [
            f"{'K' if variant.startswith('K-') else ''}RFL{rfl}: {', '.join(g.sort_values('seed')['epochs_to_goal'])}"
            for rfl, g in group.groupby("rfl", sort=False)
        ]
        return "; ".join(parts)

    def seconds(variant: str) -> str:
        return spread(epochs[epochs["variant"] == variant]["cpu_s"], 0) + " CPU s a run"

    best = {row["variant"]: f"{row['variant']} {float(row['best_iou']):.3f}" for _, row in e5.iterrows()}
    first, every = "K-Origins, first level only", "K-Origins, every level"
    plain_trend = "about 10 epochs, and only with a field above the object's size"
    rows = [
        ["E0, one origin", "ends between the two means", one_origin_ends(), ""],
        ["E1, plain networks", plain_trend, ours("plain"), seconds("plain")],
        ["E2, K-networks, first level", "about 3 epochs at any field", ours(first), seconds(first)],
        ["E2, K-networks, every level", "the same", ours(every), seconds(every)],
        ["E3, low contrast", "accuracy follows the Hellinger distance", contrast_follows(), ""],
        ["E4, several colours", "near perfect; plain needs a larger field", colours_reached(), ""],
        ["E5, parameters", "187 k with the layer = 1.4 M without", "best IoU: " + "; ".join(best.values()), ""],
    ]
    return markdown(["experiment", "the paper's trend", "ours: epochs to 0.99 IoU, one per seed", "time"], rows) + (
        provenance(epochs) + provenance(e5)
    )


@table
def korigins_epochs() -> str:
    """Epochs to the goal per seed, and the best IoU, by variant and network."""
    frame = read("korigins_epochs")
    rows = []
    for (variant, rfl), group in frame.groupby(["variant", "rfl"], sort=False):
        group = group.sort_values("seed")
        name = f"{'K' if variant.startswith('K-') else ''}RFL{rfl}"
        rows.append([variant, name, group["parameters"].iloc[0], ", ".join(group["epochs_to_goal"]),
                     spread(group["best_iou"]), spread(group["cpu_s"], 0)])  # fmt: skip
    rows.sort(key=lambda row: (int(row[1].lstrip("KRFL")) != 18, 0))
    header = ["variant", "network", "parameters", "epochs to 0.99 IoU, one per seed", "best IoU", "run, CPU s"]
    return markdown(header, rows) + provenance(frame)


@table
def korigins_e5() -> str:
    """Parameter efficiency at a reduced size."""
    frame = read("korigins_e5")
    rows = []
    for variant, group in frame.groupby("variant", sort=False):
        rows.append([str(variant), group["parameters"].iloc[0], ", ".join(group.sort_values("seed")["epochs_to_goal"]),
                     spread(group["best_iou"]), spread(group["last_iou"]), spread(group["wall_s"], 0)])  # fmt: skip
    header = ["network", "parameters", "epochs to goal", "best IoU", "last IoU", "seconds a run"]
    return markdown(header, rows) + provenance(frame)


@table
def fold_korigins() -> str:
    """Folding: error and time against the plain network."""
    frame = read("fold_korigins")
    columns = {
        "network": "network",
        "error_of_largest_logit": "error / largest logit",
        "plain_ms": "plain, ms",
        "folded_ms": "folded, ms",
        "k_network_ms": "K-network, ms",
        "folded_over_plain": "folded / plain",
        "k_network_over_plain": "K-network / plain",
    }
    return markdown(list(columns.values()), frame[list(columns)].to_numpy().tolist()) + provenance(frame)


@table
def squares_generation() -> str:
    """Images per second of generation beside the training step."""
    frame = read("squares_generation")
    works = list(frame["work"].unique())
    rows = []
    for (preset, side), group in frame.groupby(["preset", "side"], sort=False):
        by_work = dict(zip(group["work"], group["images_per_s_median"], strict=True))
        rows.append([str(preset), str(side), *(f"{float(by_work[w]):,.0f}" for w in works)])
    return markdown(["preset", "side", *(f"{w}, images/s" for w in works)], rows) + provenance(frame)
