"""Times of work on the device, without Python's: calls are replayed from CUDA graphs, one after the other in turn.

Alternatives are timed interleaved (A B C, then B C A, ...) in one process, so that clocks and temperature are the same
for all. A call that cannot be captured, because it waits for the device, is timed by events around it, with its host
time. Without CUDA, calls are timed by the clock, which tests this file and measures nothing of interest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
WINDOW = 2e-4  # seconds of one measurement, at least: an event resolves about a microsecond
FEWEST, MOST = 5, 200


class Timing(NamedTuple):
    """Median and interquartile range of a call in ms, the number of rounds, and "graph", "events" or "clock"."""

    median_ms: float
    spread_ms: float
    rounds: int
    how: str


@cache
def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


@contextmanager
def on_stream() -> Iterator[None]:
    """Run what is inside on one stream, on which graphs are captured too.

    The nodes of a backward run on the stream of their forward, so a forward outside could not be captured.
    """
    with torch.cuda.stream(stream()) if torch.cuda.is_available() else nullcontext():
        yield


def replayed(call: Call) -> tuple[Call, str]:
    """Return a call that replays `call` from a CUDA graph, or `call` itself if it cannot be captured."""
    if not torch.cuda.is_available():
        call()
        return call, "clock"
    for _ in range(3):  # compiles, and fills the caches of the allocator and of cuBLAS
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream()):
            outputs = call()
    except Exception:  # whatever it was, the stream must be usable again
        torch.cuda.synchronize()
        return call, "events"

    def replay(kept: Any = outputs) -> Any:  # the graph's memory lives as long as its outputs
        graph.replay()
        return kept

    return replay, "graph"


def _once(call: Call, times: int) -> float:
    """Return the seconds of one of `times` calls in a row."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(times):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3 / times


def interleaved(calls: Mapping[str, Call], seconds: float) -> dict[str, Timing]:
    """Capture alternatives and time them in turn, for about `seconds` in all."""
    with on_stream():
        return in_turn({name: replayed(call) for name, call in calls.items()}, seconds)


def in_turn(ready: Mapping[str, tuple[Call, str]], seconds: float) -> dict[str, Timing]:
    """Time calls that are ready, with how they are timed, in turn."""
    with on_stream():
        length = {name: max(_once(call, 1), 1e-7) for name, (call, _) in ready.items()}
        times = {name: max(1, round(WINDOW / length[name])) for name in ready}
        a_round = sum(length[name] * times[name] for name in ready)
        rounds = max(FEWEST, min(MOST, round(seconds / max(a_round, 1e-9))))
        found: dict[str, list[float]] = {name: [] for name in ready}
        names = list(ready)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(_once(ready[name][0], times[name]) * 1e3)
    return {name: summary(found[name], ready[name][1]) for name in names}


def summary(milliseconds: list[float], how: str) -> Timing:
    low, middle, high = statistics.quantiles(milliseconds, n=4)
    return Timing(middle, high - low, len(milliseconds), how)


def host_time(call: Call, calls: int = 50, rounds: int = 7) -> Timing:
    """Time what the host takes for a call, in ms: the device is idle when a round begins, and is not waited for."""
    found = []
    call()
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - started) / calls * 1e3)
    return summary(found, "clock")
