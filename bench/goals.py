"""Goals of the benchmarks (goals.toml), compared with the rows of a results file: met, missed or open."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from result_rows import Rows


@dataclass(frozen=True)
class Goal:
    """A bound on one ratio: ``over / under`` (or ``over`` alone) must be at least or at most `limit`."""

    title: str
    op: str
    case: str
    dtype: str
    mode: str
    over: str
    under: str | None
    field: str
    is_minimum: bool
    limit: float

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.is_minimum else '≤'} {self.limit:g}"

    def matches(self, op: str, case: str, dtype: str, mode: str) -> bool:
        """Return whether the rows of a case count for the goal."""
        return (op, case, dtype, mode) == (self.op, self.case, self.dtype, self.mode)

    def measured(self, rows: Rows) -> float | None:
        """Return the ratio, or None if one of its rows is missing."""
        found = {
            row["provider"]: row.get(self.field, row["extra"].get(self.field))
            for row in rows
            if self.matches(row["op"], row["case"], row["dtype"], row["mode"])
        }
        over, under = found.get(self.over), 1.0 if self.under is None else found.get(self.under)
        return None if over is None or not under else float(over) / float(under)

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.is_minimum else value <= self.limit


@cache
def _entries() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def read(device: str) -> Iterator[Goal]:
    """Read the goals of a device, "cpu" or "cuda"."""
    for entry in _entries()[device]:
        op, case, dtype, mode = entry["rows"]
        is_minimum = "at_least" in entry
        limit = entry["at_least" if is_minimum else "at_most"]
        common = (entry.get("under"), entry.get("field", "median_ms"), is_minimum, limit)
        for one in entry.get("each", [case]):
            yield Goal(entry["what"], op, one, dtype, mode, entry["over"], *common)


def has_goal(device: str, op: str, case: str, dtype: str, mode: str) -> bool:
    """Return whether a case has a goal."""
    return any(goal.matches(op, case, dtype, mode) for goal in read(device))


def table(device: str, rows: Rows) -> str:
    """Return a Markdown table with the bound and the measured value of every goal."""
    lines = ["| goal | case | wanted | measured |", "|---|---|---|---|"]
    for goal in read(device):
        value = goal.measured(rows)
        measured = "open" if value is None else f"{value:.3g}" + ("" if goal.is_met(value) else ", **missed**")
        lines.append(f"| {goal.title} | {goal.case}, {goal.dtype}, {goal.mode} | {goal.wanted} | {measured} |")
    return "\n".join(lines)


def summarise(device: str, rows: Rows) -> str:
    """Return a sentence with the number of goals that are reached, and the values of those that are missed."""
    wanted = [(goal, goal.measured(rows)) for goal in read(device)]
    known = [(goal, value) for goal, value in wanted if value is not None]
    missed = [
        f"{goal.title}, {goal.case}, {goal.dtype}: {value:.3g} for {goal.wanted}"
        for goal, value in known
        if not goal.is_met(value)
    ]
    text = f"Of {len(wanted)} goals {len(known) - len(missed)} are reached" + (
        f", {len(wanted) - len(known)} are open" if len(known) < len(wanted) else ""
    )
    return text + (f"; missed: {'; '.join(missed)}." if missed else ".")
