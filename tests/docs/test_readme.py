"""The README is short, its code and that of the site's first pages runs, and its figures are the committed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())
PAGES = ("README.md", "docs/index.md", "docs/hystar.md")
SNIPPETS = [
    pytest.param(page, code, id=f"{page} {number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL), 1
    )
]


def content(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_readme_has_at_most_120_lines_and_the_installation_comes_first() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    first = "\n".join(lines[:25])
    assert "## Install" in first and "pip install" in first


def test_every_page_has_a_snippet() -> None:
    assert {str(snippet.values[0]) for snippet in SNIPPETS} == set(PAGES)


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_a_snippet_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(compile(code, page, "exec"), {})


def test_the_readme_says_how_to_run_the_tests() -> None:
    assert re.search(r"^make test\b", README, re.MULTILINE)


def test_the_claim_is_the_committed_measurement() -> None:
    case = {
        "op": "svd_linear",
        "case": "B16 T257 1024->3072 r1024",
        "dtype": "float32",
        "mode": "forward+backward",
    }
    rows = content("bench/results/intel-r-xeon-r-processor-2-threads.json")["rows"]
    found = {row["provider"]: row for row in rows if case.items() <= row.items()}
    ours, authors = found["hystar_fast"], found["authors' path"]
    faster = authors["median_ms"] / ours["median_ms"]
    part = {5: "a fifth", 6: "a sixth", 7: "a seventh", 8: "an eighth"}[round(authors["peak_mib"] / ours["peak_mib"])]
    assert f"**{faster:.1f} times faster than the published code, with {part} of its memory.**" in PROSE
    for row in (ours, authors):
        assert f"{row['median_ms'] / 1000:.2f} s and {row['peak_mib']:.0f} MiB" in PROSE


def test_the_figures_of_the_demo_are_those_of_its_run() -> None:
    run = content("docs/results/demo.json")
    for name in ("hystar", "frozen", "lora"):
        assert f"{run['methods'][name]['recall']['all']['headline']['R@1']['value']:.1f} %" in PROSE
    found = run["differences"]["frozen"]
    assert f"difference {found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]" in PROSE
