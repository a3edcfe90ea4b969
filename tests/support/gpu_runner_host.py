"""The runner of a GPU session (bench/gpu_runner) with emulated kernels, also without one of their barriers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.sinkhorn_cuda_host import CUDA_HOST, ROOT, build, compile_cpp

SOURCES = ROOT / "bench/gpu_runner"
BARRIER = re.compile(r"block_?\.(sync|sync_warp|sync_cluster|sync_grid|wait_for_copies|commit_copies)\(")

# the cases that a file needs, which come first
CASES = {
    "gradient.cuh": "gradient",
    "implicit_gradient.cuh": "implicit",
    "rows.cuh": "style_nce",
    "stream.cuh": "off chip",
    "sweep.cuh": "off chip",
    "sweep_path.cuh": "off chip",
    "unrolled_gradient.cuh": "unrolled",
}


def build_runner(folder: Path, kernels: Path | None = None) -> Path:
    """Compile the emulation, unless the folder `kernels` has it, and link the runner with it."""
    libraries = [build(kernels or folder, CUDA_HOST / f"{op}.cpp")._name for op in ("style_nce", "sinkhorn")]
    sources = [str(SOURCES / "runner.cpp"), str(CUDA_HOST / "device.cpp")]
    runner = folder / "runner"
    compile_cpp("-pthread", f"-I{SOURCES}", *sources, *libraries, "-o", str(runner))
    return runner


def run(runner: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Return the exit code and the output."""
    done = subprocess.run(
        [runner, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def barriers() -> Iterator[str]:
    """Yield the places of all barriers and waits of the block algorithms, such as ``tile.cuh:88``."""
    for path in sorted((ROOT / "csrc").rglob("*.cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            calls = BARRIER.findall(line)
            assert len(calls) < 2, f"{path}:{number} has several barriers, so none can be removed alone"
            if calls and path.name != "device_block.cuh":
                yield f"{path.name}:{number}"


def fault_without(runner: Path, barrier: str) -> str:
    """Return what the runner finds at toy sizes if a barrier is removed; empty if it finds nothing wrong."""
    for cases in dict.fromkeys([CASES.get(barrier.split(":")[0], ""), ""]):
        code, output = run(runner, "toy", cases, HYSTAR_WITHOUT_BARRIER=barrier)
        if code != 0:
            return str(re.findall(r"^(?:cuda_host|FAIL).*", output, re.MULTILINE)[-1])
    return ""
