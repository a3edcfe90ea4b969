"""``experiments reproduce acnet:table2``: the published rows of other systems, and why a row has no run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.experiments.comparison_tables import table_of_methods
from hystar_fast.experiments.published_tables import SHARE, PublishedTable
from hystar_fast.retrieval.results_json import run_info, write_json
from hystar_fast.terminal.console import Console


def run_published(tables: Sequence[PublishedTable], output: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Print tables of other papers, and write each to ``<paper>-table<n>.json``.

    Args:
        tables: what to print.
        output: the folder.
        console: where to.

    Returns:
        "acnet:table2" -> the content of its file.

    Raises:
        ValueError: another command is writing the folder.
    """
    results = {}
    with lock_folder(output):
        for table in tables:
            name = f"{table.paper}:table{table.number}"
            rows = [
                {"row": row, "paper": dict(zip(table.columns, values, strict=True)), "missing": table.reason(row)}
                for row, values in table.rows.items()
            ]
            head = {"table": name, "subject": table.subject, "paper": table.source, "unit": table.unit}
            results[name] = {**run_info(), **head, "paper_note": table.note, "rows": rows}
            path = output / f"{table.paper}-table{table.number}.json"
            write_json(path, results[name])
            _show(table, console)
            console.print(f"wrote {path}\n")
    return results


def _show(table: PublishedTable, console: Console) -> None:
    title = f"{table.paper}, Table {table.number}: {table.subject} (the paper's figures, {table.unit})"
    shown = table_of_methods(title, table.columns, "row")
    for row, values in table.rows.items():
        shown.add_row(row, *(figure(value, table.unit) for value in values))
    console.print(shown)
    console.print(f"paper: {table.source}")
    if table.semantics:
        console.print(f"with word embeddings of the categories: {', '.join(table.semantics)}")
    if table.note:
        console.print(f"paper note: {table.note}")
    reasons = {row: table.reason(row) for row in table.rows}
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(row for row in table.rows if reasons[row] == reason)
        console.print(f"not run: {names}: {reason}")


def figure(value: float | None, unit: str) -> str:
    """Return a figure as the paper prints it: "–" for none.

    In per cent it has one decimal, or two where it needs them; as a share up to 1 it has three.
    """
    if value is None:
        return "–"
    if unit == SHARE:
        return f"{value:.3f}" if value < 1 else f"{value:g}"
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"
