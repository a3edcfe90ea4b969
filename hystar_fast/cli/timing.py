"""What each style extractor costs: milliseconds a picture of embedding a batch, extractor and encoder together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from hystar_fast.methods.interface import Method
from hystar_fast.methods.variants import create_variant
from hystar_fast.models.config import HystarConfig

BATCH, REPEATS = 16, 7


@dataclass(frozen=True)
class Cost:
    """Milliseconds a picture.

    Attributes:
        median: of the repeats.
        low, high: the fastest and the slowest repeat.
    """

    median: float
    low: float
    high: float


def extractor_times(
    names: Sequence[str], config: HystarConfig, *, repeats: int = REPEATS
) -> dict[str, dict[str, float]]:
    """Variant -> its cost in milliseconds a picture, on the CPU in batches of 16, untrained.

    The variants take turns, so that a machine that slows down slows all of them; a first turn warms up.

    Args:
        names: methods or variants of `hystar-fast compare`.
        config: what they change.
        repeats: turns that count.

    Raises:
        ValueError: a name that cannot be built, or no repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    methods = {name: create_variant(name, config) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    pictures = _pictures(methods)
    for turn in range(repeats + 1):
        for name, method in methods.items():
            milliseconds = _once(method, pictures[method.reader.size[0]])
            if turn:
                taken[name].append(milliseconds / BATCH)
    return {name: asdict(Cost(statistics.median(found), min(found), max(found))) for name, found in taken.items()}


def _pictures(methods: Mapping[str, Method]) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = {method.reader.size[0] for method in methods.values()}
    return {side: torch.rand(BATCH, 3, side, side, generator=generator) for side in sides}


@torch.inference_mode()
def _once(method: Method, pictures: torch.Tensor) -> float:
    method.train(False)
    began = time.perf_counter()
    method.encode_image(pictures)
    return 1000 * (time.perf_counter() - began)
