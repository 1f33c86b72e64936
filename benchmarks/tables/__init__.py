"""Writes the tables of the documentation from the CSV files in `results/`; no figure in a page is typed by hand.

    python -m benchmarks.tables          # rewrite the pages, redraw figures whose CSV has changed
    python -m benchmarks.tables --check  # exit 1 when a page does not match its CSV

A page holds `<!-- table NAME -->` and `<!-- end -->`; what stands between them is the rendering of NAME, a function of
the module of its method. Figures (`<!-- figure NAME -->`) are those of `benchmarks.pictures`.
"""

import re
from pathlib import Path

from benchmarks import pictures
from benchmarks.tables import deploy, faults, files, korigins_real, korigins_studies, layers, microscopy, readme, scale
from benchmarks.tables.common import BLOCK, RENDERERS, ROOT

# the tables register themselves when their modules are imported
__all__ = [
    "BLOCK",
    "RENDERERS",
    "ROOT",
    "deploy",
    "faults",
    "files",
    "korigins_real",
    "korigins_studies",
    "layers",
    "microscopy",
    "pages",
    "readme",
    "render",
    "scale",
    "whole",
]


def render(text: str) -> str:
    """A page with every known block replaced by its rendering."""

    def replaced(match: re.Match) -> str:
        return match[1] + RENDERERS[match["name"]]() + match[3]

    return BLOCK.sub(replaced, text)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def whole(page: Path) -> str:
    """The page's text with every table and every figure as the CSV files have them."""
    figures = "figures" if page.parent.name == "docs" else "docs/figures"
    return pictures.render(render(page.read_text()), figures)
