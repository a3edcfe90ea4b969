"""The CUDA Sinkhorn and StyleNCE compiled for every shipped architecture: no spills, all within the GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ninja
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_build

ROOT = Path(__file__).resolve().parents[2]
BUILD = [sys.executable, str(ROOT / "bench/gpu_build.py")]
NINJA = str(Path(ninja.BIN_DIR, "ninja"))
ARCHITECTURES = ("80", "90a", "100", "120")
SHAPED = {  # kernels of a Tile, and of how many
    "tile_kernel": 6,
    "cluster_kernel": 3,
    "unrolled_kernel": 2,
    "implicit_kernel": 2,
    "unrolled_cluster_kernel": 1,
    "implicit_cluster_kernel": 1,
}
STREAM_KERNELS = ("stream_row_kernel", "stream_column_kernel", "stream_plan_kernel", "stream_outcome_kernel")
NCE_KERNELS = ("normalise_kernel", "cost_kernel", "loss_kernel", "project_kernel")
SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))
BLOCK_MEMORY = {"80": 163 << 10, "90a": 227 << 10, "100": 227 << 10, "120": 99 << 10}  # of one block, when it asks
pytestmark = pytest.mark.xdist_group("cuda resources")  # all sources are compiled once, not once a worker
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


class Resources(NamedTuple):
    """Figures of ptxas for one kernel."""

    architecture: str
    kernel: str
    registers: int
    shared: int
    stack: int
    spilled: int


def parse(report: str) -> list[Resources]:
    """The kernels in the output of `nvcc -Xptxas -v`; functions they call are listed as kernels with 0 registers."""
    entry = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'")
    frame = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    found: list[Resources] = []
    architecture = name = ""
    stack = spilled = 0
    for line in report.splitlines():
        if started := entry.search(line):
            architecture, name = started["architecture"], started["kernel"]
        elif owner := re.search(r"Function properties for (\w+)", line):
            properties_of = owner[1]
        elif spills := frame.search(line):
            own = (int(spills[1]), int(spills[2]) + int(spills[3]))
            if properties_of == name:
                stack, spilled = own
            else:
                found.append(Resources(architecture, properties_of, 0, 0, *own))
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append(Resources(architecture, name, int(used[1]), int(shared[1]) if shared else 0, stack, spilled))
    return found


def test_the_report_is_read_right() -> None:
    report = """
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90a'
ptxas info    : Function properties for _Z1aPf
    24 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 24 bytes cumulative stack size, 784 bytes smem
ptxas info    : Compile time = 1.0 ms
ptxas info    : Function properties for _Z6calledv
    0 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
"""
    assert parse(report) == [Resources("90a", "_Z1aPf", 80, 784, 24, 32), Resources("90a", "_Z6calledv", 0, 0, 0, 4)]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the objects and what ptxas said of them, in folders as the sources.

    They are those of the checkout's own build, or compiled here if that was of other sources, flags or architectures.
    """
    folder = tmp_path_factory.mktemp("compiled")
    names = [f"{source.relative_to(ROOT / 'csrc')}.o" for source in SOURCES]
    setup = gpu_build.load_setup()
    wanted = setup.built_from(setup.Cuda("nvcc", Path(), Path(), ARCHITECTURES))
    record = setup.CHECKOUT_BUILD / "built_from.txt"
    if record.exists() and record.read_text() == wanted:
        for name in (*names, *(f"{name}.txt" for name in names)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(setup.CHECKOUT_BUILD / name, folder / name)
        return folder
    subprocess.run([*BUILD, str(folder), "--dry", "--architecture", " ".join(ARCHITECTURES)], check=True)
    subprocess.run([NINJA, "-C", str(folder), *names], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def kernels(objects: Path) -> list[Resources]:
    found: list[Resources] = []
    for source in SOURCES:
        report = (objects / f"{source.relative_to(ROOT / 'csrc')}.o.txt").read_text()
        assert "warning" not in report, report
        found += parse(report)
    return found


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_fits_and_nothing_spills(kernels: list[Resources], architecture: str) -> None:
    here = [kernel for kernel in kernels if kernel.architecture == architecture]
    shaped = {name: [kernel for kernel in here if re.search(rf"\d{name}I", kernel.kernel)] for name in SHAPED}
    assert {name: len(found) for name, found in shaped.items()} == SHAPED
    assert all(any(name in kernel.kernel for kernel in here) for name in STREAM_KERNELS + NCE_KERNELS)
    # a called function, `settle`, saves its caller's registers; it runs for a few problems and after their loop
    assert not [kernel for kernel in here if kernel.spilled and kernel.registers]
    if architecture == "80":  # has no clusters: what is compiled there does nothing
        clusters = [kernel for name in SHAPED if "cluster" in name for kernel in shaped.pop(name)]
        assert all(kernel.registers < 16 and kernel.shared == 0 for kernel in clusters)
    for tile in (kernel for found in shaped.values() for kernel in found):
        shape = re.search(r"4TileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E", tile.kernel)
        assert shape, tile.kernel
        rows, columns, _, warps, blocks, _ = (int(number) for number in shape.groups())
        assert rows * columns < tile.registers  # A lives in registers
        assert blocks * 32 * warps * tile.registers <= 65536
        assert tile.shared <= 48 * 1024 and blocks * (tile.shared + 1024) <= 100 * 1024  # sm_120 has 100 KiB


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sweeping_block_fills_a_multiprocessor_and_no_more(kernels: list[Resources], architecture: str) -> None:
    """16 warps, and a ring of at least two slots of 32 KiB: in the widest shape as many as the memory has."""
    here = [kernel for kernel in kernels if kernel.architecture == architecture]
    found = [(re.search(r"sweep_kernelINS_10SweepShapeILi(\d+)ELi(\d+)E", kernel.kernel), kernel) for kernel in here]
    shapes = {shape.groups(): kernel for shape, kernel in found if shape}
    assert set(shapes) == {(teams, vector) for teams in ("1", "4", "16") for vector in ("1", "4")}
    for (teams, _), kernel in shapes.items():
        assert kernel.registers * 512 <= 65536 and kernel.stack == 0
        slots = (BLOCK_MEMORY[architecture] - kernel.shared) // (32 << 10)
        assert slots >= (BLOCK_MEMORY[architecture] >> 15 if teams == "16" else 2)


@needs_nvcc
def test_the_runner_of_a_gpu_session_links_with_these_objects(kernels: list[Resources], objects: Path) -> None:
    """Without a GPU it says so; with one it is right."""
    subprocess.run([*BUILD, str(objects), "--dry"], check=True)
    make = [NINJA, "-C", str(objects)]
    subprocess.run([*make, "runner.o", "device.o"], check=True, stdout=subprocess.DEVNULL)
    listed = subprocess.run([*make, "-t", "commands", "runner"], check=True, capture_output=True, text=True)
    link = listed.stdout.strip().splitlines()[-1]
    assert all(f"{source.relative_to(ROOT / 'csrc')}.o" in link for source in SOURCES)
    subprocess.run(link, shell=True, check=True, cwd=objects)
    done = subprocess.run([objects / "runner", "toy"], capture_output=True, text=True)
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode == 3 and "no GPU: " in done.stderr
