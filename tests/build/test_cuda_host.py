"""The emulation of CUDA blocks (tests/support/cuda_host) finds faults: small kernels, each of which has one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.sinkhorn_cuda_host import CUDA_HOST, WATCHED, compile_cpp

SOURCE = CUDA_HOST / "faults.cpp"
KERNELS = [part.split('"')[0] for part in SOURCE.read_text().split('    {"')[1:]]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the kernels."""
    folder = tmp_path_factory.mktemp("faults")
    compile_cpp(*WATCHED, "-c", str(SOURCE), "-o", str(folder / "faults.o"))
    compile_cpp(str(folder / "faults.o"), str(CUDA_HOST / "memory.cpp"), "-o", str(folder / "faults"))
    return folder / "faults"


@pytest.mark.parametrize("name", KERNELS)
def test_a_fault_is_found_and_its_line_named(faults: Path, name: str) -> None:
    done = subprocess.run([faults, name], capture_output=True, text=True)
    if name == "nothing wrong":
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode != 0 and done.stderr.startswith("cuda_host: "), done.stderr
    before, after = SOURCE.read_text().split(f'{{"{name}",')
    lines = after.split('    {"')[0].splitlines()
    marked = [number for number, line in enumerate(lines, before.count("\n") + 1) if line.endswith("// fault")]
    assert len(marked) <= 1
    for number in marked:
        assert re.search(rf"\bfaults.cpp:{number}\b", done.stderr), done.stderr


def test_every_kernel_is_run(faults: Path) -> None:
    listed = subprocess.run([faults], capture_output=True, text=True).stdout.splitlines()
    assert sorted(listed) == sorted(KERNELS) and len(listed) > 15
