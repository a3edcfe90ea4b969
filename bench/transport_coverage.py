"""The kernels of Sinkhorn and StyleNCE that the dispatch chooses on an H200, and what runs each on a GPU.

A variant is a kernel with its template argument and the blocks of its cluster. Launches are recorded from the launch
code itself on a stub of the runtime (tests/support/cuda_launches.py), so this needs no GPU. Every variant that any
problem takes must have a case of bench/gpu_runner, and each that a square problem takes, as those of StyleNCE are, a
row of bench_sinkhorn.py or bench_style_nce.py. gpu_coverage.py writes the page; a test fails for a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import bench_sinkhorn
import bench_style_nce

from tests.support.cuda_launches import launches

BATCHES = (1, 64, 4096)
SQUARES = (*range(1, 1101), *range(1100, 11586, 99))  # up to the largest batch of StyleNCE that is not streamed
SIDES = (1, 5, 16, 17, 40, 48, 64, 90, 100, 128, 130, 192, 200, 256, 260, 300, 500, 512, 520, 640, 700, 768, 800, 1000)
SIDES = (*SIDES, 1024, 1025, 1040, 2048, 2100, 2101, 8192, 8196, 9001)
Call = tuple[str, tuple[int, ...]]


def solved(batch: int, n: int, m: int) -> Iterator[Call]:
    """Yield the calls of a Sinkhorn with both gradients."""
    yield "forward", (batch, n, m, 1)
    if launches().has_gradient(n, m):
        yield "unrolled", (batch, n, m, 1)
        yield "implicit", (batch, n, m)


def squares() -> Iterator[Call]:
    """Yield square problems, and StyleNCE."""
    yield "style_nce", (48, bench_style_nce.DIMENSION)
    for batch, n in product(BATCHES, SQUARES):
        yield from solved(batch, n, n)


def rectangles() -> Iterator[Call]:
    for batch, n, m in product(BATCHES, SIDES, SIDES):
        yield from solved(batch, n, m)


def checks() -> Iterator[tuple[str, Call]]:
    """Yield the cases of bench/gpu_runner by their names in its report."""
    groups = {"forward": "", "unrolled": "unrolled, ", "implicit": "implicit, ", "style_nce": "style_nce, "}
    for case in launches().runner_cases():
        numbers = case.numbers[:3] if case.op == "implicit" else case.numbers
        yield groups[case.op] + case.name, (case.op, numbers)


def rows() -> Iterator[tuple[str, Call]]:
    """Yield the rows of the benchmarks on CUDA by their names."""
    for batch, n in (*bench_sinkhorn.SIZES["cuda"], *bench_sinkhorn.OTHER_KERNELS):
        yield f"sinkhorn {batch} of {n}x{n}, forward", ("forward", (batch, n, n, 1))
    for batch, n in bench_sinkhorn.BACKWARD_SIZES["cuda"]:
        for op, suffix in (("unrolled", ""), ("implicit", ", implicit")):
            numbers = (batch, n, n, 1) if op == "unrolled" else (batch, n, n)
            yield f"sinkhorn {batch} of {n}x{n}{suffix}, forward+backward", (op, numbers)
    for n in bench_style_nce.CUDA_SIZES:
        if n <= max(SQUARES):
            yield (
                f"style_nce N{n} D{bench_style_nce.DIMENSION}, forward+backward",
                ("style_nce", (n, bench_style_nce.DIMENSION)),
            )


def first_run(runs: Iterable[tuple[str, Call]]) -> dict[str, str]:
    """Return the name of the first run of each variant on an H200."""
    launches().use("H200")
    found: dict[str, str] = {}
    for name, call in runs:
        for launch in launches().run(*call):
            found.setdefault(launch.variant, name)
    return found


def table() -> list[tuple[str, str, str]]:
    """Return each variant with its first case of the runner and its first row; empty where there is none."""
    checked, measured = first_run(checks()), first_run(rows())
    wanted = first_run([("", call) for call in squares()] + [("(no square problem)", call) for call in rectangles()])
    return [(one, checked.get(one, ""), measured.get(one, wanted[one])) for one in wanted]


def section() -> str:
    """Return the part of the page."""
    lines = [
        "## Sinkhorn and StyleNCE",
        "",
        "Every kernel that the launch code takes on an H200, with the blocks of its cluster, for squares up to the",
        "largest batch of StyleNCE that is not streamed, and for rectangles. The first case of `bench/gpu_runner` and",
        "the first row of `bench/bench_sinkhorn.py` or `bench/bench_style_nce.py` that run it. A kernel that only",
        "rectangles take needs no row: StyleNCE has none, and no goal does.",
        "",
        "| kernel | check | row |",
        "|---|---|---|",
        *(f"| {kernel} | {check or '**none**'} | {row or '**none**'} |" for kernel, check, row in table()),
    ]
    return "\n".join(lines) + "\n"


def holes() -> list[str]:
    """Return the variants without a case of the runner, or without a row."""
    found = [(one, {"check": check, "row": row}) for one, check, row in table()]
    return [f"no {what}: {one}" for one, runs in found for what, run in runs.items() if not run]
