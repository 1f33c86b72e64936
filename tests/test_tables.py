"""The tables of the documentation are what the CSV files say."""

import pytest

from benchmarks.tables import _BLOCK, RENDERERS, pages, render


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_a_page_shows_exactly_what_its_csv_files_hold(page) -> None:
    text = page.read_text()
    assert render(text) == text, "run: python -m benchmarks.tables"


def test_every_table_is_shown_somewhere() -> None:
    shown = {match["name"] for page in pages() for match in _BLOCK.finditer(page.read_text())}
    assert shown == set(RENDERERS)
