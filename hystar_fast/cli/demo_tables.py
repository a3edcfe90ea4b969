"""The table of the demo: R@1 and R@5 of each method by query style."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from hystar_fast.data.emoji import HARD_STYLES

HEADLINE = "headline"


def recall_table(methods: dict[str, dict[str, Any]], title: str, part: str = "all") -> Table:
    """Return a table with a row for each method and a column for each kind of query with R@1 / R@5 in per cent.

    The interval of R@1 stands below, rounded so that the table fits into 80 columns.
    """
    table = Table(title=title, header_style="bold", padding=(0, 0))
    table.add_column("method")
    found = {name: method["recall"][part] for name, method in methods.items()}
    columns = list(dict.fromkeys(column for rows in found.values() for column in rows if column != HEADLINE))
    columns.append(HEADLINE)
    for column in columns:
        n = next(rows[column]["n"] for rows in found.values() if column in rows)
        label = "hard mean" if column == HEADLINE else column + "*" * (column in HARD_STYLES)
        table.add_column(f"{label}\nn={n}", justify="right")
    with_displaced = part == "all" and all("displaced" in method["recall"] for method in methods.values())
    if with_displaced:
        table.add_column("hard\ndisplaced", justify="right")
    best = max(rows[HEADLINE]["R@1"]["value"] for rows in found.values())
    for name, rows in found.items():
        cells: list[str | Text] = [_cell(rows[column]) if column in rows else "-" for column in columns]
        if rows[HEADLINE]["R@1"]["value"] == best:
            cells[-1] = Text(str(cells[-1]), "bold")
        if with_displaced:
            cells.append(_cell(methods[name]["recall"]["displaced"][HEADLINE]))
        table.add_row(name, *cells)
    return table


def _cell(row: dict[str, Any]) -> str:
    first = row["R@1"]
    return f"{first['value']:.1f}/{row['R@5']['value']:.1f}\n{first['low']:.0f}-{first['high']:.0f}"
