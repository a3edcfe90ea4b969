"""One row of the table that a campaign prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["passed", "refused", "failed"]


@dataclass(frozen=True)
class Row:
    """The outcome of one case of a campaign.

    Args:
        part: of the campaign, such as "zoo".
        case: its name within the part.
        outcome: "refused" is an error that names its reason, where one is right.
        note: one line: figures, the reason of a refusal, or the fault.
    """

    part: str
    case: str
    outcome: Outcome
    note: str


def fault(part: str, case: str, problem: Exception) -> Row:
    """Return the row of a case that raised what it should not."""
    return Row(part, case, "failed", " ".join(f"{type(problem).__name__}: {problem}".split())[:300])
