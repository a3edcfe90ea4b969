"""The tables of the pages in docs/results have the figures of the committed summaries, and the folder stays small."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hystar_fast.experiments.paper_tables import paper_table
from hystar_fast.experiments.table_rows import plan
from hystar_fast.methods.suite import METHODS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
COMPARISON: dict[str, Any] = json.loads((FOLDER / "comparison.json").read_text(encoding="utf-8"))
PAGE = (FOLDER / "comparison.md").read_text(encoding="utf-8")
QUERIES = ("outline", "sketch", "lowres", "twemoji", "text")
# A style left out of training -> the styles that are left.
LEFT = {"outline": "sketch-lowres-twemoji", "sketch": "outline-lowres-twemoji", "lowres": "outline-sketch-twemoji"}
DIFFERENCES = {(d["method"], d["minus"], d["kind"], d["part"]): d for d in COMPARISON["differences"]}

Row = dict[str, str]


def tables(text: str) -> list[list[Row]]:
    """Return the tables of a page: a row is heading -> cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def recall(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    deviation = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{deviation} [{found['low']:.1f}, {found['high']:.1f}]"


def difference(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


def cells(name: str) -> Row:
    """Return the cells of a method by heading, from the summary."""
    entry = COMPARISON["summary"][name]
    everything, unseen = entry["recall"]["all"], entry["recall"]["unseen"]
    return {
        "trained": f"{entry['parameters']['trainable']:,}",
        "R@1": recall(everything["headline"]["R@1"]),
        "R@5": recall(everything["headline"]["R@5"]),
        "minus Hystar": difference(entry.get("difference", {}).get("all")),
        "unseen subgroups": recall(unseen["headline"]["R@1"]),
        **{kind: recall(everything.get(kind, {}).get("R@1")) for kind in QUERIES},
    }


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one of its level."""
    level = re.escape(heading.split(" ")[0])
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"the page has no section {heading!r}"
    return found[1]


def test_the_main_table_has_every_method_with_its_figures() -> None:
    main, by_query = tables(section("## Methods"))
    for table, headings in (
        (main, {"trained", "R@1", "R@5", "minus Hystar", "unseen subgroups"}),
        (by_query, set(QUERIES)),
    ):
        assert {row["method"].strip("`") for row in table} == set(METHODS)
        assert headings <= set(table[0])
        for row in table:
            wanted = cells(row["method"].strip("`"))
            assert {key: row[key] for key in headings} == {key: wanted[key] for key in headings}, row["method"]


def test_the_tables_of_variants_have_the_figures_of_the_summary() -> None:
    rows = [row for table in tables(section("## Parts of Hystar")) for row in table if "method" in row]
    assert len([row for row in rows if "+" in row["method"]]) > 15
    for row in rows:
        wanted = cells(row["method"].strip("`"))
        shared = row.keys() & wanted.keys()
        assert shared >= {"trained", "R@1", "minus Hystar"}
        assert {key: row[key] for key in shared} == {key: wanted[key] for key in shared}, row["method"]


def test_the_differences_from_hystar_are_those_of_the_summary() -> None:
    (table,) = tables(section("## Where Hystar does not win"))
    for row in table:
        name = row["Hystar minus"].strip("`")
        for kind in QUERIES:
            assert row[kind] == difference(DIFFERENCES.get(("hystar", name, kind, "all"))), (name, kind)
        assert row["mean"] == difference(DIFFERENCES["hystar", name, "headline", "all"])
        assert row["unseen subgroups"] == difference(DIFFERENCES["hystar", name, "headline", "unseen"])


def test_the_papers_differences_are_those_of_its_tables() -> None:
    numbered = [(1, tables(section("## Methods"))[0])]
    for heading, number in re.findall(r"^(### .+ \(Table (\d+)\))$", PAGE, re.MULTILINE):
        numbered += [(int(number), table) for table in tables(section(heading))]
    numbered += zip((2, 3, 7), tables(section("## Categories, class names, and pictures with words")), strict=True)
    shown = 0
    for number, table in numbered:
        paper, planned = paper_table(number), plan(number)
        means = {run: paper.headline(row) for row, run in planned.runs.items()}
        for row in table:
            mean, reference = means.get(row["method"].strip("`")), paper.headline(planned.reference)
            if "the paper" in row and row["the paper"] != "–":
                assert mean is not None and reference is not None
                assert row["the paper"] == f"{round(mean - reference, 1):+.1f}", (number, row["method"])
                shown += 1
    assert shown > 25


@pytest.mark.parametrize(("symbol", "field", "default"), [("γ", "gamma", "80"), ("λ", "lam", "1")])
def test_the_tables_along_a_setting_have_the_figures_of_the_summary(symbol: str, field: str, default: str) -> None:
    (table,) = [t for t in tables(section("### γ and λ of StyleNCE (Figures 6 and 7)")) if symbol in t[0]]
    for row in table:
        wanted = cells("hystar" if row[symbol] == default else f"hystar+{field}={row[symbol]}")
        assert (row["R@1"], row[f"minus {symbol} = {default}"]) == (wanted["R@1"], wanted["minus Hystar"])


def test_the_tables_of_unseen_styles_have_the_figures_of_the_summary() -> None:
    recalls, from_hystar, losses = tables(section("## Styles that training never saw"))
    for style, left in LEFT.items():
        for row in recalls:
            name = row["R@1 in the style left out"].strip("`")
            assert row[style] == cells(name if name == "frozen" else f"{name}+styles={left}")[style], (name, style)
        for row in from_hystar:
            name = row["Hystar minus"].strip("`")
            other = name if name == "frozen" else f"{name}+styles={left}"
            assert row[style] == difference(DIFFERENCES[f"hystar+styles={left}", other, style, "all"]), (name, style)
        for row in losses:
            name = row["without the style minus with it"].strip("`")
            assert row[style] == difference(DIFFERENCES[f"{name}+styles={left}", name, style, "all"]), (name, style)


def test_the_tables_of_other_tasks_have_the_figures_of_the_summary() -> None:
    found = tables(section("## Categories, class names, and pictures with words"))
    for task, table in zip(("category", "classify", "joint"), found, strict=True):
        summary = COMPARISON["tasks"][task]["summary"]
        assert {row["method"].strip("`") for row in table} == set(summary)
        for row in table:
            entry = summary[row["method"].strip("`")]
            headline = entry["recall"]["all"]["headline"]
            _, first, fifth, minus, _ = row.values()
            assert (first, fifth) == (recall(headline["R@1"]), recall(headline["R@5"])), row
            assert minus == difference(entry.get("difference", {}).get("all"))


def test_the_demo_table_is_the_committed_run() -> None:
    methods = json.loads((FOLDER / "demo.json").read_text(encoding="utf-8"))["methods"]
    (table,) = tables((FOLDER / "demo.md").read_text(encoding="utf-8"))
    assert len(table) == len(methods)
    for row, (name, method) in zip(table, methods.items(), strict=True):
        shown = {heading.rstrip("\\*"): cell for heading, cell in row.items()}
        everything = method["recall"]["all"]
        for query in QUERIES:
            assert shown[query] == (pair(everything[query]) if query in everything else "–"), (name, query)
        headline = everything["headline"]
        interval = f"({headline['R@1']['low']:.1f}–{headline['R@1']['high']:.1f})"
        assert shown["mean of hard (95 % interval of R@1)"] == f"{pair(headline)} {interval}"
        assert shown["hard, registered"] == pair(method["recall"]["registered"]["headline"])


def pair(found: Mapping[str, Any]) -> str:
    return f"{found['R@1']['value']:.1f} / {found['R@5']['value']:.1f}"


def test_the_folder_is_at_most_a_megabyte_without_ranks() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2**20
    assert [path.name for path in files if path.suffix == ".json" and '"ranks"' in path.read_text()] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.png")), ids=lambda path: path.name)
def test_every_picture_is_shown(path: Path) -> None:
    assert any(f"]({path.name})" in page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md"))


def test_every_difference_with_an_interval_is_one_of_the_summary() -> None:
    found = [*COMPARISON["differences"]]
    for summary in (COMPARISON["summary"], *(task["summary"] for task in COMPARISON["tasks"].values())):
        found += [d for entry in summary.values() for d in entry.get("difference", {}).values()]
    opposite = [{"value": -d["value"], "low": -d["high"], "high": -d["low"]} for d in found]
    known = {difference(d) for d in (*found, *opposite)}
    assert set(re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", " ".join(PAGE.split()))) - known == set()
