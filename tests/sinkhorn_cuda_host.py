"""Runs the CUDA Sinkhorn's block algorithms on the CPU: builds tests/cuda_host with the C++ compiler and calls it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Solved:
    """What the kernels write for a batch."""

    plan: Tensor
    u: Tensor
    v: Tensor
    status: Tensor
    error: Tensor
    iterations: Tensor


def empty_outputs(cost: Tensor) -> Solved:
    """Outputs filled with NaN and -1, so that a value nobody wrote is seen."""
    batch, n, m = cost.shape
    unwritten = torch.full((batch, n * m + n + m + 1), torch.nan, device=cost.device)
    plan, u, v, error = (part.contiguous() for part in unwritten.split([n * m, n, m, 1], -1))
    status, iterations = torch.full((2, batch), -1, dtype=torch.int32, device=cost.device)
    return Solved(plan.view(batch, n, m), u, v, status, error.view(batch), iterations)


class Host:
    """The compiled emulation."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        assert compiler, "a C++ compiler is needed to run the CUDA block algorithms on the CPU"
        library = folder / "sinkhorn_host.so"
        # contraction is off: nvcc contracts elsewhere than g++ would, and the tests should not depend on where
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
        flags += ["-Wall", "-Wextra", "-Werror"]
        includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda_host'}"]
        source = ROOT / "tests/cuda_host/sinkhorn.cpp"
        command = [compiler, *flags, "-Wno-unknown-pragmas", *includes, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._solve = ctypes.CDLL(str(library)).sinkhorn_host

    def __call__(
        self,
        cost: Tensor,
        epsilon: float,
        n_iter: int,
        *,
        mask: Tensor | None = None,
        tol: float = 0.0,
        streaming: bool = False,
        seed: int = 1,
    ) -> Solved:
        """Solve cost [batch, N, M]; `seed` draws the order in which the threads of a block run between barriers."""
        cost = cost.float().contiguous()
        batch, n, m = cost.shape
        forbidden = None if mask is None else mask.expand_as(cost).contiguous()
        solved = empty_outputs(cost)
        outputs = [solved.plan, solved.u, solved.v, solved.status, solved.error, solved.iterations]
        pointers = [cost.data_ptr(), 0 if forbidden is None else forbidden.data_ptr(), *(t.data_ptr() for t in outputs)]
        self._solve(
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            *(ctypes.c_int(size) for size in (batch, n, m)),
            ctypes.c_double(epsilon),
            ctypes.c_int(n_iter),
            ctypes.c_double(tol),
            ctypes.c_int(streaming),
            ctypes.c_uint64(seed),
        )
        return solved
