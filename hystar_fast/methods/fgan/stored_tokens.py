"""Tokens of items that never change, computed once; so a step costs the heads alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.methods.fgan.encoders import Tokens


class StoredTokens:
    """Tokens of items in their order, and what the teacher says about each."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tokens, Tensor | None]] = []
        self._whole: tuple[Tokens, Tensor | None] | None = None

    def add(self, tokens: Tokens, labels: Tensor | None) -> None:
        """Add the next items, and their labels [b, C] or None."""
        self._parts.append((tokens, labels))

    def rows(self, rows: Tensor) -> tuple[Tokens, Tensor | None]:
        """Return the tokens of some items, as long as the longest of them, and their labels."""
        if self._whole is None:
            self._whole, self._parts = _joined(self._parts), []
        (values, padding, leading), labels = self._whole
        rows = rows.to(values.device)
        found, taught = values[rows], None if labels is None else labels[rows]
        if padding is None:
            return Tokens(found, None, leading), taught
        hidden = padding[rows]
        longest = int((~hidden).sum(1).max())
        return Tokens(found[:, :longest], hidden[:, :longest], leading), taught


def _joined(parts: list[tuple[Tokens, Tensor | None]]) -> tuple[Tokens, Tensor | None]:
    tokens = [part for part, _ in parts]
    longest = max(part.values.shape[1] for part in tokens)
    values = torch.cat([F.pad(part.values, (0, 0, 0, longest - part.values.shape[1])) for part in tokens])
    padding = None
    if any(part.padding is not None for part in tokens):
        hidden = [
            torch.zeros(part.values.shape[:2], dtype=torch.bool, device=values.device)
            if part.padding is None
            else part.padding
            for part in tokens
        ]
        padding = torch.cat([F.pad(rows, (0, longest - rows.shape[1]), value=True) for rows in hidden])
    labels = [found for _, found in parts if found is not None]
    return Tokens(values, padding, tokens[0].leading), torch.cat(labels) if labels else None
