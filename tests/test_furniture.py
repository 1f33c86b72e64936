"""What stands around the code: licence, citation, version, hooks, types."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import framework

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "framework/__init__.py"
    assert framework.__version__ == importlib.metadata.version("explicit-vision")
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"## {framework.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_the_one_that_the_project_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (
        PROJECT["project"]["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"
    )


@pytest.mark.parametrize("method", ["K-Origins", "KM-UNet", "Levels-of-Experts", "master key filters", "FINOLA"])
def test_the_citation_names_the_paper_of_every_method(method) -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    papers = [r for r in references if method in r["notes"]]
    assert papers
    assert all(r["title"] and r["authors"] and r["type"] for r in papers)


def test_a_reference_with_an_address_is_linked_from_the_project() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    addresses = {r["url"] for r in references if "url" in r}
    assert set(PROJECT["project"]["urls"].values()) <= addresses


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_hooks_are_local_and_check_what_ci_checks() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    entries = [hook["entry"] for hook in repos[0]["hooks"]]
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        tool = line.removeprefix("python3 -m uv run ").split(" ")[0]
        if tool in ("ruff", "mypy"):
            assert any(f"uv run {tool}" in entry for entry in entries), line


def test_no_line_cites_what_a_reader_does_not_have() -> None:
    cited = re.compile(r"\b(the|our) " + "specification|" + r"specification(,|'s)")
    for folder in (*PACKAGES, "benchmarks", "docs", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml"):
                assert not cited.search(path.read_text()), path


def test_headings_of_pages_that_docstrings_cite_are_there() -> None:
    cited = re.compile(r'docs/([\w-]+\.md), "([^"]+)"')
    found = 0
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = re.sub(r"\s+", " ", path.read_text())
            for page, heading in cited.findall(text):
                found += 1
                assert f"## {heading}" in (ROOT / "docs" / page).read_text(), f"{path}: {page}, {heading!r}"
    assert found > 5
