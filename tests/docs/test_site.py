"""The documentation site: every page is in its navigation, links lead somewhere, and public names have a reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hystar_fast

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = re.compile(r"https://github\.com/hystar-fast/hystar-fast/(?:blob|tree)/main/(.*)")
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
    ),
    *sorted(DOCS.rglob("*.md")),
]


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, dict):
            (value,) = entry.values()
            yield from navigation(value) if isinstance(value, list) else [value]
        else:
            yield entry


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_navigation_has_every_page_once() -> None:
    listed = list(navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        source = SOURCE.fullmatch(link)
        if link.startswith("http") and source is None:
            continue
        place, _, anchor = (source[1] if source else link).partition("#")
        target = (ROOT if source else page.parent) / place if place else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}, and {target.name} has no such heading"
        if not source and page.is_relative_to(DOCS):
            assert target.resolve().is_relative_to(DOCS), f"{page.name} links out of the site: {link}"


def test_the_readme_names_every_tutorial() -> None:
    named = set(links(ROOT / "README.md"))
    assert {f"docs/tutorials/{page.name}" for page in (DOCS / "tutorials").glob("*.md")} <= named


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {f"hystar_fast.{name}" for name in hystar_fast.__all__} - set(listed) == {
        "hystar_fast.__version__",
        "hystar_fast.ref",
    }
    assert "`hystar_fast.ref`" in text and len(set(listed)) == len(listed)


def test_the_version_is_the_same_everywhere() -> None:
    version = hystar_fast.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert (newest[1], newest[2]) == (version, str(citation["date-released"]))
    assert citation["version"] == version


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_files_for_github_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))
