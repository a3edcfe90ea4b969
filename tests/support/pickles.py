"""Pickle that leaves a file where it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Payload:
    """Object whose pickle creates the file `mark` when it is read without ``weights_only``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)
