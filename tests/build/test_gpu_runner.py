"""The runner of a GPU session (bench/gpu_runner) on the CPU: its references, and that it finds every kind of fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_build

from tests.support.gpu_runner_host import barriers, build_runner, fault_without, run
from tests.support.sinkhorn_cuda_host import ROOT

GROUPS = ["sinkhorn cluster", "sinkhorn gradient", "sinkhorn off chip", "sinkhorn tile", "style_nce"]
ONE_CASE = "tile 64, 2 of 64x50"


@pytest.fixture(scope="module")
def runner(host_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Link the runner with the emulated kernels."""
    return build_runner(tmp_path_factory.mktemp("runner"), host_folder)


def test_every_kernel_is_right_at_toy_sizes_and_each_group_has_a_line(runner: Path) -> None:
    code, output = run(runner, "toy")
    assert code == 0, output
    assert [line.split(":")[0] for line in output.splitlines() if line.startswith("RIGHT")] == [
        f"RIGHT {group}" for group in GROUPS
    ]
    counted = sum(int(count) for count in re.findall(r"^RIGHT .*: (\d+) of \1 cases", output, re.MULTILINE))
    assert counted == output.count("\nok ") > 40


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("row", "a row of the plan has an error of"),
        ("unwritten", "a row of the plan has an error of inf"),
        ("outside", "wrote outside an array"),
        ("input", "changed an input"),
        ("bits", "run 2 differs from the first"),
    ],
)
def test_a_fault_is_found_and_named(runner: Path, fault: str, message: str) -> None:
    code, output = run(runner, "toy", ONE_CASE, HYSTAR_RUNNER_FAULT=fault)
    assert code == (fault != "") and message in output
    assert output.splitlines()[-1].startswith("WRONG sinkhorn tile: 0 of 1" if fault else "RIGHT sinkhorn tile: 1 of 1")


def test_a_removed_barrier_is_found(runner: Path) -> None:
    """Those of two files, which the first cases need; ``python -m tests.barriers`` removes them all."""
    places = [place for place in barriers() if place.startswith(("feasibility", "problem"))]
    assert len(places) == 8
    for place in places:
        assert fault_without(runner, place).startswith("cuda_host: "), place


def test_an_unknown_scale_is_an_error(runner: Path) -> None:
    code, output = run(runner, "small")
    assert code == 2 and "toy|production|all" in output


def test_what_is_carried_is_checked_against_the_sources(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/gpu_build.py"), str(tmp_path), "--check"]
    assert subprocess.run(command).returncode == 1
    setup = gpu_build.load_setup()
    digest = setup.source_digest(setup.CSRC) + setup.source_digest(gpu_build.RUNNER)
    (tmp_path / "sources.txt").write_text(digest)
    assert subprocess.run(command).returncode == 0
    (tmp_path / "sources.txt").write_text(digest[:-1])
    assert subprocess.run(command).returncode == 1
