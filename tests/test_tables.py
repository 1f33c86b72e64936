"""The tables of the documentation are what the CSV files say."""

import re

import pytest

from benchmarks import overview, pictures
from benchmarks.tables import BLOCK, RENDERERS, master_key, pages, whole


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_a_page_shows_exactly_what_its_csv_files_hold(page) -> None:
    assert whole(page) == page.read_text(), "run: python -m benchmarks.tables"


def test_every_table_is_shown_somewhere() -> None:
    shown = {match["name"] for page in pages() for match in BLOCK.finditer(page.read_text())}
    assert shown == set(RENDERERS)


@pytest.mark.parametrize("name", RENDERERS)
def test_every_table_says_what_made_it(name: str) -> None:
    text = RENDERERS[name]()
    below = text if name == "results" else text.rstrip().split("\n\n", 1)[-1]
    assert re.search(r"`(framework|python -m) |`results/\w+\.csv`", below), name


def test_the_first_picture_shows_the_bank_of_the_first_table() -> None:
    assert f"recalibrated, untrained: {overview.HEADLINE} " in master_key.headline()


def test_every_figure_is_drawn_recorded_shown_and_made_from_the_csv_as_it_is() -> None:
    assert pictures.problems(pages()) == []


def test_figures_are_small() -> None:
    sizes = [path.stat().st_size for path in pictures.FIGURES.iterdir()]
    assert sum(sizes) < pictures.LIMIT_BYTES


def test_what_does_not_belong_together_is_found(tmp_path, monkeypatch) -> None:
    table = pictures.FROM_TABLES["key_filters_operators"]
    (tmp_path / "results").mkdir()
    source = tmp_path / "results" / "key_filters_fits.csv"
    source.write_text((pictures.RESULTS / "key_filters_fits.csv").read_text())
    monkeypatch.setattr(pictures, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pictures, "RECORD", tmp_path / "results" / "pictures.csv")
    monkeypatch.setattr(pictures, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(pictures, "FROM_RUNS", {})
    monkeypatch.setattr(pictures, "FROM_TABLES", {"key_filters_operators": table})
    monkeypatch.setattr(pictures, "OVERVIEW", "key_filters_operators")
    monkeypatch.setattr(pictures, "OVERVIEW_SOURCES", table.sources)
    page = tmp_path / "page.md"
    page.write_text("<!-- figure key_filters_operators -->\n<!-- end -->\n")
    assert pictures.draw_tables(only_stale=True) == ["key_filters_operators"]
    assert pictures.draw_tables(only_stale=True) == []
    assert pictures.problems([page]) == []
    assert "![" in pictures.render(page.read_text(), "figures")
    source.write_text(source.read_text().replace("0.580663", "0.590663"))
    assert "its CSV files have changed" in pictures.problems([page])[0]
    assert pictures.draw_tables(only_stale=True) == ["key_filters_operators"]
    drawn = tmp_path / "figures" / "key_filters_operators.png"
    drawn.write_bytes(drawn.read_bytes() + b"0")
    assert "not the one that was drawn" in pictures.problems([page])[0]
    page.write_text("nothing")
    assert "not the same in" in pictures.problems([page])[0]
