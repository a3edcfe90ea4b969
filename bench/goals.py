"""The goals of goals.toml against the rows of a results file: met, missed or open."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """One comparison: ``over / under`` (or ``over`` alone) at least or at most `limit`."""

    what: str
    op: str
    case: str
    dtype: str
    mode: str
    over: str
    under: str | None
    field: str
    least: bool
    limit: float

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.limit:g}"

    def is_about(self, op: str, case: str, dtype: str, mode: str) -> bool:
        """Whether a row of this case counts for the goal."""
        return (op, case, dtype, mode) == (self.op, self.case, self.dtype, self.mode)

    def measured(self, rows: Rows) -> float | None:
        """The value, or None where one of its rows has not been measured."""
        found = {
            row["provider"]: row.get(self.field, row["extra"].get(self.field))
            for row in rows
            if self.is_about(row["op"], row["case"], row["dtype"], row["mode"])
        }
        over, under = found.get(self.over), 1.0 if self.under is None else found.get(self.under)
        return None if over is None or not under else float(over) / float(under)

    def met(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


def read(device: str) -> Iterator[Goal]:
    """The goals of a device, "cpu" or "cuda"."""
    for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[device]:
        op, case, dtype, mode = entry["rows"]
        least = "at_least" in entry
        limit = entry["at_least" if least else "at_most"]
        common = (entry.get("under"), entry.get("field", "median_ms"), least, limit)
        for one in entry.get("each", [case]):
            yield Goal(entry["what"], op, one, dtype, mode, entry["over"], *common)


def has_goal(device: str, op: str, case: str, dtype: str, mode: str) -> bool:
    """Whether a goal is about this case."""
    return any(goal.is_about(op, case, dtype, mode) for goal in read(device))


def table(device: str, rows: Rows) -> str:
    """A Markdown table: what was wanted and what was measured, or that it is open."""
    lines = ["| goal | case | wanted | measured |", "|---|---|---|---|"]
    for goal in read(device):
        value = goal.measured(rows)
        said = "open" if value is None else f"{value:.3g}" + ("" if goal.met(value) else ", **missed**")
        lines.append(f"| {goal.what} | {goal.case}, {goal.dtype}, {goal.mode} | {goal.wanted} | {said} |")
    return "\n".join(lines)


def count(device: str, rows: Rows) -> str:
    """How many goals were reached, and by how much each of the others was not."""
    wanted = [(goal, goal.measured(rows)) for goal in read(device)]
    known = [(goal, value) for goal, value in wanted if value is not None]
    missed = [f"{g.what}, {g.case}, {g.dtype}: {value:.3g} for {g.wanted}" for g, value in known if not g.met(value)]
    said = f"Of {len(wanted)} goals {len(known) - len(missed)} are reached" + (
        f", {len(wanted) - len(known)} are open" if len(known) < len(wanted) else ""
    )
    return said + (f"; missed: {'; '.join(missed)}." if missed else ".")
