"""Small runs of TKI."""

from __future__ import annotations

from pathlib import Path

SMALL = [
    *("tki.words=3", "tki.steps_expansion=2", "tki.steps_aggregation=3", "data.limit=6", "optim.batch_size=4"),
    *("run.validate_every=1", "run.checkpoint_every=1", "run.device=cpu", "tki.labels=categories"),
]


def changes(folder: Path, *more: str) -> list[str]:
    """Return the changes that make "tki-emoji" small, with its output in a folder."""
    return [*SMALL, f"run.output={folder}", *more]
