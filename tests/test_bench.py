"""The benchmarks themselves, at toy sizes: the parity gate holds, every provider runs, the report is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import goals  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402

pytestmark = pytest.mark.xdist_group("bench")  # one run of the benchmarks serves all tests here


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the GPU script leaves when it runs, at toy sizes, where there is no GPU."""
    out = tmp_path_factory.mktemp("rehearsal")
    # pytest-benchmark measures nothing under xdist, and the child is not under it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHON": sys.executable, "SECONDS_IN_ALL": "1000"}
    command = ["bash", "bench/gpu_session.sh", "--rehearse", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def results(rehearsal: Path) -> Path:
    return rehearsal / "rehearsal.json"


def test_the_gpu_script_leaves_results_tables_and_pictures(rehearsal: Path) -> None:
    for name in ("rehearsal.png", "rehearsal-roofline.png"):
        assert (rehearsal / name).stat().st_size > 10_000
    report = (rehearsal / "report.md").read_text()
    assert "| goal | case | wanted | measured |" in report and "| open |" in report
    log = (rehearsal / "session.log").read_text()
    assert log.count("exit 0") == 9 and "exit 1" not in log


def test_the_gpu_script_keeps_to_its_time(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "SECONDS_IN_ALL": "1"}
    command = ["bash", "bench/gpu_session.sh", "--rehearse", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "left out, the time is up" in done.stdout and "exit" not in done.stdout


def test_every_row_is_whole_and_right(results: Path) -> None:
    found = json.loads(results.read_text())
    assert {row["op"] for row in found["rows"]} == {"ceiling", "svd_linear", "sinkhorn", "style_nce", "model"}
    assert found["machine"]["cpu"] and found["versions"]["torch"]
    for row in found["rows"]:
        assert row["commit"] and row["date"]
        assert row["median_ms"] > 0 and row["rounds"] >= 3
        limit = 3e-2 if row["dtype"] == "bfloat16" else 1e-3
        assert row["error"] is None or row["error"] < limit, row


def test_report_fills_the_readme(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:cpu -->\nold\n<!-- /bench -->\nafter\n")
    found = json.loads(results.read_text())
    report.insert(readme, "cpu", report.summary(found, "cpu"))
    text = readme.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "docs/benchmarks/cpu.md" in text and "goals" in text
    page = report.page(found, "cpu")
    assert "authors' path" in page and "POT" in page and page.count("| svd_linear |") == 8


def test_the_readme_shows_the_cases_that_have_goals() -> None:
    path = next((ROOT / "bench" / "results").glob("*threads.json"))
    found = json.loads(path.read_text())
    text = report.summary(found, path.stem)
    assert "1024->3072" in text and "1024->1024" not in text and "| model |" not in text
    rows = [{**row, "median_ms": 1.0} for row in found["rows"]]
    every = len(list(report.goals.read("cpu")))
    assert f"Of {every} goals" in report.goals.count("cpu", rows)
    assert report.goals.count("cpu", []).startswith(f"Of {every} goals 0 are reached, {every} are open.")


def test_changed_kernels_make_a_row_stale(results: Path) -> None:
    found = json.loads(results.read_text())
    for row in found["rows"]:
        row["dirty"] = False
        if row["op"] == "sinkhorn":
            row["commit"] = "0" * 40
    lines = report.table(found).splitlines()
    assert all("(stale)" in line for line in lines if line.startswith("| sinkhorn"))
    fresh = [{**row, "commit": report.store.git("rev-parse", "HEAD")} for row in found["rows"]]
    assert "(stale)" not in report.table({**found, "rows": fresh})


def row(provider: str, ms: float, **extra: float) -> dict[str, Any]:
    keys = {"op": "svd_linear", "case": "B1 T1 8->8 r8", "mode": "forward", "dtype": "float32"}
    return {**keys, "provider": provider, "median_ms": ms, "peak_mib": 1.0, "extra": extra}


@pytest.mark.parametrize(
    ("over", "under", "least", "value", "met"),
    [
        ("a", "b", True, 4.0, True),
        ("b", "a", True, 0.25, False),
        ("a", None, False, 2.0, True),
        ("a", "c", True, None, None),
    ],
)
def test_a_goal_is_met_missed_or_open(
    over: str, under: str | None, least: bool, value: float | None, met: bool | None
) -> None:
    goal = goals.Goal("", "svd_linear", "B1", "float32", "forward", over, under, "median_ms", least, 3.0)
    measured = goal.measured([row("a", 2.0), row("b", 0.5)])
    assert measured == value
    assert met is None or (measured is not None and goal.met(measured) == met)


def test_every_goal_names_an_op_that_is_benchmarked() -> None:
    for device in ("cpu", "cuda"):
        wanted = list(goals.read(device))
        assert len(wanted) > 5
        assert {goal.op for goal in wanted} <= set(report.store.STEMS)


def test_the_share_of_the_ceiling_is_that_of_what_binds() -> None:
    needs = row("a", 2.0, gflop=4.0, gib=1e9 / 2**30)  # 1 ms of arithmetic, 0.5 ms of traffic
    assert report.attained(needs, bandwidth=2000.0, rates={"float32": 4000.0}) == pytest.approx(0.5)
    assert report.attained(needs, bandwidth=500.0, rates={"float32": 4000.0}) == pytest.approx(1.0)
    assert report.attained(needs, bandwidth=500.0, rates={}) is None
    assert report.attained(row("a", 2.0), bandwidth=500.0, rates={"float32": 1.0}) is None


def test_appending_keeps_what_is_not_measured_again(tmp_path: Path) -> None:
    head = {"device": "cpu", "versions": {"torch": "2"}}
    path = tmp_path / "r.json"

    def measured(provider: str, ms: float) -> harness.Row:
        return harness.Row("svd_linear", "case", provider, "forward", "float32", ms, 0.0, 3, 0.0, None)

    for provider, ms, append in (("a", 1.0, False), ("b", 2.0, True), ("a", 3.0, True)):
        report.store.ResultsFile(path, head, append).add(measured(provider, ms))
    assert [(r["provider"], r["median_ms"]) for r in json.loads(path.read_text())["rows"]] == [("b", 2.0), ("a", 3.0)]
    other = {**head, "versions": {"torch": "3"}}
    report.store.ResultsFile(path, other, True).add(measured("c", 1.0))
    assert [r["provider"] for r in json.loads(path.read_text())["rows"]] == ["c"]


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="has no <!-- bench:cpu -->"):
        report.insert(readme, "cpu", "x")
