"""Jobs in several processes: their errors, and their end when the parent process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hystar_fast.experiments.jobs import run_jobs

ROOT = Path(__file__).resolve().parents[2]


def test_an_error_of_a_job_is_raised():
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(run_jobs(_inverse, [0, 0, 0], jobs))
    assert sorted(run_jobs(_inverse, [1, 2, 4], 2)) == [0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        list(run_jobs(_inverse, [1], 0))


def test_jobs_end_when_their_parent_is_killed(tmp_path):
    program = (
        "import sys\n"
        "from tests.support.jobs import sleep_after_writing_pid\n"
        "from hystar_fast.experiments.jobs import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs(sleep_after_writing_pid, [sys.argv[1] + '/a', sys.argv[1] + '/b'], 2))\n"
    )
    script = tmp_path / "main.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    marks = [tmp_path / "a", tmp_path / "b"]
    _wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks), 120)
    parent.kill()
    parent.wait()
    for mark in marks:
        _wait_until(lambda mark=mark: not _runs(mark.read_text()), 20)


def _runs(pid: str) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path("/proc", pid, "status").read_text()
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _inverse(number: int) -> float:
    return 1 / number
