"""The warp-specialised backward of svd_linear, run on a CPU from its TTGIR: results, order of its operations, mutants.

A process of its own, so that the folder of another Triton can come first on its path:
``python -m tests.support.svd_linear_specialised`` prints one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import torch
import triton
from torch import Tensor

from hystar_fast.kernels.svd_linear import gemm
from hystar_fast.kernels.svd_linear.launch import Modulation
from hystar_fast.kernels.tuning import SPECIALISED, Gpu, Tile
from tests.support.svd_linear_compiled import Launch, StubDriver, recorded
from tests.support.svd_linear_protocol import ttgir
from tests.support.ttgir import parse
from tests.support.ttgir_executor import run
from tests.support.ttgir_protocol import Fault

ROUNDING = {torch.bfloat16: 3e-3, torch.float16: 4e-4}


@dataclass(frozen=True)
class Problem:
    """A backward of a few tiles, on some programs."""

    samples: int
    tokens: int
    inner: int
    rank: int
    programs: int
    dtype: torch.dtype = torch.bfloat16
    bank: bool = False
    slots: int = SPECIALISED.num_stages

    @property
    def tile(self) -> Tile:
        depth = SPECIALISED.block_k * SPECIALISED.num_stages // self.slots
        return replace(SPECIALISED, num_stages=self.slots, block_k=depth)

    def __str__(self) -> str:
        kind = "bank" if self.bank else "sample"
        sizes = f"{self.samples} of {self.tokens}, {self.inner}, r{self.rank}"
        return f"{sizes}, {self.dtype}, {kind}, {self.slots} slots, {self.programs} programs"

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Draw dy, u, h, scale and index; in a bank, the index of the last sample is outside."""
        rows = self.samples * self.tokens
        shapes = ((rows, self.inner), (self.inner, self.rank), (rows, self.rank), (self.samples, self.rank))
        torch.manual_seed(0)
        dy, u, h, scale = (torch.randn(shape) for shape in shapes)
        index = torch.arange(1, self.samples + 1) if self.bank else None
        return dy.to(self.dtype), u.to(self.dtype), h.to(self.dtype), scale, index

    @cached_property
    def launch(self) -> Launch:
        dy, u, h, scale, index = self.tensors
        with recorded() as launches:
            modulation = Modulation(scale, index, self.tokens)
            gemm.backward(dy, u, h, modulation, gpu=Gpu((9, 0), self.programs), needs_dg=True, tile=self.tile)
        return launches[0]

    def results(self, text: str, order: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Run the TTGIR, and return dg and the sums of dg * h over each sample."""
        given = self.launch.arguments
        dg, partials = given["g"].base, given["partials"]
        dg.fill_(torch.nan)
        partials.fill_(torch.nan)
        run(text, arguments(self.launch, text), self.programs, order)
        half = SPECIALISED.block_m // 2
        sums = []
        for sample in range(self.samples):
            first, end = sample * self.tokens, (sample + 1) * self.tokens
            halves = range(first // half, (end - 1) // half + 1)
            sums.append(sum(partials[i, sample - i * half // self.tokens].double().sum(0) for i in halves))
        return dg, torch.stack(sums)

    def check(self, text: str, order: Sequence[int]) -> str:
        """Return what is wrong, or nothing."""
        dy, u, h, scale, index = self.tensors
        try:
            found = self.results(text, order)
        except Fault as fault:
            return str(fault.args[0])
        product = dy.double() @ u.double()
        known = torch.full((self.samples + 1, self.rank), torch.nan).double()
        known[:-1] = scale.double()
        rows = known[torch.arange(self.samples) if index is None else index].repeat_interleave(self.tokens, 0)
        sums = (product * h.double()).view(self.samples, self.tokens, self.rank).sum(1)
        for name, actual, truth, limit in (
            ("dg", found[0].double(), product * rows, ROUNDING[self.dtype]),
            ("dscale", found[1], sums, 1e-5),
        ):
            error = ((actual - truth).norm(dim=1) / truth.norm(dim=1))[~truth[:, 0].isnan()].max().item()
            if not error <= limit or not torch.equal(actual.isnan(), truth.isnan()):
                return f"{name} has an error of {error:.1e}"
        return ""


PROBLEMS = (
    Problem(4, 100, 304, 256, 1),  # borders of samples in upper and in lower halves; a half without rows
    Problem(3, 90, 304, 512, 5),
    Problem(2, 257, 328, 512, 4, torch.float16),
    Problem(4, 64, 512, 512, 3, bank=True),
    Problem(1, 290, 304, 512, 2, slots=8),
)


def arguments(launch: Launch, text: str) -> list[Any]:
    """Return the arguments of a kernel as its TTGIR has them."""

    def flat(value: Any) -> Iterator[Any]:
        if hasattr(value, "block_shape"):
            yield from (value.base, *value.shape, *value.strides)
        elif isinstance(value, tuple):
            for member in value:
                yield from flat(member)
        elif isinstance(value, Tensor):
            yield value.view(-1)
        elif value is not None and value != 1:  # a number that is 1 is in the code
            yield value

    names = [name for name in launch.function.arg_names if name not in ("TILE", "STAGES")]
    found = [value for name in names for value in flat(launch.arguments[name])]
    assert len(found) == len(parse(text)[0])
    return found


def without(text: str, *words: str) -> str:
    """Return a kernel without its one line that has these words."""
    lines = text.splitlines()
    found = [i for i, line in enumerate(lines) if all(word in line for word in words)]
    assert len(found) == 1, found
    return "\n".join([*lines[: found[0]], "", *lines[found[0] + 1 :]])


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line that orders something, and the TTGIR without it."""
    lines = text.splitlines()
    ordering = r"ttng\.(wait_barrier|arrive_barrier|barrier_expect|fence_async_shared|async_tma_store_wait)"
    for i, line in enumerate(lines):
        changed = None
        if re.search(ordering, line):
            changed = ""
        elif "warp_group_dot_wait" in line:
            changed = re.sub(r"pendings = \d+", "pendings = 99", line)
        if changed is not None:
            yield re.sub(r" loc\(.*", "", line.strip()), "\n".join([*lines[:i], changed, *lines[i + 1 :]])


PTX = {  # a letter for each instruction that orders something
    r"mbarrier\.arrive\.shared": "a",
    r"bar(?:rier)?\.sync": "b",
    r"cp\.async\.bulk\.wait_group\.read": "w",
    r"stmatrix": "s",
    r"fence\.proxy\.async": "f",
    r"cp\.async\.bulk\.tensor\.2d\.global": "t",
    r"wgmma\.wait_group": "d",
    r"wgmma\.mma_async": "m",
}


def ptx_order(launch: Launch) -> str:
    """Return the instructions that order something, one letter each, as the compiler wrote them."""
    text = launch.function.warmup(**launch.arguments, grid=(1,)).asm["ptx"]
    found = re.finditer("|".join(f"({code})" for code in PTX), text)
    return "".join(list(PTX.values())[match.lastindex - 1] for match in found if match.lastindex)


def main() -> None:
    """Print what was found in every order of the partitions, and in each mutant of one problem."""
    triton.runtime.driver.set_active(StubDriver(90))
    report: dict[str, Any] = {"triton": triton.__version__, "problems": {}, "mutants": []}
    orders = list(permutations(range(3)))
    for problem in PROBLEMS:
        text = ttgir(problem.launch)
        chosen = orders if problem is PROBLEMS[0] else orders[::3]
        report["problems"][str(problem)] = [problem.check(text, order) for order in chosen]
    text = ttgir(PROBLEMS[0].launch)
    report["without arrival"] = PROBLEMS[0].check(without(text, "arrive_barrier", "%ahead"), orders[0])
    # the wait that only keeps the lower half behind the upper one, and so hides that others are missing
    free = without(text, "wait_barrier", "%turn")
    report["without order"] = [PROBLEMS[0].check(free, order) for order in orders]
    for line, mutant in mutants(free):
        if "%ahead" in line:
            continue
        found = (PROBLEMS[0].check(mutant, order) for order in (orders[0], orders[3], orders[5]))
        report["mutants"].append((line, next(filter(None, found), "")))
    report["ptx"] = ptx_order(PROBLEMS[0].launch)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
