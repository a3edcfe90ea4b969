"""Measurement of one provider: its time (by pytest-benchmark), its error against float64 and its peak memory."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import device_time
import torch
from torch import Tensor

Outputs = Sequence[Tensor]
Run = Callable[[], Outputs]

OURS = "hystar_fast"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The device whose cases are measured. BENCH_PLAN=cuda runs those of a GPU on a CPU (with --quick, at toy sizes).
PLAN = os.environ.get("BENCH_PLAN", DEVICE)
SECONDS_A_PROVIDER = 0.7 if DEVICE == "cpu" else 0.25
LIMITS = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of our error against float64
TF32_LIMIT, FP8_LIMIT = 3e-3, 0.1
MIN_ROUNDS, MAX_ROUNDS = 3, 200
MEMORY_ROUNDS = 3  # the system may take pages back in the middle of one


@dataclass
class Row:
    """One provider on one case: an entry of the results file."""

    op: str
    case: str
    provider: str
    mode: str
    dtype: str
    median_ms: float
    spread_ms: float
    rounds: int
    peak_mib: float
    error: float | None
    extra: dict[str, Any] = field(default_factory=dict)


def error_limit(provider: str, dtype: torch.dtype, case: str = "") -> float:
    """Return the largest relative error that a published row of ours may have."""
    if "fp8" in provider:
        return FP8_LIMIT
    return TF32_LIMIT if "tf32" in case else LIMITS[dtype]


def synchronise() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def relative_error(outputs: Outputs, truth: Outputs) -> float:
    """Return the largest ||out - truth|| / ||truth|| over the outputs, in float64."""
    errors = []
    for out, exact in zip(outputs, truth, strict=True):
        exact = exact.double()
        errors.append(((out.detach().double() - exact).norm() / exact.norm().clamp_min(1e-300)).item())
    return max(errors)


@cache
def _freeze(modules: int) -> None:
    """Take what is imported out of later collections, which would visit its million objects each time.

    Called with the number of modules, it does so again when a provider has imported more.
    """
    gc.collect()
    gc.freeze()


def peak_mib(run: Run) -> float:
    """Measure the peak memory of a call in MiB: of the allocator on CUDA, of the resident set on a Linux CPU."""
    _freeze(len(sys.modules))
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status_kib("VmRSS")
    run()
    return max(0.0, (_status_kib("VmHWM") - before) / 2**10)


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure(
    benchmark: Any, run: Run, truth: Outputs | None, *, capture: bool = True
) -> tuple[float, float, int, float, float | None]:
    """Return median and interquartile range in ms, rounds, peak memory in MiB and the largest error against `truth`.

    On a GPU it is the time of the device, by replays of a graph, unless `capture` is off: then the host's time counts.
    """
    outputs = run()  # warms up: compiles and fills caches
    error = None if truth is None else relative_error(outputs, truth)
    del outputs
    memory = statistics.median(peak_mib(run) for _ in range(MEMORY_ROUNDS))
    if DEVICE == "cuda" and capture:
        benchmark.pedantic(run, rounds=1, iterations=1)
        timing = device_time.interleaved({"": run}, SECONDS_A_PROVIDER)[""]
        return timing.median_ms, timing.spread_ms, timing.rounds, memory, error
    started = time.perf_counter()
    run()
    synchronise()
    once = max(time.perf_counter() - started, 1e-7)
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, round(SECONDS_A_PROVIDER / once)))
    iterations = max(1, min(50, round(2e-3 / once)))  # at least 2 ms a round
    calls = itertools.count(1)

    def timed() -> None:
        run()
        if next(calls) % iterations == 0:  # launches overlap within a round, as in a user's loop
            synchronise()

    benchmark.pedantic(timed, rounds=rounds, iterations=iterations, warmup_rounds=1)
    stats = benchmark.stats.stats
    return stats.median * 1e3, stats.iqr * 1e3, rounds, memory, error


def measure_in_turns(
    runs: Mapping[str, Run], truths: Mapping[str, Outputs], rounds: int = 7
) -> dict[str, tuple[float, float, int, float, float | None]]:
    """Return what `measure` does for each of several calls, one round of each after the other, with the host's time.

    For calls of seconds: what else a shared machine does in that time then meets all of them.
    """
    found = {}
    for name, run in runs.items():
        outputs = run()
        error = relative_error(outputs, truths[name]) if name in truths else None
        found[name] = statistics.median(peak_mib(run) for _ in range(MEMORY_ROUNDS)), error
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds if SECONDS_A_PROVIDER > 0.1 else MIN_ROUNDS):
        for name, run in runs.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            times[name].append(1e3 * (time.perf_counter() - started))
    quartiles = {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()}
    return {
        name: (middle, upper - lower, len(times[name]), *found[name])
        for name, (lower, middle, upper) in quartiles.items()
    }


def rates(row: Row) -> dict[str, float]:
    """Return the rates of a row: TFLOP/s of products, GB/s of traffic, images a second."""
    seconds, extra = row.median_ms / 1e3, row.extra
    found = {}
    if extra.get("gflop"):
        found["tflop_per_s"] = round(extra["gflop"] / 1e3 / seconds, 3)
    if extra.get("gib"):
        found["gb_per_s"] = round(extra["gib"] * 2**30 / 1e9 / seconds, 1)
    if extra.get("images"):
        found["images_per_s"] = round(extra["images"] / seconds, 1)
    return found


def profile_kernels(run: Run, most: int = 6) -> list[dict[str, Any]]:
    """List the slowest kernels of a call (on the CPU: operators), with their shares of the time on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronise()
    attribute = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    times = [(event.key, getattr(event, attribute), event.count) for event in profile.key_averages()]
    total = sum(time for _, time, _ in times)
    slowest = sorted((entry for entry in times if entry[1] > 0), key=lambda entry: -entry[1])[:most]
    return [
        {"name": name, "us": round(time, 2), "calls": count, "share": round(time / total, 3)}
        for name, time, count in slowest
    ]


def forward(run: Callable[[], Tensor]) -> Run:
    """Return a call of the forward alone, without autograd."""

    def call() -> Outputs:
        with torch.no_grad():
            return [run()]

    return call


def forward_backward(run: Callable[[], Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Run:
    """Return a call of forward and backward that returns the output and the gradients of `inputs`."""

    def call() -> Outputs:
        y = run()
        return [y, *torch.autograd.grad(y, inputs, upstream)]

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with torch.compile, after a reset of the compiler."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)
