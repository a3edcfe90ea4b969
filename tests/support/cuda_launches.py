"""The launch code of the CUDA Sinkhorn and StyleNCE on a stub of the runtime: every .cu file, compiled by g++.

Kernels become functions that only describe themselves, and ``kernel<<<...>>>(...)`` a call. The rest is as it is.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_suffix("")
DEVICES = ("H200", "A100", "RTX 5090", "slice of an H200")
KERNEL = re.compile(
    r"^__global__ void\s+__launch_bounds__\((?P<bounds>[^()]*(?:\([^()]*\)[^()]*)*)\)\s+(?P<head>\w+\([^{;]*\)) \{\n"
    r"(?P<body>.*?)^\}\n",
    re.MULTILINE | re.DOTALL,
)
SHARED = re.compile(r"^ *__shared__ (.+?) \w+(\[.+?\])?;", re.MULTILINE)
LAUNCH = re.compile(r"(\w+(?:<T>)?)<<<(.*?)>>>\(", re.DOTALL)
AT, STREAM = 1 << 40, 0x51


class Launch(NamedTuple):
    """A launch as the runtime got it. The kernel has its template argument; without a cluster its size is 0."""

    kernel: str
    grid: tuple[int, int]
    threads: int
    static: int
    dynamic: int
    cluster: int
    cooperative: bool
    stream: int

    @property
    def variant(self) -> str:
        """Machine code and cluster."""
        return self.kernel + f", clusters of {self.cluster}" * (self.cluster > 0)


class RunnerCase(NamedTuple):
    """A case of bench/gpu_runner: a method of Launches and its numbers, the kernel that the device takes, the name."""

    op: str
    numbers: tuple[int, ...]
    kernel: str
    name: str


def translated(source: str) -> str:
    """Return a .cu file as C++: kernels that describe themselves, and launches that are calls."""

    def described(kernel: re.Match[str]) -> str:
        arrays = ", ".join(f"sizeof({kind}{size})" for kind, size in SHARED.findall(kernel["body"]))
        return (
            f"void {kernel['head']} {{ stub::describe(__PRETTY_FUNCTION__, {{{kernel['bounds']}}}, {{{arrays}}}); }}\n"
        )

    found, kernels = KERNEL.subn(described, source)
    found, launches = LAUNCH.subn(r"stub::launch(\1, \2, ", found)
    assert kernels == source.count("__global__") and launches == source.count("<<<")
    return found


class Launches:
    """The extension's CUDA functions. Their arrays are addresses that nothing reads; each method returns launches."""

    def __init__(self, folder: Path) -> None:
        packages = Path(torch.__file__).parents[1]
        runtime = next(packages.glob("nvidia/cu*/include/cuda_runtime.h")).parent  # that of torch
        rest = Path(triton.__file__).parent / "backends/nvidia/include"  # what torch's wheels leave out
        (folder / "cooperative_groups.h").write_text("")  # device.h declares what is used
        includes = [f"-I{path}" for path in (folder, STUB, ROOT / "csrc", ROOT / "bench/gpu_runner", runtime, rest)]
        sources = [STUB / "runtime.cpp"]
        for source in sorted((ROOT / "csrc").rglob("*.cu")):
            sources.append(folder / f"{source.stem}.cpp")
            sources[-1].write_text(translated(source.read_text()))
        library = folder / "launches.so"
        # without warnings: nvcc gives them, and device code has more under g++
        command = [
            "g++",
            "-std=c++17",
            "-w",
            "-shared",
            "-fPIC",
            "-Wl,-Bsymbolic",
            "-include",
            str(STUB / "device.h"),
            *includes,
        ]
        done = subprocess.run([*command, *map(str, sources), "-o", str(library)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        self._library = ctypes.CDLL(str(library))
        for name in ("stub_workspace", "stub_unrolled_workspace"):
            getattr(self._library, name).restype = ctypes.c_int64

    def use(self, device: str) -> None:
        """Make a device of DEVICES the current one; any other name means that there is none."""
        self._library.stub_device(DEVICES.index(device) if device in DEVICES else len(DEVICES))

    def refuse_next(self) -> None:
        """Let the next launch fail."""
        self._library.stub_refuse_next()

    def forward(self, batch: int, n: int, m: int, n_iter: int = 2, at: int = AT, workspace: int = AT) -> list[Launch]:
        return self._launched("stub_forward", batch, n, m, n_iter, at, workspace, STREAM)

    def unrolled(self, batch: int, n: int, m: int, n_iter: int = 2) -> list[Launch]:
        return self._launched("stub_gradient", 0, batch, n, m, n_iter, AT, STREAM)

    def implicit(self, batch: int, n: int, m: int, n_iter: int = 2) -> list[Launch]:
        return self._launched("stub_gradient", 1, batch, n, m, n_iter, AT, STREAM)

    def style_nce(self, n: int, d: int, n_iter: int = 2, weights: int = 0) -> list[Launch]:
        return self._launched("stub_style_nce", n, d, n_iter, weights, AT, STREAM)

    def has_gradient(self, n: int, m: int) -> bool:
        return bool(self._library.stub_has_gradient(ctypes.c_int64(n), ctypes.c_int64(m)))

    def workspace(self, batch: int, n: int, m: int) -> int:
        return int(self._library.stub_workspace(*map(ctypes.c_int64, (batch, n, m))))

    def unrolled_workspace(self, batch: int, n: int, m: int, n_iter: int) -> int:
        return int(self._library.stub_unrolled_workspace(*map(ctypes.c_int64, (batch, n, m, n_iter))))

    def launch(self, *, grid: tuple[int, int] = (1, 1), threads: int = 32, dynamic: int = 0, **kind: int) -> str:
        """Launch a kernel of 256 threads and 1,000 bytes of shared memory; return the message of an error."""
        asked = (*grid, threads, dynamic, kind.get("cluster", 0), kind.get("cooperative", 0))
        problem = self._text("stub_launch", *asked)
        self._text("stub_launches")
        return problem

    def runner_cases(self) -> list[RunnerCase]:
        """Return the cases of bench/gpu_runner."""
        lines = [line.split("|") for line in self._text("runner_cases").splitlines()]
        return [RunnerCase(op, tuple(map(int, numbers.split())), *names) for op, numbers, *names in lines]

    def run(self, op: str, numbers: tuple[int, ...]) -> list[Launch]:
        """Call the method `op`."""
        found: list[Launch] = getattr(self, op)(*numbers)
        return found

    def _launched(self, name: str, *arguments: int) -> list[Launch]:
        if problem := self._text(name, *arguments):
            self._text("stub_launches")
            raise RuntimeError(problem)
        return [read(line) for line in self._text("stub_launches").splitlines()]

    def _text(self, name: str, *arguments: int) -> str:
        function = getattr(self._library, name)
        function.restype = ctypes.c_char_p  # of a few bytes, never freed
        return (function(*map(ctypes.c_int64, arguments)) or b"").decode()


def read(line: str) -> Launch:
    """Return the launch that the stub wrote in a line."""
    *numbers, signature = line.split(" ", 8)
    x, y, threads, static, dynamic, cluster, cooperative, stream = map(int, numbers)
    name = re.search(r"(\w+)\(", signature)
    argument = re.search(r"\[with \w = hystar_fast::(\w+<[^>]+>)", signature)
    assert name, signature
    kernel = name[1] + (f" {argument[1]}" if argument else "")
    return Launch(kernel, (x, y), threads, static, dynamic, cluster, bool(cooperative), stream)


@cache
def launches() -> Launches:
    """Return the launch code, compiled once a process."""
    with tempfile.TemporaryDirectory() as folder:
        return Launches(Path(folder))
