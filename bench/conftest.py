"""The parity gate before the first number, the options, and the results file that the report reads.

``pytest bench/`` measures everything for this machine and writes ``bench/results/<machine>.json``; ``--quick`` runs
every line of it at toy sizes and writes nothing unless ``--results`` names a file.
"""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import harness
from parity import check_parity

ROWS: list[harness.Row] = []
KERNELS = ("kernels", "csrc", "hystar_fast/ops", "hystar_fast/ref")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hystar_fast bench")
    group.addoption("--quick", action="store_true", help="toy sizes, to test the benchmarks themselves")
    group.addoption("--results", type=Path, default=None, help="where the rows are written (JSON)")
    group.addoption("--tuned-malloc", action="store_true", help="glibc keeps freed memory: no page faults each call")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        harness.SECONDS_A_PROVIDER = 0.01
    if config.getoption("--tuned-malloc"):
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        if not (libc.mallopt(m_mmap_threshold, 1 << 30) and libc.mallopt(m_trim_threshold, -1)):
            raise pytest.UsageError("--tuned-malloc needs glibc")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session", autouse=True)
def parity_gate() -> None:
    """No speed is measured on an op that is not right."""
    check_parity(harness.DEVICE)


@pytest.fixture
def record(benchmark: Any) -> Callable[..., None]:
    """``record(op, case, provider, mode, dtype, run, truth, **extra)``: measure one provider and keep its row."""

    def measured(
        op: str,
        case: str,
        provider: str,
        mode: str,
        dtype: torch.dtype,
        run: harness.Run,
        truth: harness.Outputs | None,
        **extra: Any,
    ) -> None:
        benchmark.group = f"{op} {case} {str(dtype).removeprefix('torch.')} {mode}"
        benchmark.name = provider
        median, spread, rounds, memory, error = harness.measure(benchmark, run, truth)
        dtype_name = str(dtype).removeprefix("torch.")
        ROWS.append(harness.Row(op, case, provider, mode, dtype_name, median, spread, rounds, memory, error, extra))

    return measured


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    described: dict[str, Any] = {"cpu": cpu, "threads": torch.get_num_threads(), "platform": platform.platform()}
    if harness.DEVICE == "cuda":
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return described


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--results")
    if not ROWS or (path is None and session.config.getoption("--quick")):
        return
    where = machine()
    if path is None:
        tuned = "-tuned-malloc" if session.config.getoption("--tuned-malloc") else ""
        name = where.get("gpu") or f"{where['cpu']} {where['threads']} threads"
        slug = "-".join("".join(c if c.isalnum() else " " for c in name).lower().split())
        path = Path(__file__).parent / "results" / f"{slug}{tuned}.json"
    packages = ("torch", "triton", "numpy", "POT", "geomloss")
    head = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _git("log", "-1", "--format=%H", "--", *KERNELS),
        "dirty": bool(_git("status", "--porcelain", "--", *KERNELS)),
        "device": harness.DEVICE,
        "machine": where,
        "tuned_malloc": bool(session.config.getoption("--tuned-malloc")),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**head, "rows": [asdict(row) for row in ROWS]}, indent=1) + "\n")
    temporary.replace(path)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"{len(ROWS)} rows written to {path}")
