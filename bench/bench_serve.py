"""Measure the server: python bench/bench_serve.py [--json] [--check] [--page] [--quick]

Every row stands beside its goal. R is what decoding, reading and encoding in batches of 32 reach without a server, for
each CPU second; it is measured before and after each row in turn, so that other work on the machine meets both. The
server and the load are processes of their own. --check fails if a ratio misses its goal; --page writes
docs/benchmarks/serving.md with its picture. The model is Hystar with random offsets on the tiny backbone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serve_index
import serve_parts as parts

CLIENTS, QUEUE = 16, 32
LOADS = (1, 2, 4, 8, 16, 32, 64)
MIB = 2**20


@dataclass
class Row:
    """One figure beside its goal.

    Attributes:
        name: what it is.
        value: in `unit`.
        goal: the limit; None if there is none.
        at_least: whether the value must reach the goal or stay below it.
        is_ratio: whether --check fails on it: ratios of one run do not depend on the machine.
        note: how it came about.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True
    is_ratio: bool = True
    note: str = ""

    @property
    def is_reached(self) -> bool:
        return self.goal is None or (self.value >= self.goal if self.at_least else self.value <= self.goal)


@dataclass
class Report:
    """Rows, and the latency at each load."""

    rows: list[Row] = field(default_factory=list)
    latency: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        goal = "" if row.goal is None else f" for {'>=' if row.at_least else '<='} {row.goal:g}"
        missed = "" if row.is_reached else "  MISSED"
        print(f"{row.name}: {row.value:.3g} {row.unit}{goal}{missed}  {row.note}", file=sys.stderr, flush=True)


@contextmanager
def served(folder: Path, **options: float) -> Iterator[tuple[int, int]]:
    """Run a server over the index in a folder; give its port and process number."""
    command = [sys.executable, parts.__file__, str(folder), json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(20)


def load(
    server: tuple[int, int], bodies: list[str], *, seconds: float, clients: int = CLIENTS, rate: float = 0
) -> dict[str, Any]:
    """Load a server; return what serve_load.py measured."""
    port, pid = server
    plan = {"port": port, "pid": pid, "bodies": bodies, "seconds": seconds, "clients": clients, "rate": rate}
    command = [sys.executable, str(Path(__file__).with_name("serve_load.py"))]
    done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    found["answered"] = len(found["seconds"])
    return found


def quantile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(share * (len(seconds) - 1))]


def measure(folder: Path, seconds: float) -> Report:
    """Measure every row."""
    report, requests = Report(), parts.write_requests(folder)
    raw = parts.Raw(folder)
    pictures = requests["picture"]
    with served(folder) as server:
        steady(report, raw, server, pictures, seconds)
        mixed = [path for kind in ("picture", "text", "styled", "both") for path in requests[kind]]
        with raw.around() as rate:
            found = load(server, parts.interleaved(mixed), seconds=seconds)
        report.add(
            Row(
                "mixed load / R",
                per_cpu(found) / rate(),
                "",
                0.65,
                note="a quarter each: pictures, words, given styles, both",
            )
        )
        for clients in LOADS:
            found = load(server, pictures, seconds=seconds / 2, clients=clients)
            times = found["seconds"]
            report.latency[clients] = quantile(times, 0.5), quantile(times, 0.99), found["answered"] / found["wall"]
        growth(report, server, pictures, 300 if seconds < 3 else 10_000)
        picture = next((folder / "pictures").iterdir())
        for name, value, unit, limit in serve_index.rows(folder, picture, f"http://127.0.0.1:{server[0]}"):
            report.add(Row(name, value, unit, limit, at_least=False, is_ratio=False))
    overload(report, folder, pictures, seconds)
    encoders(report, folder, pictures, seconds)
    return report


def per_cpu(found: dict[str, Any]) -> float:
    return float(found["answered"] / found["cpu"])


def steady(report: Report, raw: parts.Raw, server: tuple[int, int], pictures: list[str], seconds: float) -> None:
    """Measure 16 clients, one client, and one-by-one serving in turn."""
    ratios, over_single, throughput, p99, at_once = [], [], [], [], []
    with served(raw.folder, batch=1) as single, served(raw.folder, max_wait=0.0) as hasty:
        for _ in range(3):
            with raw.around() as rate:
                found = load(server, pictures, seconds=seconds)
            alone = load(single, pictures, seconds=seconds)
            ratios.append(per_cpu(found) / rate())
            over_single.append(per_cpu(found) / per_cpu(alone))
            throughput.append(found["answered"] / found["wall"])
            p99.append(quantile(found["seconds"], 0.99) * throughput[-1] / CLIENTS)
            with raw.around() as rate:
                smaller = load(hasty, pictures, seconds=seconds)
            at_once.append(per_cpu(smaller) / rate())
        batch = statistics.mean(found["batches"])
    report.add(Row("R: decoding and encoding in batches of 32", raw.rate, "pictures / cpu-s"))
    report.add(Row(f"requests of {CLIENTS} clients", per_cpu(found), "/ cpu-s", note=f"mean batch {batch:.1f}"))
    report.add(Row(f"requests of {CLIENTS} clients / R", statistics.median(ratios), "", 0.80))
    note = f"mean batch {statistics.mean(smaller['batches']):.1f}"
    report.add(Row("the same with --max-wait-ms 0", statistics.median(at_once), "", note=note))
    report.add(Row("over one-by-one serving", statistics.median(over_single), "x", 1.8))
    report.add(
        Row(
            f"requests of {CLIENTS} clients, wall",
            statistics.median(throughput),
            "/ s",
            note="the machine has other work, too",
        )
    )
    of_raw = statistics.median(throughput) / raw.rate
    report.add(Row(f"requests of {CLIENTS} clients, wall / R", of_raw, "", 0.70, is_ratio=False, note="2 quiet cores"))
    report.add(
        Row(f"p99 of {CLIENTS} clients / ({CLIENTS} / throughput)", statistics.median(p99), "x", 2.0, at_least=False)
    )
    first = []
    for _ in range(3):
        with raw.around_one() as one:
            found = load(server, pictures, seconds=seconds / 2, clients=1)
        first.append(quantile(found["seconds"], 0.5) / one())
    report.add(Row("p50 of 1 client / decoding and encoding one", statistics.median(first), "x", 1.5, at_least=False))


def growth(report: Report, server: tuple[int, int], pictures: list[str], wanted: int) -> None:
    """Measure how much memory 10,000 requests leave."""
    start, done = load(server, pictures, seconds=1)["memory"], 0
    while done < wanted:
        found = load(server, pictures, seconds=5)
        done += found["answered"]
    row = Row("resident memory after 10,000 requests", (found["memory"] - start) / MIB, "MiB more", 50, at_least=False)
    row.note = f"{done} requests"
    report.add(row)


def overload(report: Report, folder: Path, pictures: list[str], seconds: float) -> None:
    """Measure four times the load that can be answered."""
    with served(folder, queue=QUEUE) as server:
        full = load(server, pictures, seconds=seconds, clients=QUEUE)
        capacity = full["answered"] / full["wall"]
        before = full["memory"]
        over = load(server, pictures, seconds=2.5 * seconds, clients=256, rate=4 * capacity)
    codes = over["codes"]
    others = sum(n for code, n in codes.items() if code not in ("200", "429"))
    note = f"{codes.get('200', 0)} answered, {codes.get('429', 0)} refused, --queue {QUEUE}"
    report.add(Row("overload: answers other than 200 and 429", others, "", 0, at_least=False, note=note))
    ratio = quantile(over["seconds"], 0.99) / quantile(full["seconds"], 0.99)
    report.add(Row("overload: p99 of the answered / at capacity", ratio, "x", 2.0, at_least=False))
    report.add(Row("overload: memory", (over["memory"] - before) / MIB, "MiB more", 50, at_least=False))


def encoders(report: Report, folder: Path, pictures: list[str], seconds: float) -> None:
    """Compare encoders with threads of torch."""
    for workers, threads in ((1, 1), (1, 2), (2, 1)):
        with served(folder, workers=workers, threads=threads) as server:
            found = load(server, pictures, seconds=seconds)
        note = f"{found['answered'] / found['wall']:.0f} / s"
        report.add(Row(f"encoders x threads of torch: {workers} x {threads}", per_cpu(found), "/ cpu-s", note=note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("json", "check", "page", "quick"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        parts.make_index(Path(folder))
        report = measure(Path(folder), 1.0 if options.quick else 8.0)
    if options.json:
        print(json.dumps({"rows": [vars(row) for row in report.rows], "latency": report.latency}, indent=1))
    if options.page:
        import serve_page

        serve_page.write(report.rows, report.latency, time.time() - start)
    missed = [row.name for row in report.rows if row.is_ratio and not row.is_reached]
    if options.check and missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
