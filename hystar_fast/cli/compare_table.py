"""What a comparison found: a row a method with its mean, spread and interval, and its difference from Hystar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from hystar_fast.cli.report import interval
from hystar_fast.retrieval.evaluate import Evaluation
from hystar_fast.retrieval.protocol import HARD_STYLES, QUERY_STYLES, StyledConcepts
from hystar_fast.retrieval.seeds import Spread, over_seeds, paired_difference, restored

REFERENCE = "hystar"
_GROUPS: dict[str, Sequence[str]] = {"hard_mean": HARD_STYLES, **{style: (style,) for style in QUERY_STYLES}}
_CUTOFFS = (1, 5)


def summarise(runs: Sequence[dict[str, Any]], concepts: StyledConcepts) -> dict[str, Any]:
    """R@1 and R@5 by method and kind of query over the seeds, and the paired difference from Hystar.

    Args:
        runs: with "method", "seed", "parameters", "learning_rates" and "ranks".
        concepts: those the runs were evaluated on.

    Returns:
        method -> {"parameters", "learning_rates", "seeds", "recall": {part: {kind: {"R@k": …}}}, "difference"}, in per
        cent, where a difference is this method less Hystar.
    """
    by_method: dict[str, list[Evaluation]] = {}
    about: dict[str, Any] = {}
    for run in runs:
        name = run["method"]
        by_method.setdefault(name, []).append(restored(run["ranks"], concepts))
        entry = about.setdefault(
            name, {"parameters": run["parameters"], "learning_rates": run["learning_rates"], "seeds": []}
        )
        entry["seeds"].append(run["seed"])
    parts = ("all", "unseen_subgroups") if bool(concepts.unseen.any()) else ("all",)
    for name, evaluations in by_method.items():
        about[name]["recall"] = {part: _recalls(evaluations, part != "all") for part in parts}
        if REFERENCE in by_method and name != REFERENCE:
            found = {
                part: paired_difference(evaluations, by_method[REFERENCE], unseen_only=part != "all") for part in parts
            }
            about[name]["difference"] = {part: interval(value) for part, value in found.items() if value is not None}
    return about


def compare_tables(record: dict[str, Any]) -> list[Table]:
    """The two tables of a ``compare.json``: the methods with their differences, and each kind of query."""
    table = _table("R@1 (%), mean of the hard queries", "trained", "hard", "less Hystar", "unseen subgroups")
    kinds = [style for style in QUERY_STYLES if any(style in e["recall"]["all"] for e in record["summary"].values())]
    styles = _table("R@1 (%) by query", *kinds)
    for name, entry in record["summary"].items():
        rows = entry["recall"]["all"]
        unseen = entry["recall"].get("unseen_subgroups", {}).get("hard_mean")
        difference = entry.get("difference", {}).get("all")
        table.add_row(
            name,
            f"{entry['parameters']['trainable']:,}",
            _cell(rows["hard_mean"], bounds=True),
            "–" if difference is None else _bounded(difference, "+.1f"),
            "–" if unseen is None else _cell(unseen),
        )
        styles.add_row(name, *(_cell(rows[kind]) if kind in rows else "–" for kind in kinds))
    return [table, styles]


def compare_note(record: dict[str, Any]) -> str:
    """What stands below the tables."""
    return (
        f"Full gallery of {record['gallery']['n']} held-out concepts, {record['steps']} steps of training. "
        f"Hard: {', '.join(HARD_STYLES)}. ± is the standard deviation over seeds, [ ] the 95 % bootstrap interval over "
        "concepts of the mean over seeds; differences are paired."
    )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=heading != "unseen subgroups")
    return table


def _recalls(evaluations: Sequence[Evaluation], unseen_only: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, styles in _GROUPS.items():
        spreads = {f"R@{k}": over_seeds(evaluations, styles, k, unseen_only=unseen_only) for k in _CUTOFFS}
        kept = {name: _spread(spread) for name, spread in spreads.items() if spread is not None}
        if kept:
            found[kind] = kept
    return found


def _spread(spread: Spread) -> dict[str, Any]:
    deviation = None if spread.deviation is None else round(100 * spread.deviation, 2)
    return {**interval(spread.interval), "deviation": deviation}


def _cell(row: dict[str, Any], *, bounds: bool = False) -> str:
    found = row["R@1"]
    spread = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['value']:.1f}{spread}" + (f" \\[{found['low']:.1f}, {found['high']:.1f}]" if bounds else "")


def _bounded(found: dict[str, Any], form: str) -> str:
    return f"{found['value']:{form}} \\[{found['low']:{form}}, {found['high']:{form}}]"
