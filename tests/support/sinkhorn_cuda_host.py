"""The block algorithms of the CUDA Sinkhorn on the CPU: cuda_host/ is built with the C++ compiler and called here."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hystar_fast.ops import native
from hystar_fast.ref.sinkhorn import SinkhornStatus, sinkhorn
from tests.support.tolerance import assert_as_accurate

ROOT = Path(__file__).resolve().parents[2]


class Gpu(NamedTuple):
    """The facts of a GPU on which the choice of a kernel depends; see Gpu in csrc/sinkhorn/cuda/shapes.cuh."""

    multiprocessors: int
    cluster: int
    shared: int


A100 = Gpu(108, 0, 163 << 10)
H200 = Gpu(132, 16, 227 << 10)
RTX_5090 = Gpu(170, 8, 99 << 10)
NO_BARRIERS = Gpu(132, 16, 0)
NO_GPU = Gpu(0, 0, 0)


class Choice(NamedTuple):
    """The choice of a kernel: its kind, the shape of a cluster or a sweep, and the blocks of a problem or the grid."""

    kind: int
    shape: int
    blocks: int


TILE, CLUSTER, STREAM, SWEEP = range(4)
STREAMING = Choice(STREAM, 0, 0)


class ClusterShape(NamedTuple):
    """The rows and columns of one block, and the most blocks of a cluster."""

    rows: int
    columns: int
    most: int


@dataclass(frozen=True)
class Solved:
    """The results of the kernels for a batch."""

    plan: Tensor
    u: Tensor
    v: Tensor
    status: Tensor
    error: Tensor
    iterations: Tensor


def empty_outputs(cost: Tensor) -> Solved:
    """Return memory for the results, filled with NaN and -1, so that a test sees values that were not written."""
    batch, n, m = cost.shape
    unwritten = torch.full((batch, n * m + n + m + 1), torch.nan, device=cost.device)
    plan, u, v, error = (part.contiguous() for part in unwritten.split([n * m, n, m, 1], -1))
    status, iterations = torch.full((2, batch), -1, dtype=torch.int32, device=cost.device)
    return Solved(plan.view(batch, n, m), u, v, status, error.view(batch), iterations)


def paper_cost(batch: int, n: int, m: int) -> Tensor:
    """Return the cost of Eq. 5 for random similarities. The diagonal of a square matrix is forbidden."""
    cost = torch.exp(1 - (torch.rand(batch, n, m) * 2 - 1))
    if n == m > 1:
        cost.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    return cost


def check(solved: Solved, cost: Tensor, epsilon: float, n_iter: int, **options: Any) -> None:
    """Compare plan, zeros, potentials and status of every problem with the reference in float64."""
    options.setdefault("tol", None)
    truth, info = sinkhorn(cost.double(), epsilon, n_iter, grad="none", return_info=True, **options)
    same_dtype = sinkhorn(cost.float(), epsilon, n_iter, grad="none", **options)
    assert solved.status.tolist() == info.status.tolist()
    assert solved.iterations.tolist() == info.iterations.tolist()
    invalid = info.status == SinkhornStatus.INVALID
    assert solved.plan[invalid].isnan().all() and solved.u[invalid].isnan().all() and solved.v[invalid].isnan().all()
    assert_as_accurate(solved.plan[~invalid], same_dtype[~invalid], truth[~invalid])
    error, expected = solved.error[~invalid].double(), info.max_marginal_error[~invalid]
    torch.testing.assert_close(error, expected, rtol=2e-2, atol=1e-5)
    mask = options.get("mask")
    forbidden = cost.isposinf() if mask is None else cost.isposinf() | mask
    solvable = (info.status <= SinkhornStatus.NOT_CONVERGED)[:, None, None]
    assert (solved.plan[forbidden & ~invalid[:, None, None]] == 0).all()
    exponent = (solved.u.double()[:, :, None] + solved.v.double()[:, None, :] - cost.double()) / epsilon
    rebuilt = exponent.masked_fill(forbidden | ~solvable, -math.inf).exp()
    unit = (cost.masked_fill(forbidden | ~solvable, 0).abs().amax() + solved.u.nan_to_num().abs().amax()) / epsilon
    torch.testing.assert_close(rebuilt, truth.masked_fill(~solvable, 0), rtol=1e-5 + 4e-7 * unit.item(), atol=1e-6)


CUDA_HOST = ROOT / "tests/support/cuda_host"
# without contraction to fused multiply-adds, because nvcc and g++ would use them in different places
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", f"-I{CUDA_HOST}"]
# every access and index of the kernels is checked, by cuda_host/memory.cpp and not by a sanitizer's library (gcc >= 11)
WATCHED = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "--param=tsan-distinguish-volatile=1"]
WATCHED += ["-fsanitize=bounds-strict", "-fno-sanitize-recover=all"]


def compile_cpp(*arguments: str) -> None:
    """Run the C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "a C++ compiler is needed to run the CUDA block algorithms on the CPU"
    done = subprocess.run([compiler, *FLAGS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(folder: Path, source: Path) -> ctypes.CDLL:
    """Return the library of a file of emulated kernels, such as cuda_host/sinkhorn.cpp.

    It is compiled unless the folder, which must be new in every session, has it from another test process.
    """
    library, kernels, memory = (folder / f"{source.stem}_host{ending}" for ending in (".so", ".o", "_memory.o"))
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_cpp(*WATCHED, "-c", str(source), "-o", str(kernels))
            compile_cpp("-c", str(CUDA_HOST / "memory.cpp"), "-o", str(memory))
            compile_cpp("-shared", str(kernels), str(memory), "-o", str(library))
    return ctypes.CDLL(str(library))


class Host:
    """The compiled emulation. Its functions `sinkhorn_cuda_*` have the signatures of the extension."""

    def __init__(self, folder: Path) -> None:
        self._library = build(folder, CUDA_HOST / "sinkhorn.cpp")

    def choose(self, batch: int, n: int, m: int, gpu: Gpu) -> Choice:
        """Return the kernel that the extension would choose."""
        chosen = (ctypes.c_int * 3)()
        sizes = (ctypes.c_int64(size) for size in (batch, n, m))
        self._library.choose_host(*sizes, *(ctypes.c_int(number) for number in gpu), chosen)
        return Choice(*chosen)

    def choose_gradient(self, n: int, m: int, gpu: Gpu) -> Choice:
        """Return the kernel that the extension would choose for the gradients; STREAM: none."""
        chosen = (ctypes.c_int * 3)()
        self._library.choose_gradient_host(
            ctypes.c_int64(n), ctypes.c_int64(m), *(ctypes.c_int(number) for number in gpu), chosen
        )
        return Choice(*chosen)

    def cluster_shapes(self) -> list[ClusterShape]:
        """Return the shapes of clusters."""
        shapes: list[ClusterShape] = []
        found = (ctypes.c_int * 3)()
        while self._library.cluster_shape_host(ctypes.c_int(len(shapes)), found):
            shapes.append(ClusterShape(*found))
        return shapes

    def __call__(
        self,
        cost: Tensor,
        epsilon: float,
        n_iter: int,
        *,
        mask: Tensor | None = None,
        tol: float = 0.0,
        streaming: bool = False,
        choice: Choice | None = None,
        seed: int = 1,
    ) -> Solved:
        """Solve cost [batch, N, M] with the kernel for an H200, with the streaming kernels, or with `choice`.

        `seed` determines the order in which the threads of a block run between barriers.
        """
        cost = cost.float().contiguous()
        batch, n, m = cost.shape
        forbidden = None if mask is None else mask.expand_as(cost).contiguous()
        solved = empty_outputs(cost)
        chosen = STREAMING if streaming else choice or self.choose(batch, n, m, H200)
        outputs = [solved.plan, solved.u, solved.v, solved.status, solved.error, solved.iterations]
        pointers = [cost.data_ptr(), 0 if forbidden is None else forbidden.data_ptr(), *(t.data_ptr() for t in outputs)]
        self._forward(pointers, (batch, n, m), epsilon, n_iter, tol, chosen, seed)
        return solved

    def check_order(self, cost: Tensor, epsilon: float, n_iter: int, **options: Any) -> None:
        """Assert that several orders of the threads give the same results, to the last bit."""
        first, *others = (self(cost, epsilon, n_iter, seed=seed, **options) for seed in (1, 20, 300))
        for other in others:
            assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in vars(first))

    def gradient(
        self,
        given: Tensor,
        dplan: Tensor,
        epsilon: float,
        iterations: Tensor,
        n_iter: int,
        *,
        implicit: bool = False,
        mask: Tensor | None = None,
        choice: Choice | None = None,
        seed: int = 1,
    ) -> Tensor:
        """Return the unrolled gradient from a cost [batch, N, M], or the implicit one from a plan, as on an H200."""
        given, dplan, iterations = given.float().contiguous(), dplan.float().contiguous(), iterations.int().contiguous()
        forbidden = None if mask is None else mask.expand_as(given).contiguous()
        dcost = torch.full_like(given, torch.nan)
        pointers = [
            0 if implicit else given.data_ptr(),
            0 if forbidden is None else forbidden.data_ptr(),
            given.data_ptr() if implicit else 0,
            *(tensor.data_ptr() for tensor in (dplan, iterations, dcost)),
        ]
        chosen = choice or self.choose_gradient(*given.shape[1:], H200)
        self._gradient(pointers, tuple(given.shape), epsilon, n_iter, chosen, seed)
        return dcost

    def sinkhorn_cuda_workspace(self, batch: int, n: int, m: int) -> int:
        return 4 * batch * (n + m)  # not used by the emulation, which checks that it gets a workspace

    def sinkhorn_cuda_forward(self, *arguments: Any) -> None:
        *pointers, batch, n, m, epsilon, n_iter, tol, _, workspace = arguments
        assert workspace
        self._forward(pointers, (batch, n, m), epsilon, n_iter, tol, self.choose(batch, n, m, H200), 1)

    def sinkhorn_cuda_has_gradient(self, n: int, m: int) -> bool:
        return self.choose_gradient(n, m, H200).kind != STREAM

    def sinkhorn_cuda_unrolled_workspace(self, batch: int, n: int, m: int, n_iter: int) -> int:
        return 4 * batch * (n + m) * n_iter

    def sinkhorn_cuda_unrolled_backward(self, *arguments: Any) -> None:
        cost, mask, dplan, iterations, dcost, batch, n, m, epsilon, n_iter, _, workspace = arguments
        assert workspace
        pointers = [cost, mask, 0, dplan, iterations, dcost]
        self._gradient(pointers, (batch, n, m), epsilon, n_iter, self.choose_gradient(n, m, H200), 1)

    def sinkhorn_cuda_implicit_backward(self, *arguments: Any) -> None:
        plan, dplan, iterations, dcost, batch, n, m, epsilon, _ = arguments
        pointers = [0, 0, plan, dplan, iterations, dcost]
        self._gradient(pointers, (batch, n, m), epsilon, 1, self.choose_gradient(n, m, H200), 1)

    def _forward(
        self,
        pointers: list[int],
        sizes: tuple[int, ...],
        epsilon: float,
        n_iter: int,
        tol: float,
        choice: Choice,
        seed: int,
    ) -> None:
        self._library.sinkhorn_host(
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            *(ctypes.c_int(size) for size in sizes),
            ctypes.c_double(epsilon),
            ctypes.c_int(n_iter),
            ctypes.c_double(tol),
            *(ctypes.c_int(number) for number in choice),
            ctypes.c_uint64(seed),
        )

    def _gradient(
        self, pointers: list[int], sizes: tuple[int, ...], epsilon: float, n_iter: int, choice: Choice, seed: int
    ) -> None:
        assert choice.kind != STREAM
        self._library.sinkhorn_gradient_host(
            *(ctypes.c_void_p(pointer) for pointer in pointers),
            *(ctypes.c_int(size) for size in sizes),
            ctypes.c_double(epsilon),
            *(ctypes.c_int(number) for number in (n_iter, choice.kind, choice.blocks)),
            ctypes.c_uint64(seed),
        )


def argument_counts(prefix: str) -> dict[str, int]:
    """Return the number of arguments of each function of the extension with this prefix; empty without CUDA."""
    found = {name: function for name, function in vars(native.extension() or object).items() if name.startswith(prefix)}
    return {name: len(re.findall(r"\w+: ", function.__doc__.splitlines()[0])) for name, function in found.items()}


def pretend_cuda(patch: pytest.MonkeyPatch, host: object, *modules: ModuleType) -> None:
    """Let the CUDA implementations in `modules` run on CPU tensors, with emulated kernels."""
    patch.setattr(torch.cuda, "device", contextlib.nullcontext)
    patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    for module in modules:
        patch.setattr(module, "cuda_extension", lambda dtype: host if dtype == torch.float32 else None)
