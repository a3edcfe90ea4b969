"""Compile what a GPU session launches: PYTHONPATH=. python bench/warm.py [--processes 12] [--most 1].

The session's first steps need one core. Meanwhile this fills Triton's cache, in as many processes as there are cores,
so that first_minute.py and measure.py only load what they launch. It needs no GPU: the launches are recorded on CPU
tensors and compiled for an H200.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
import first_minute
import gpu_coverage
import kernel_variants as kernels
import torch
import triton
import tune

from tests.support.svd_linear_compiled import Launch, StubDriver, recorded

H200 = gpu_coverage.H200


def empty_layer(batch: int, tokens: int, inner: int, outer: int, rank: int, **options: Any) -> kernels.Layer:
    """Return a layer as kernels.make_layer does, without drawing numbers."""
    dtype, kind = options["dtype"], options.get("kind", "sample")
    x, dy, u, vh = (
        torch.empty(shape, dtype=dtype)
        for shape in ((batch * tokens, inner), (batch * tokens, outer), (outer, rank), (rank, inner))
    )
    scale = torch.empty(*{"shared": (), "sample": (batch,), "bank": (5,)}[kind], rank)
    return kernels.Layer(x, dy, u, vh, scale, torch.zeros(batch, dtype=torch.long) if kind == "bank" else None, tokens)


def comparisons() -> None:
    """Launch what first_minute.py compares."""
    for kind, dtype, rank in first_minute.layers():
        first_minute.check_persistent(kind, dtype, rank)
    for keep_h in (False, True):
        first_minute.check_persistent_fp8(keep_h)
    for kind, dtype in first_minute.SPECIALISED_LAYERS:
        first_minute.check_specialised(kind, dtype)


def tuning_launches() -> None:
    """Launch every configuration of tune.py."""
    tokens, *sizes = tune.LAYER
    for batch in tune.BATCHES:
        layer = empty_layer(batch, tokens, *sizes, dtype=torch.bfloat16)
        for name, itemsize, _, run in tune.products(layer, H200):
            more = tune.specialised() if (name, batch) == ("backward", tune.BATCHES[0]) else ()
            for configuration in (*more, *tune.configurations(batch, itemsize, toy=False)):
                run(configuration)


def launches() -> Iterator[Launch]:
    """Yield the launches of a session, the first needed first."""
    exact = mock.MagicMock()  # results in float64, and g @ u of the comparison in fp8
    with ExitStack() as stack:
        for patch in (
            mock.patch.multiple(
                first_minute, REPEATS=1, hold=lambda *_: "", equal=lambda *_: None, poisoned=nullcontext
            ),
            mock.patch.multiple(kernels, make_layer=empty_layer, gpu_here=lambda: H200),
            mock.patch.multiple(kernels, exact_forward=lambda *_: [exact, exact], exact_backward=lambda *_: []),
        ):
            stack.enter_context(patch)
        with recorded() as found:
            comparisons()
        yield from found
        for check in first_minute.op_checks():
            for part in gpu_coverage.record(check.case, check.needs, fp8=check.fp8):
                yield from part
        with recorded() as found:
            tuning_launches()
        yield from found


def specialisation(launch: Launch) -> tuple[object, ...]:
    """Return what decides the machine code of a launch: Triton looks at divisibility by 16 and at ones."""
    numbers = []
    for value in launch.arguments.values():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                numbers.append((number % 16 == 0, number == 1))
    return launch.function.fn.__module__, gpu_coverage.variant(launch), *numbers


def compile_share(share: tuple[int, int, int]) -> int:
    """Compile every `of`-th launch, at most `most`; return how many failed. A tile that does not fit is no failure."""
    first, of, most = share
    triton.runtime.driver.set_active(StubDriver(90))
    failed = 0
    for launch in LAUNCHES[first::of][:most]:
        try:
            launch.function.warmup(**launch.arguments, grid=(1,))
        except Exception as error:
            failed += 1
            print(f"{launch.kernel} does not compile: {str(error).splitlines()[0][:200]}", flush=True)
    return failed


LAUNCHES: list[Launch] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--most", type=int, default=1 << 30, help="launches of each process, to test this script")
    arguments = parser.parse_args()
    started = time.perf_counter()
    LAUNCHES.extend({specialisation(launch): launch for launch in launches()}.values())
    recorded_after = time.perf_counter() - started
    shares = [(i, arguments.processes, arguments.most) for i in range(arguments.processes)]
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        failed = sum(pool.map(compile_share, shares))
    seconds = time.perf_counter() - started
    print(
        f"{len(LAUNCHES)} launches recorded in {recorded_after:.1f} s, compiled after {seconds:.1f} s, {failed} failed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
