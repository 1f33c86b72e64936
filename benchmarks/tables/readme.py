"""The table of README.md, its rows keyed by method."""

from benchmarks.tables import finola, kmunet, korigins, levels_of_experts, master_key
from benchmarks.tables.common import markdown, sources, table

#: page -> name, paper, the explicit part, the measured headline
METHODS = {
    "korigins": ("K-Origins", "https://arxiv.org/abs/2409.02281", "trainable intensity origins", korigins.headline),
    "kmunet": ("KM-UNet", "", "kernel elements are B-spline functions", kmunet.headline),
    "levels_of_experts": (
        "Levels-of-Experts",
        "https://ksbe-jbe.org/_PR/view/?aidx=43132&bidx=3901",
        "weights chosen by position or luminance class",
        levels_of_experts.headline,
    ),
    "master_key": (
        "Master key filters",
        "https://arxiv.org/abs/2509.12746",
        "depthwise filters are discrete scale-space operators",
        master_key.headline,
    ),
    "finola": ("FINOLA", "https://arxiv.org/abs/2305.16319", "an image rolled out of one vector", finola.headline),
}


@table
def methods() -> str:
    """One measured headline per method."""
    rows, files = [], []
    for page, (name, url, part, headline) in METHODS.items():
        figure, read = sources(headline)
        rows.append([f"[{name}]({url})" if url else name, part, figure, f"[docs/{page}.md](docs/{page}.md)"])
        files += read
    made = ", ".join(f"`results/{file}.csv`" for file in files)
    table = markdown(["method", "explicit part", "measured here, at a reduced size", "page"], rows)
    return f"{table}\nFrom {made}; the command of each stands in [results/README.md](results/README.md).\n"
