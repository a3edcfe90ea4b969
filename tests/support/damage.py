"""Damage files as broken disks and interrupted copies do: cut at a position, or with one bit flipped."""

from __future__ import annotations

import random
from collections.abc import Iterator


def cuts(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Yield the content emptied, without its last byte, and cut at random positions."""
    places = {0, len(content) - 1, *random.Random(seed).sample(range(len(content)), min(number, len(content)))}
    yield from (content[:place] for place in sorted(places))


def flips(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Yield the content with one bit flipped, at random positions and at both ends."""
    chosen = random.Random(seed)
    for place in (0, len(content) - 1, *(chosen.randrange(len(content)) for _ in range(number))):
        flipped = bytearray(content)
        flipped[place] ^= 1 << chosen.randrange(8)
        yield bytes(flipped)


def damaged(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `cuts` and `flips`."""
    yield from cuts(content, number, seed)
    yield from flips(content, number, seed)
