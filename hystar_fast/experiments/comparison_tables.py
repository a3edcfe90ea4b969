"""Tables of a comparison: mean, deviation and interval of each method, and its difference from Hystar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from hystar_fast.experiments.seeds import HEADLINE


def comparison_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the two tables of a ``compare.json``: methods with their differences, and each kind of query."""
    data, summary = record["data"], record["summary"]
    title = f"R@1 (%) on {data['name']}, mean of {', '.join(data['headline'])}\n{data['protocol']}"
    has_unseen = any("unseen" in entry["recall"] for entry in summary.values())
    has_registered = any("registered" in entry["recall"] for entry in summary.values())
    has_difference = any(entry.get("difference") for entry in summary.values())
    headings = ("trained", "mean", *["registered"] * has_registered, *["minus hystar"] * has_difference)
    headings += ("unseen categories",) * has_unseen
    table = table_of_methods(title, headings)
    every = (kind for entry in summary.values() for kind in entry["recall"]["all"])
    kinds = [kind for kind in dict.fromkeys(every) if kind != HEADLINE]
    by_kind = table_of_methods("R@1 (%) by query", kinds)
    for name, entry in summary.items():
        rows = entry["recall"]["all"]
        registered, unseen = (entry["recall"].get(part, {}).get(HEADLINE) for part in ("registered", "unseen"))
        difference = entry.get("difference", {}).get("all")
        table.add_row(
            name,
            f"{entry['parameters']['trainable']:,}",
            recall_cell(rows.get(HEADLINE)),
            *[recall_cell(registered)] * has_registered,
            *["–" if difference is None else interval_cell(difference, "+.1f")] * has_difference,
            *[recall_cell(unseen)] * has_unseen,
        )
        by_kind.add_row(name, *(recall_cell(rows.get(kind), "\n") for kind in kinds))
    return [table, by_kind]


def comparison_note(record: Mapping[str, Any]) -> str:
    """Return the line below the tables."""
    gallery = record["data"]["gallery"]
    return (
        f"Gallery of {gallery['n']} {gallery['style']}. ± is the standard deviation over seeds, [ ] the 95 % bootstrap "
        "interval over queries of the mean over seeds. Differences are paired."
    )


def recall_cell(row: Mapping[str, Any] | None, separator: str = " ") -> str:
    """Format R@1 over seeds with its deviation, if there are several seeds, and its interval, for a rich table."""
    if row is None:
        return "–"
    found = row["R@1"]
    deviation = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{deviation}{separator}[{found['low']:.1f}, {found['high']:.1f}]"


def interval_cell(found: Mapping[str, Any], form: str) -> str:
    """Format a value with its interval for a rich table."""
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def table_of_methods(title: str, headings: Sequence[str], first: str = "method") -> Table:
    """Return an empty table with a row for each method."""
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
