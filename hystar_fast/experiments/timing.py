"""Time methods: milliseconds a picture to embed a batch, with style extractor and encoder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress

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


def embedding_times(
    methods: Mapping[str, Callable[[], Method]],
    device: torch.device,
    console: Console,
) -> dict[str, Cost]:
    """Time untrained methods by name, on random pictures in batches of 16 that are on the device already.

    The methods are timed in turn, so that a change in the machine's speed affects all of them; a first turn warms up.

    Args:
        methods: name -> function that builds it; a large Hystar takes minutes to factor its weights the first time.
        device: where they run.
        console: shows the progress.

    Raises:
        ValueError: a method that cannot be built.
    """
    taken: dict[str, list[float]] = {name: [] for name in methods}
    with Progress(console, transient=True) as progress:
        task = progress.add_task("embedding", total=len(methods) * (REPEATS + 2))
        built: dict[str, Method] = {}
        for name, build in methods.items():
            built[name] = on_device(build(), device)
            progress.advance(task)
        pictures = {size: _pictures(size).to(device) for size in {method.resize.size for method in built.values()}}
        for turn in range(REPEATS + 1):
            for name, method in built.items():
                milliseconds = _once(method, pictures[method.resize.size]) / BATCH
                if turn:
                    taken[name].append(milliseconds)
                progress.advance(task)
    return {name: Cost(statistics.median(found), min(found), max(found)) for name, found in taken.items()}


def _pictures(size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(BATCH, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _once(method: Method, pictures: torch.Tensor) -> float:
    method.train(False)
    wait = torch.cuda.synchronize if pictures.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    method.encode_image(pictures)
    wait()
    return 1000 * (time.perf_counter() - start)
