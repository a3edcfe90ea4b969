"""The table of the answers to a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hystar_fast.terminal.console import Console, create_table


def print_hits(
    hits: Iterable[Mapping[str, Any]], picture: object, text: str | None, end: str, console: Console
) -> None:
    """Print hits with their rank, score, id and caption.

    Args:
        hits: best first.
        picture: of the query, or None.
        text: words of the query, or None.
        end: of the title.
        console: where to.
    """
    shown = " and ".join(part for part in (str(picture or ""), f'"{text}"' if text else "") if part)
    table = create_table("", "score", "id", "caption", title=f"{shown}: {end}", right=("", "score"))
    for hit in hits:
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", hit["id"], hit["caption"])
    console.print(table)
