"""Options of the benchmarks, the parity check before each of them, and the results file that the report reads.

``pytest bench/`` measures everything for this machine and writes ``bench/results/<machine>.json`` row by row.
``--quick`` runs everything at toy sizes, and writes nothing unless ``--results`` names a file.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import goals
import harness
import store
from parity import check_parity

RESULTS = pytest.StashKey[store.ResultsFile | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hystar_fast bench")
    group.addoption("--quick", action="store_true", help="toy sizes, to test the benchmarks themselves")
    group.addoption("--results", type=Path, default=None, help="where the rows are written (JSON)")
    group.addoption("--append", action="store_true", help="keep the rows of the file that are not measured again")
    group.addoption("--resume", action="store_true", help="as --append, and skip rows measured with these kernels")
    group.addoption("--tuned-malloc", action="store_true", help="let glibc keep freed memory, against page faults")
    group.addoption("--profile-ours", action="store_true", help="list the slowest kernels of our rows that have goals")


def pytest_configure(config: pytest.Config) -> None:
    names = ("--quick", "--tuned-malloc", "--results", "--append", "--resume")
    quick, tuned, path, append, resume = (config.getoption(name) for name in names)
    if quick:
        harness.SECONDS_A_PROVIDER, harness.MEMORY_ROUNDS = 0.01, 1
    if tuned:
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        if not (libc.mallopt(m_mmap_threshold, 1 << 30) and libc.mallopt(m_trim_threshold, -1)):
            raise pytest.UsageError("--tuned-malloc needs glibc")
    if path is None and not quick:
        path = store.default_path(tuned)
    config.stash[RESULTS] = None if path is None else store.ResultsFile(path, store.head(tuned), append or resume)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="module", autouse=True)
def parity_gate(request: pytest.FixtureRequest) -> None:
    """Measure nothing of an op that does not agree with its reference."""
    check_parity(request.module.__name__.rpartition(".")[2].removeprefix("bench_"))


@pytest.fixture
def add_row(request: pytest.FixtureRequest) -> Callable[[harness.Row], None]:
    """Return a function that adds a row to the results file, if there is one."""
    results = request.config.stash[RESULTS]
    return lambda row: None if results is None else results.add(row)


@pytest.fixture
def record(
    benchmark: Any, request: pytest.FixtureRequest, add_row: Callable[[harness.Row], None]
) -> Callable[..., None]:
    """Return ``record(op, case, provider, mode, dtype, run, truth, **extra)``, which measures one provider.

    It adds the row to the results file. A row of ours with an error above `harness.error_limit` fails and is not added.
    """
    config, results = request.config, request.config.stash[RESULTS]
    resume, profile = config.getoption("--resume"), config.getoption("--profile-ours")

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
        dtype_name = str(dtype).removeprefix("torch.")
        benchmark.group = f"{op} {case} {dtype_name} {mode}"
        benchmark.name = provider
        if resume and results is not None and results.is_fresh(op, case, provider, mode, dtype_name):
            pytest.skip("already measured with these kernels")
        numbers = harness.measure(benchmark, run, truth, capture=op != "model")  # with the host
        row = harness.Row(op, case, provider, mode, dtype_name, *numbers, extra)
        _check_error(row, dtype)
        extra |= harness.rates(row)
        has_goal = config.getoption("--quick") or goals.has_goal(harness.PLAN, op, case, dtype_name, mode)
        if profile and provider == harness.OURS and has_goal:
            extra["profile"] = harness.profile_kernels(run)
        add_row(row)

    return measured


@pytest.fixture
def record_in_turns(request: pytest.FixtureRequest, add_row: Callable[[harness.Row], None]) -> Callable[..., None]:
    """Return ``record(op, case, mode, dtype, runs, truths)``, which measures all providers of a case in turns."""
    results, resume = request.config.stash[RESULTS], request.config.getoption("--resume")

    def measured(
        op: str,
        case: str,
        mode: str,
        dtype: torch.dtype,
        runs: Mapping[str, harness.Run],
        truths: Mapping[str, harness.Outputs],
    ) -> None:
        dtype_name = str(dtype).removeprefix("torch.")
        if resume and results is not None and all(results.is_fresh(op, case, p, mode, dtype_name) for p in runs):
            pytest.skip("already measured with these kernels")
        for provider, numbers in harness.measure_in_turns(runs, truths).items():
            row = harness.Row(op, case, provider, mode, dtype_name, *numbers, {})
            _check_error(row, dtype)
            add_row(row)

    return measured


def _check_error(row: harness.Row, dtype: torch.dtype) -> None:
    limit = harness.error_limit(row.provider, dtype, row.case)
    if row.provider.startswith(harness.OURS) and row.error is not None and not row.error <= limit:
        error = f"an error of {row.error:.2e} (limit {limit:.0e})"
        pytest.fail(f"{row.op} {row.case} {row.provider} {row.mode} has {error}: the row is not added")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if results is not None and results.added:
        terminalreporter.write_line(f"{results.added} rows written to {results.path}")
