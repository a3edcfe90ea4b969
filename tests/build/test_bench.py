"""Tests of the benchmarks at toy sizes: parity, every provider, goals, the results file and the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import goals  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402

pytestmark = pytest.mark.xdist_group("bench")  # all tests here share one run of the benchmarks


def stand_ins(folder: Path) -> Path:
    """Make programs for those that need a GPU: a runner (test_gpu_runner.py has the real one) and two tools."""
    programs = {
        "runner": 'echo "RIGHT sinkhorn tile: 14 of 14 cases"',
        "compute-sanitizer": 'shift 4; exec "$@"',  # --tool NAME --error-exitcode 9
        "ncu": 'while [ "$1" != -c ]; do shift; done; shift 2; exec "$@"',
    }
    folder.mkdir(parents=True)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the GPU script at toy sizes without a GPU, and return its output folder."""
    out = tmp_path_factory.mktemp("rehearsal")
    # pytest-benchmark measures nothing under xdist, so the child must not see that it is under pytest
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHON": sys.executable, "SECONDS_IN_ALL": "1150", "CARRIED": str(stand_ins(out / "carried"))}
    environment["PATH"] = f"{environment['CARRIED']}{os.pathsep}{environment['PATH']}"
    command = ["bash", "bench/gpu_session.sh", "--rehearse", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def results(rehearsal: Path) -> Path:
    return rehearsal / "rehearsal.json"


def test_the_gpu_script_writes_results_tables_and_pictures(rehearsal: Path) -> None:
    for name in ("rehearsal.png", "rehearsal-roofline.png"):
        assert (rehearsal / name).stat().st_size > 10_000
    report = (rehearsal / "report.md").read_text()
    assert "| goal | case | wanted | measured |" in report and "| open |" in report
    log = (rehearsal / "session.log").read_text()
    ended = {name: int(code) for name, code in re.findall(r"^== (.+): exit (\d+) after \d+ s$", log, re.MULTILINE)}
    assert {name: code for name, code in ended.items() if code} == {}
    first_words = {" ".join(name.split()[:2]) for name in ended}
    rows = [path for path in (ROOT / "bench").glob("bench_*.py") if "def bench_" in path.read_text()]
    stems = {path.stem.removeprefix("bench_") for path in rows}
    assert len(stems) >= 5  # bench_serve.py is a command of its own
    steps = {"warm", "runner", "memcheck", "racecheck", "first minute", "info", "measure", "ncu sinkhorn"}
    steps |= {"collect tests", "sanitizer cases", "table 5", "report"}
    assert first_words >= steps
    assert {stem for name in ended if name.startswith("bench ") for stem in name.split()[1:]} >= stems
    verdicts = (rehearsal / "table.txt").read_text().splitlines()
    assert [line.split(":")[0].removeprefix("RIGHT ") for line in verdicts] == [
        "sinkhorn tile",
        "memcheck",
        "racecheck",
        "persistent",
        "fp8",
        "svd_linear",
        "CUDA graphs",
        "sinkhorn and style_nce in torch",
    ]
    assert re.search(r"^== stage A: \d+ s$", log, re.MULTILINE) and re.search(r"^== stage B: \d+ s$", log, re.MULTILINE)


def test_measured_tiles_are_a_table_that_can_be_kept(rehearsal: Path) -> None:
    tiles = json.loads((rehearsal / "rehearsal-tiles.json").read_text())
    assert set(tiles) == {
        f"{name}, B3" for name in ("forward", "backward", "fp8, first product", "fp8, second product")
    }
    for entry in tiles.values():
        assert {"rows", "rank", "shipped", "timings", "best", "tile", "flattened", "gain"} <= set(entry)
        assert entry["gain"] >= 1 and entry["problems"] == {}
        assert entry["best"] in {timing["what"] for timing in entry["timings"]}
    assert {timing["what"] for timing in tiles["forward, B3"]["timings"]} >= {"torch.mm, without the rest"}


def test_the_gpu_script_skips_steps_when_no_time_is_left(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "SECONDS_IN_ALL": "1"}
    command = ["bash", "bench/gpu_session.sh", "--rehearse", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "skipped, no time left" in done.stdout and "exit" not in done.stdout


def test_without_a_gpu_the_script_says_so_and_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", "bench/gpu_session.sh", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no CUDA device" in done.stdout and "device: exit 1" in done.stdout


def test_every_row_is_complete_and_our_rows_are_accurate(results: Path) -> None:
    found = json.loads(results.read_text())
    assert {row["op"] for row in found["rows"]} == {
        "ceiling",
        "svd_linear",
        "sinkhorn",
        "style_nce",
        "perturbed_topk",
        "model",
        "experts",
    }
    assert any("embed photos" in row["case"] for row in found["rows"])
    assert found["machine"]["cpu"] and found["versions"]["torch"]
    for row in found["rows"]:
        assert row["commit"] and row["date"]
        assert row["median_ms"] > 0 and row["rounds"] >= (1 if row["case"].startswith("first call") else 3)
        if "embed photos" in row["case"]:
            assert 0 < row["extra"]["busy"] <= 1 and row["extra"]["images_per_s"] > 0
        if row["error"] is not None and row["provider"].startswith(harness.OURS):
            assert row["error"] <= harness.error_limit(row["provider"], getattr(torch, row["dtype"]), row["case"]), row


def test_the_report_replaces_the_text_between_the_markers_of_the_readme(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:cpu -->\nold\n<!-- /bench -->\nafter\n")
    found = json.loads(results.read_text())
    report.insert(readme, "cpu", report.summary(found, "cpu"))
    text = readme.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "docs/benchmarks/cpu.md" in text and "goals" in text
    page = report.page(found, "cpu")
    ours = [row for row in found["rows"] if (row["op"], row["provider"]) == ("svd_linear", harness.OURS)]
    assert "authors' path" in page and "POT" in page and page.count("| svd_linear |") == len(ours) > 30


def test_the_readme_shows_the_cases_that_have_goals() -> None:
    path = ROOT / "bench" / "results" / "intel-r-xeon-r-processor-2-threads.json"
    found = json.loads(path.read_text())
    text = report.summary(found, path.stem)
    assert "1024->3072" in text and "1024->1024" not in text and "tiny B48" not in text
    rows = [{**row, "median_ms": 1.0} for row in found["rows"]]
    every = len(list(report.goals.read("cpu")))
    assert f"Of {every} goals" in report.goals.summarise("cpu", rows)
    assert report.goals.summarise("cpu", []).startswith(f"Of {every} goals 0 are reached, {every} are open.")


def test_a_row_is_stale_once_its_kernels_have_changed(results: Path) -> None:
    found = json.loads(results.read_text())
    for row in found["rows"]:
        row["dirty"] = False
        if row["op"] == "sinkhorn":
            row["commit"] = "0" * 40
    lines = report.table(found).splitlines()
    assert all("(stale)" in line for line in lines if line.startswith("| sinkhorn"))
    fresh = [{**row, "commit": report.store.git("rev-parse", "HEAD")} for row in found["rows"]]
    assert "(stale)" not in report.table({**found, "rows": fresh})


CASE = "B1 T1 8->8 r8"


def row(provider: str, ms: float, **extra: float) -> dict[str, Any]:
    keys = {"op": "svd_linear", "case": CASE, "mode": "forward", "dtype": "float32"}
    return {**keys, "provider": provider, "median_ms": ms, "peak_mib": 1.0, "extra": extra}


@pytest.mark.parametrize(
    ("over", "under", "is_minimum", "value", "is_met"),
    [
        ("a", "b", True, 4.0, True),
        ("b", "a", True, 0.25, False),
        ("a", None, False, 2.0, True),
        ("a", "c", True, None, None),
    ],
)
def test_a_goal_is_met_missed_or_open(
    over: str, under: str | None, is_minimum: bool, value: float | None, is_met: bool | None
) -> None:
    goal = goals.Goal("", "svd_linear", CASE, "float32", "forward", over, under, "median_ms", is_minimum, 3.0)
    others = [{**row(name, 99.0), "case": f"{CASE} {kind}"} for name in "ab" for kind in ("bank", "shared")]
    measured = goal.measured([row("a", 2.0), row("b", 0.5), *others])
    assert measured == value
    assert is_met is None or (measured is not None and goal.is_met(measured) == is_met)


def test_the_page_of_open_goals_has_a_row_for_every_goal_of_a_gpu() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| ([≥≤]) (\S+) \| open \|$", report.OPEN_GOALS.read_text(), re.MULTILINE)
    entries = tomllib.loads((ROOT / "bench" / "goals.toml").read_text())["cuda"]
    wanted = []
    for entry in entries:
        _, case, dtype, mode = entry["rows"]
        sign, limit = ("≥", entry["at_least"]) if "at_least" in entry else ("≤", entry["at_most"])
        for one in entry.get("each", [case]):
            wanted.append((entry["what"], f"{one}, {dtype}, {mode}", sign, float(limit)))
    found = [(title, case, sign, float(limit)) for title, case, sign, limit in rows]
    assert found == wanted, "run python bench/report.py --goals"


def test_rounds_of_calls_in_turns_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MEMORY_ROUNDS", 1)
    called: list[str] = []

    def run(name: str, value: float) -> list[torch.Tensor]:
        called.append(name)
        return [torch.full((3,), value)]

    runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0)}
    found = harness.measure_in_turns(runs, {"b": [torch.full((3,), 2.5)]}, rounds=4)
    assert called == ["a", "a", "b", "b", *["a", "b"] * 4]  # a warm-up and a call for the memory, then in turns
    assert [numbers[2] for numbers in found.values()] == [4, 4]
    assert found["a"][4] is None and found["b"][4] == pytest.approx(0.2)


def test_every_goal_names_an_op_that_is_benchmarked() -> None:
    for device in ("cpu", "cuda"):
        wanted = list(goals.read(device))
        assert len(wanted) > 5
        assert {goal.op for goal in wanted} <= set(report.store.STEMS)


PLANNED = """
import sys; sys.path.insert(0, "bench")
import bench_experts, bench_model, bench_perturbed_topk, bench_sinkhorn, bench_style_nce, json
name = lambda batch, n: f"{batch} of {n}x{n}"
rows = [("sinkhorn", name(b, n), "forward", provider) for b, n, provider in bench_sinkhorn.MEASURED]
rows += [
    ("sinkhorn", name(b, n) + ("" if grad == "unroll" else ", implicit"), "forward+backward", provider)
    for b, n, grad, provider in bench_sinkhorn.GRADIENTS
]
size = f"D{bench_style_nce.DIMENSION}"
rows += [("style_nce", f"N{n} {size}", "forward+backward", provider) for n, _, provider in bench_style_nce.CASES]
rows += [
    ("perturbed_topk", f"B{b} S{bench_perturbed_topk.SAMPLES} N{n} K{k}", "forward+backward", provider)
    for b, n, k, provider in bench_perturbed_topk.CASES
]
rows += [
    ("model", f"{bench_model.backbone_name(False)} B{b}", "forward", provider)
    for b in bench_model.BATCHES for provider in bench_model.PROVIDERS
]
rows += [
    ("experts", bench_experts.case_of(experts, mode), "forward", provider)
    for experts in bench_experts.EXPERTS for mode in bench_experts.MODES for provider in bench_experts.PROVIDERS
]
rows.append(("model", f"{bench_model.backbone_name(False)}, embed photos of 12 megapixels", "forward", "hystar_fast"))
rows += [
    ("model", bench_model.acnet_case(False), "forward+backward", provider)
    for provider in (bench_model.OURS, bench_model.SEPARATE)
]
import host_cases
rows += [(op, case, mode, provider) for op, case, mode, provider, _ in host_cases.cases()]
print(json.dumps(rows))
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_case_is_measured_for_every_goal_of_the_other_ops(device: str) -> None:
    command, environment = [sys.executable, "-c", PLANNED], {**os.environ, "BENCH_PLAN": device}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    planned = {tuple(entry) for entry in json.loads(done.stdout)}
    hosts = [goal for goal in goals.read(device) if goal.case.startswith("host time")]
    wanted = [goal for goal in goals.read(device) if goal.op != "svd_linear" and "training step" not in goal.case]
    wanted += hosts
    assert len(wanted) > 3
    for goal in wanted:
        for provider in {goal.over, goal.under} - {None}:
            assert (goal.op, goal.case, goal.mode, provider) in planned, (goal, provider)


def test_the_issued_share_is_the_time_of_the_counted_instructions_over_the_time_taken() -> None:
    ceiling = {**row("torch", 1.0, gflop=4.0), "op": "ceiling", "case": "matmul 8"}
    found = report.with_shares({"rows": [ceiling, row("a", 2.0, issued_gflop=4.0), row("b", 2.0)]})
    assert [entry["issued"] for entry in found[1:]] == [pytest.approx(0.5), None]


def test_an_inaccurate_row_of_ours_is_not_added_and_existing_rows_are_not_measured_again(tmp_path: Path) -> None:
    modules = ("conftest", "device_time", "goals", "harness", "parity", "result_rows", "store")
    for name in (*(f"{module}.py" for module in modules), "goals.toml"):
        (tmp_path / name).write_text((ROOT / "bench" / name).read_text())
    (tmp_path / "store.py").write_text(
        (ROOT / "bench" / "store.py").read_text() + "\n\ndef kernels(op, device):\n    return 'abc', False\n"
    )
    (tmp_path / "bench_ceiling.py").write_text(
        "import pytest, torch\n"
        "ROWS = [('hystar_fast', 0.1), ('hystar_fast, b', 0.0), ('peer', 0.1)]\n"
        "@pytest.mark.parametrize(('provider', 'error'), ROWS)\n"
        "def bench_it(record, provider, error):\n"
        "    one = torch.ones(3)\n"
        "    record('svd_linear', 'case', provider, 'forward', torch.float32, lambda: [one + error], [one])\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\npython_functions = bench_*\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--quick",
        "--resume",
        "--results",
        "r.json",
        "-p",
        "no:cacheprovider",
        ".",
    ]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        outputs.append(done.stdout)
        kept = [row["provider"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]]
        assert kept == ["hystar_fast, b", "peer"], done.stdout
    assert all("has an error of 1.00e-01 (limit 1e-03): the row is not added" in output for output in outputs)
    assert "1 failed, 2 passed" in outputs[0] and "1 failed, 2 skipped" in outputs[1]


def test_without_a_repository_no_row_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.store, "git", lambda *_: "")
    report.is_stale.cache_clear()
    assert not report.is_stale("sinkhorn", "0" * 40, "cpu")
    report.is_stale.cache_clear()


def test_the_share_of_the_ceiling_is_that_of_the_larger_need() -> None:
    needs = row("a", 2.0, gflop=4.0, gib=1e9 / 2**30)  # 1 ms of arithmetic, 0.5 ms of traffic
    assert report.attained(needs, bandwidth=2000.0, rates={"float32": 4000.0}) == pytest.approx(0.5)
    assert report.attained(needs, bandwidth=500.0, rates={"float32": 4000.0}) == pytest.approx(1.0)
    assert report.attained(needs, bandwidth=500.0, rates={}) is None
    assert report.attained(row("a", 2.0), bandwidth=500.0, rates={"float32": 1.0}) is None


def test_appending_keeps_rows_that_are_not_measured_again(tmp_path: Path) -> None:
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
