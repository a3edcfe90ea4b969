"""Summaries and tables of a comparison: mean, deviation and interval of each method, and its difference from Hystar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from hystar_fast.experiments.seeds import Runs, difference_over_seeds, runs_by_method, spread_over_seeds
from hystar_fast.retrieval.ranks import QueryIds, Ranks
from hystar_fast.retrieval.results_json import interval_info, to_percent

REFERENCE, HEADLINE = "hystar", "headline"


def recall_info(ranks: Ranks, headline: Sequence[str], cutoffs: Mapping[str, int]) -> dict[str, Any]:
    """Return the recalls of one run by kind of query and over the headline kinds, in per cent with intervals."""
    groups = {**{kind: [kind] for kind in ranks.by_kind}, HEADLINE: list(headline)}
    return {
        group: {
            name: interval_info(found) for name, k in cutoffs.items() if (found := ranks.recall(kinds, k)) is not None
        }
        for group, kinds in groups.items()
    }


def summarise(
    runs: Sequence[Mapping[str, Any]],
    ids: QueryIds,
    headline: Sequence[str],
    cutoffs: Mapping[str, int],
    reference: str = REFERENCE,
) -> dict[str, Any]:
    """Summarise runs by method: recalls by kind of query over the seeds, and the paired difference from a reference.

    Args:
        runs: with "method", "seed", "parameters", "learning_rates" and "ranks".
        ids: of their queries.
        headline: the kinds of query whose mean is the headline.
        cutoffs: name of a recall -> the rank that it looks at.
        reference: a method.

    Returns:
        method -> {"parameters", "learning_rates", "seeds", "recall": {part: {kind: {"R@k": ...}}}, "difference": {part:
        ...}} in per cent. The parts are "all" and, if there are any, "unseen" categories. A difference is this method
        minus the reference.
    """
    by_method = runs_by_method(runs, ids)
    found: dict[str, Any] = {}
    for run in runs:
        entry = found.setdefault(
            run["method"], {"parameters": run["parameters"], "learning_rates": run["learning_rates"], "seeds": []}
        )
        entry["seeds"].append(run["seed"])
    parts = ("all", "unseen") if bool(ids.unseen.any()) else ("all",)
    groups = {HEADLINE: tuple(headline), **{kind: (kind,) for kind in ids.by_kind}}
    for name, method_runs in by_method.items():
        found[name]["recall"] = {part: _recalls(method_runs, groups, cutoffs, part == "unseen") for part in parts}
        if reference in by_method and name != reference:
            differences = {part: _difference(by_method, name, reference, headline, part == "unseen") for part in parts}
            found[name]["difference"] = {part: value for part, value in differences.items() if value is not None}
    return found


def comparison_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the two tables of a ``compare.json``: methods with their differences, and each kind of query."""
    data, summary = record["data"], record["summary"]
    title = f"R@1 (%) on {data['name']}, mean of {', '.join(data['headline'])}\n{data['protocol']}"
    has_unseen = any("unseen" in entry["recall"] for entry in summary.values())
    headings = ("trained", "mean", "minus hystar", *["unseen categories"] * has_unseen)
    table = table_of_methods(title, headings)
    every = (kind for entry in summary.values() for kind in entry["recall"]["all"])
    kinds = [kind for kind in dict.fromkeys(every) if kind != HEADLINE]
    by_kind = table_of_methods("R@1 (%) by query", kinds)
    for name, entry in summary.items():
        rows = entry["recall"]["all"]
        unseen = entry["recall"].get("unseen", {}).get(HEADLINE)
        difference = entry.get("difference", {}).get("all")
        table.add_row(
            name,
            f"{entry['parameters']['trainable']:,}",
            recall_cell(rows.get(HEADLINE)),
            "–" if difference is None else interval_cell(difference, "+.1f"),
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
    return f"{found['value']:.1f}{deviation}{separator}\\[{found['low']:.1f}, {found['high']:.1f}]"


def interval_cell(found: Mapping[str, Any], form: str) -> str:
    """Format a value with its interval for a rich table."""
    return f"{found['value']:{form}} \\[{found['low']:{form}}, {found['high']:{form}}]"


def table_of_methods(title: str, headings: Sequence[str], first: str = "method") -> Table:
    """Return an empty table with a row for each method."""
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _recalls(
    runs: Runs, groups: Mapping[str, Sequence[str]], cutoffs: Mapping[str, int], unseen_only: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group, kinds in groups.items():
        spreads = {name: spread_over_seeds(runs, kinds, k, unseen_only=unseen_only) for name, k in cutoffs.items()}
        kept = {
            name: {
                **interval_info(spread.interval),
                "deviation": None if spread.deviation is None else to_percent(spread.deviation),
            }
            for name, spread in spreads.items()
            if spread is not None
        }
        if kept:
            found[group] = kept
    return found


def _difference(
    runs: Mapping[str, Runs], name: str, reference: str, headline: Sequence[str], unseen_only: bool
) -> dict[str, float | int] | None:
    found = difference_over_seeds(runs[name], runs[reference], headline, unseen_only=unseen_only)
    return None if found is None else interval_info(found)
