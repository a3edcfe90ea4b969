"""Measure every case that has a goal, and choose tiles, in one process: python bench/measure.py RESULTS [--toy].

The alternatives of a case are replayed from CUDA graphs in turn (device_time.py), so a row holds the time of the
device. What the host takes for a call is a row of its own ("host time"). Rows go to RESULTS, the file of the other
benchmarks, as soon as their case is measured, and the tiles to <RESULTS>-tiles.json (tune.py). Rows of the present
kernels are not measured again. Alternatives that compile with torch take a minute each and are left to bench_*.py.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_ceiling
import bench_sinkhorn
import bench_style_nce
import bench_svd_linear
import device_time
import goals
import harness
import host_cases
import kernel_variants as kernels
import pytest
import store
import torch
import tune
from harness import DEVICE, OURS, PLAN, Outputs, Run

SKIPPED = pytest.skip.Exception
# Peers, and references that read a result on the host: they wait for the device, so no graph can hold them.
NOT_CAPTURED = (
    *("POT", "POT batch", "geomloss", "geomloss (potentials)", "flash-sinkhorn (potentials)"),
    *bench_style_nce.PEERS,
)
Measurement = Callable[["Recorder"], None]


class Recorder:
    """The `record` of conftest.py for a whole process: it measures the alternatives of a case together."""

    def __init__(self, results: store.ResultsFile, toy: bool) -> None:
        self.results, self.seconds, self.failed = results, 0.02 if toy else 0.6, 0
        self.host_calls = {"calls": 5, "rounds": 3} if toy else {}
        self.case: tuple[str, ...] = ()
        self.ready: dict[str, tuple[device_time.Call, str]] = {}
        self.ours: Run | None = None
        self.known: dict[str, tuple[float, float | None, dict[str, Any]]] = {}

    def __call__(
        self,
        op: str,
        case: str,
        provider: str,
        mode: str,
        dtype: torch.dtype,
        run: Run,
        truth: Outputs | None,
        **extra: Any,
    ) -> None:
        """Check and capture one alternative."""
        dtype_name = str(dtype).removeprefix("torch.")
        if (op, case, mode, dtype_name) != self.case:
            self.flush()
            self.case = (op, case, mode, dtype_name)
        if self.results.is_fresh(op, case, provider, mode, dtype_name):
            return
        error = None if truth is None else harness.relative_error(run(), truth)
        limit = harness.error_limit(provider, dtype, case)
        if provider.startswith(OURS) and error is not None and not error <= limit:
            raise ValueError(f"{op} {case} {provider} {mode} has an error of {error:.2e} (limit {limit:.0e})")
        memory = harness.peak_mib(run)
        waits = provider in NOT_CAPTURED or (op != "svd_linear" and provider == "reference, eager")
        self.ready[provider] = (run, "events") if waits else device_time.replayed(run)
        self.known[provider] = memory, error, extra
        self.ours = run if provider == OURS else self.ours

    def flush(self) -> None:
        """Measure the case whose alternatives are ready, and write its rows."""
        ready, known, ours = self.ready, self.known, self.ours
        self.ready, self.known, self.ours = {}, {}, None
        if not ready:
            return
        op, case, mode, dtype = self.case
        for provider, timing in device_time.in_turn(ready, self.seconds).items():
            memory, error, extra = known[provider]
            median, spread, rounds, how = timing
            extra = {**extra, "timed": how}
            row = harness.Row(op, case, provider, mode, dtype, median, spread, rounds, memory, error, extra)
            row.extra |= harness.rates(row)
            if provider == OURS and ours is not None:
                row.extra["profile"] = harness.profile_kernels(ours)
            self.results.add(row)
            print(f"{op} {case} {dtype} {mode}, {provider}: {median:.4g} ms (IQR {spread:.2g}, {how})", flush=True)

    def host(self, op: str, case: str, provider: str, mode: str, dtype: str, call: Run) -> None:
        """Measure what the host takes for a call."""
        self.flush()
        if self.results.is_fresh(op, case, provider, mode, dtype):
            return
        timing = device_time.host_time(call, **self.host_calls)
        row = (timing.median_ms, timing.spread_ms, timing.rounds, 0.0, None, {"timed": "host"})
        self.results.add(harness.Row(op, case, provider, mode, dtype, *row))
        print(f"{op} {case} {dtype} {mode}, {provider}: {timing.median_ms * 1e3:.4g} us of the host", flush=True)


def has_goal(op: str, case: str, dtype: str, mode: str) -> bool:
    return goals.has_goal(PLAN, op, case, dtype, mode)


def ceilings(toy: bool) -> Iterator[Measurement]:
    yield lambda record: bench_ceiling.bench_copy(record, toy)
    for name in bench_ceiling.DTYPES if DEVICE == "cuda" else ("fp32", "bf16"):
        yield lambda record, n=name: bench_ceiling.bench_matmul(record, toy, n)


def svd_linear(toy: bool) -> Iterator[Measurement]:
    """Yield the cases with goals, and training's forward, which writes h too, of their layers."""
    for parameters in bench_svd_linear.measurements():
        case, mode, provider = parameters.values
        wanted = has_goal("svd_linear", str(case), str(case.dtype).removeprefix("torch."), mode)
        if (wanted or mode == "training forward") and "compile" not in provider:
            yield lambda record, c=case, m=mode, p=provider: bench_svd_linear.bench_svd_linear(record, toy, c, m, p)


def sinkhorn(toy: bool) -> Iterator[Measurement]:
    for batch, n, provider in bench_sinkhorn.MEASURED:
        if has_goal("sinkhorn", f"{batch} of {n}x{n}", "float32", "forward") and "compile" not in provider:
            yield lambda record, a=(batch, n, provider): bench_sinkhorn.bench_sinkhorn(record, toy, *a)
    for batch, n, grad, provider in bench_sinkhorn.GRADIENTS:
        name = f"{batch} of {n}x{n}" + ("" if grad == "unroll" else ", implicit")
        if has_goal("sinkhorn", name, "float32", "forward+backward") and provider != "naive torch":
            yield lambda record, a=(batch, n, grad, provider): bench_sinkhorn.bench_sinkhorn_backward(record, toy, *a)
    for provider in (OURS, "flash-sinkhorn (potentials)", "geomloss (potentials)") if PLAN == "cuda" else ():
        yield lambda record, p=provider: bench_sinkhorn.bench_points(record, toy, 1024, p)


def style_nce(toy: bool) -> Iterator[Measurement]:
    for n, dtype, provider in bench_style_nce.CASES:
        case = f"N{n} D{bench_style_nce.DIMENSION}"
        if has_goal("style_nce", case, str(dtype)[6:], "forward+backward") and "compile" not in provider:
            yield lambda record, a=(n, dtype, provider): bench_style_nce.bench_style_nce(record, toy, *a)


def host_times(toy: bool) -> Iterator[Measurement]:
    for op, case, mode, provider, make in host_cases.cases():
        yield (
            lambda record, a=(op, case, provider, mode, "bfloat16" if op == "svd_linear" else "float32"), m=make: (
                record.host(*a, m())
            )
        )


def launch_once() -> None:
    """Launch the kernels of a forward and a backward a few times, for a profiler."""
    layer, gpu = kernels.make_layer(48, *tune.LAYER, dtype=torch.bfloat16), kernels.gpu_here()
    tile = kernels.shipped_tile(layer, 2, gpu)
    for _ in range(2):
        h = kernels.forward(layer, tile, gpu, keep_h=True)[1]
        kernels.backward(layer, h, tile, gpu)
    harness.synchronise()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--once", action="store_true", help="measure nothing: launch svd_linear's kernels for ncu")
    parser.add_argument("--specialised", action="store_true", help="time the specialised backward too")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to test this script without a GPU")
    arguments = parser.parse_args()
    if arguments.once:
        launch_once()
        return 0
    if arguments.results is None:
        parser.error("RESULTS, the file of the rows, must be given")
    results = store.ResultsFile(arguments.results, store.head(False), append=True)
    record = Recorder(results, arguments.toy)
    device_time.FEWEST = 3 if arguments.toy else device_time.FEWEST
    tiles = tune.TileFile(arguments.results.with_name(f"{arguments.results.stem}-tiles.json"))
    stages: list[tuple[str, Callable[[bool], Iterator[Measurement]]]] = [
        ("ceilings", ceilings),
        ("svd_linear", svd_linear),
        ("tiles", lambda toy: tune.measurements(tiles, toy, arguments.specialised)),
        ("host times", host_times),
        ("sinkhorn", sinkhorn),
        ("style_nce", style_nce),  # its last case, of 32,768 rows, takes seconds a call
    ]
    began = time.perf_counter()
    with device_time.on_stream():
        for name, measurements in stages:
            for measure in measurements(arguments.toy):
                try:
                    measure(record)
                except SKIPPED as reason:
                    print(f"skipped: {reason}", flush=True)
                except Exception:
                    record.failed += 1
                    print(f"FAIL {name}: {traceback.format_exc(limit=-3)}", flush=True)
            record.flush()
            print(f"== {name}: done after {time.perf_counter() - began:.0f} s", flush=True)
    return int(record.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
