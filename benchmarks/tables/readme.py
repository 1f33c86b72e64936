"""The table of README.md, its rows keyed by method."""

from benchmarks.tables import finola, kmunet, korigins, levels_of_experts, master_key
from benchmarks.tables.common import markdown, table

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
    rows = [
        [f"[{name}]({url})" if url else name, part, headline(), f"[docs/{page}.md](docs/{page}.md)"]
        for page, (name, url, part, headline) in METHODS.items()
    ]
    return markdown(["method", "explicit part", "measured here, at a reduced size", "page"], rows)
