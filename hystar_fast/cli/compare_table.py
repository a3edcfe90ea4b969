"""What a comparison found: a row a method with its mean, spread and interval, and its difference from Hystar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from hystar_fast.cli.report import USUAL_CUTOFFS, interval
from hystar_fast.retrieval.protocol import HARD_STYLES, QUERY_STYLES
from hystar_fast.retrieval.seeds import Queries, Runs, Spread, over_seeds, paired_difference, runs_by_method

REFERENCE = "hystar"


def summarise(
    runs: Sequence[Mapping[str, Any]],
    queries: Queries,
    headline: Sequence[str] = HARD_STYLES,
    kinds: Sequence[str] = QUERY_STYLES,
    cutoffs: Mapping[str, int] = USUAL_CUTOFFS,
) -> dict[str, Any]:
    """R@1 and R@5 by method and kind of query over the seeds, and the paired difference from Hystar.

    Args:
        runs: with "method", "seed", "parameters", "learning_rates" and "ranks".
        queries: those the runs were evaluated on.
        headline: the kinds of query whose mean is "hard_mean", and decides the difference.
        kinds: all kinds.
        cutoffs: name of a recall -> how many places it looks at.

    Returns:
        method -> {"parameters", "learning_rates", "seeds", "recall": {part: {kind: {"R@k": …}}}, "difference"}, in per
        cent, where a difference is this method less Hystar.
    """
    by_method = runs_by_method(runs, queries)
    about: dict[str, Any] = {}
    for run in runs:
        entry = about.setdefault(
            run["method"], {"parameters": run["parameters"], "learning_rates": run["learning_rates"], "seeds": []}
        )
        entry["seeds"].append(run["seed"])
    parts = ("all", "unseen_subgroups") if bool(queries.unseen.any()) else ("all",)
    groups = {"hard_mean": headline, **{kind: (kind,) for kind in kinds}}
    for name, evaluations in by_method.items():
        about[name]["recall"] = {part: _recalls(evaluations, groups, cutoffs, part != "all") for part in parts}
        if REFERENCE in by_method and name != REFERENCE:
            found = {
                part: paired_difference(evaluations, by_method[REFERENCE], headline, unseen_only=part != "all")
                for part in parts
            }
            about[name]["difference"] = {part: interval(value) for part, value in found.items() if value is not None}
    return about


def compare_tables(record: Mapping[str, Any]) -> list[Table]:
    """The two tables of a ``compare.json``: the methods with their differences, and each kind of query."""
    what, mean = "mean of the hard queries", "hard"
    if "headline" in record:
        what, mean = f"{record['data']}, mean of {', '.join(record['headline'])}", "mean"
        what += f"\n{record['gallery']['concepts']}"
    unseen_asked = any("unseen_subgroups" in entry["recall"] for entry in record["summary"].values())
    table = _table(f"R@1 (%), {what}", "trained", mean, "less Hystar", *["unseen subgroups"] * unseen_asked)
    kinds = [kind for kind in record["queries"] if any(kind in e["recall"]["all"] for e in record["summary"].values())]
    styles = _table("R@1 (%) by query", *kinds)
    for name, entry in record["summary"].items():
        rows = entry["recall"]["all"]
        unseen = entry["recall"].get("unseen_subgroups", {}).get("hard_mean")
        difference = entry.get("difference", {}).get("all")
        table.add_row(
            name,
            f"{entry['parameters']['trainable']:,}",
            recall_cell(rows.get("hard_mean")),
            "–" if difference is None else bounded(difference, "+.1f"),
            *[recall_cell(unseen)] * unseen_asked,
        )
        styles.add_row(name, *(recall_cell(rows.get(kind), "\n") for kind in kinds))
    return [table, styles]


def compare_note(record: Mapping[str, Any]) -> str:
    """What stands below the tables."""
    kinds = "± is the standard deviation over seeds, [ ] the 95 % bootstrap interval over"
    if "headline" in record:
        place = f"Gallery of {record['gallery']['n']} {record['gallery']['style']}, {record['gallery']['concepts']}"
        return (
            f"{record['data']}. {place}; {record['steps']} steps of training. {kinds} what is asked for of "
            "the mean over seeds; differences are paired."
        )
    return (
        f"Full gallery of {record['gallery']['n']} held-out concepts, {record['steps']} steps of training. "
        f"Hard: {', '.join(HARD_STYLES)}. {kinds} concepts of the mean over seeds; differences are paired."
    )


def recall_cell(row: Mapping[str, Any] | None, between: str = " ") -> str:
    """R@1 over seeds with its standard deviation, where there are several, and its interval; for a table of rich."""
    if row is None:
        return "–"
    found = row["R@1"]
    spread = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{spread}{between}\\[{found['low']:.1f}, {found['high']:.1f}]"


def bounded(found: Mapping[str, Any], form: str) -> str:
    """A value with its interval, for a table of rich."""
    return f"{found['value']:{form}} \\[{found['low']:{form}}, {found['high']:{form}}]"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=heading != "unseen subgroups")
    return table


def _recalls(
    evaluations: Runs,
    groups: Mapping[str, Sequence[str]],
    cutoffs: Mapping[str, int],
    unseen_only: bool,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, styles in groups.items():
        spreads = {name: over_seeds(evaluations, styles, k, unseen_only=unseen_only) for name, k in cutoffs.items()}
        kept = {name: _spread(spread) for name, spread in spreads.items() if spread is not None}
        if kept:
            found[kind] = kept
    return found


def _spread(spread: Spread) -> dict[str, Any]:
    deviation = None if spread.deviation is None else round(100 * spread.deviation, 2)
    return {**interval(spread.interval), "deviation": deviation}
