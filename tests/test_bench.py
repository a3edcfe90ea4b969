"""The benchmarks themselves, at toy sizes: the parity gate holds, every provider runs, the report is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import report  # noqa: E402

pytestmark = pytest.mark.xdist_group("bench")  # one run of the benchmarks serves all tests here


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "cpu.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "--quick",
        "-q",
        "-p",
        "no:cacheprovider",
        "--results",
        str(path),
    ]
    # pytest-benchmark measures nothing under xdist, and the child is not under it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command += ["-k", "not compile"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return path


def test_every_row_is_whole_and_right(results: Path) -> None:
    found = json.loads(results.read_text())
    assert {row["op"] for row in found["rows"]} == {"svd_linear", "sinkhorn", "style_nce"}
    assert found["commit"] and found["machine"]["cpu"] and found["versions"]["torch"]
    for row in found["rows"]:
        assert row["median_ms"] > 0 and row["rounds"] >= 3
        limit = 3e-2 if row["dtype"] == "bfloat16" else 1e-3
        assert row["error"] is None or row["error"] < limit, row


def test_report_fills_the_readme_and_draws(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:cpu -->\nold\n<!-- /bench -->\nafter\n")
    found = json.loads(results.read_text())
    report.insert(readme, "cpu", report.table(found))
    text = readme.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "authors' path" in text and "POT" in text and text.count("| svd_linear |") == 8
    report.picture(found, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").stat().st_size > 10_000


def test_changed_kernels_make_a_measurement_stale(results: Path) -> None:
    found = json.loads(results.read_text())
    assert "Stale" in report.table({**found, "commit": "0" * 40})


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="has no <!-- bench:cpu -->"):
        report.insert(readme, "cpu", "x")
