"""Shared fixtures of the tests of what the compilers make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def report_with(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Callable[..., dict[str, Any]]:
    """Give a function that runs a module with a Triton, "installed" or "3.6", and returns what it reports."""

    def report(version: str, module: str, *arguments: str) -> dict[str, Any]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if module != "tests.support.svd_linear_specialised":  # it finds lines of a kernel by the names of values
            # line tables change no instruction, and take a tenth of the time
            environment["TRITON_DISABLE_LINE_INFO"] = "1"
        if version == "3.6":
            folders = [str(request.getfixturevalue("triton36")), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        assert version == "installed" or found["triton"].startswith(version)
        return found

    return report
