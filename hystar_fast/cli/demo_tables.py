"""The table of the demo: R@1 of each method by query style."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from hystar_fast.data.emoji import HARD_STYLES

HEADLINE = "headline"


def recall_table(methods: dict[str, dict[str, Any]], title: str) -> Table:
    """Return a table with a row for each method: R@1 in per cent by kind of query, and over the hard ones.

    The mean over the hard styles has its 95 % interval; the last column is this mean for registered queries. The table
    fits into 80 columns.
    """
    table = Table(title=title, header_style="bold", padding=(0, 0))
    table.add_column("method")
    found = {name: method["recall"]["all"] for name, method in methods.items()}
    columns = list(dict.fromkeys(column for rows in found.values() for column in rows if column != HEADLINE))
    for column in (*columns, HEADLINE):
        n = next(rows[column]["n"] for rows in found.values() if column in rows)
        label = "hard mean" if column == HEADLINE else column + "*" * (column in HARD_STYLES)
        table.add_column(f"{label}\nn={n}", justify="right")
    table.add_column("hard mean,\nregistered", justify="right")
    best = max(rows[HEADLINE]["R@1"]["value"] for rows in found.values())
    for name, rows in found.items():
        cells: list[str | Text] = [
            f"{rows[column]['R@1']['value']:.1f}" if column in rows else "-" for column in columns
        ]
        first = rows[HEADLINE]["R@1"]
        mean = f"{first['value']:.1f} [{first['low']:.0f}, {first['high']:.0f}]"
        cells.append(Text(mean, "bold" if first["value"] == best else ""))
        registered = methods[name]["recall"]["registered"][HEADLINE]["R@1"]["value"]
        table.add_row(name, *cells, f"{registered:.1f}")
    return table
