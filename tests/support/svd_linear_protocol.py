"""The asynchronous operations of svd_linear's kernels for Hopper, checked without a GPU.

A process of its own, so that the folder of another Triton can come first on its path:
``python -m tests.support.svd_linear_protocol`` prints one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import triton
from triton.backends.nvidia.compiler import CUDABackend
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.support.svd_linear_compiled import Launch, StubDriver, record_fp8, record_fused, record_gemm
from tests.support.ttgir_protocol import Fault, Tensor, run

MUTATED = ("forward persistent pair of samples", "backward persistent pair of samples")


class Compiled(Exception):
    """Ends a compilation after its TTGIR, which is the argument."""


def ttgir(launch: Launch) -> str:
    """Return the TTGIR of a launch: out of Triton's cache, or else compiled no further."""

    def stop(self: CUDABackend, module: Any, *_: Any) -> None:
        raise Compiled(str(module))

    with mock.patch.object(CUDABackend, "make_llir", stop):
        try:
            return str(launch.function.warmup(**launch.arguments, grid=(1,)).asm["ttgir"])
        except Compiled as compiled:
            return str(compiled)


def sizes(launch: Launch, steps: int) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a problem: three tiles of rows, two or three of columns, `steps` of a product."""
    rows, columns, depth, *rank = launch.arguments["TILE"]
    shape = 3 * rows, rank[0] if rank else 2 * columns, steps * depth
    return {"shape": shape, "columns": (3 * columns, 2)}


def check_product(product: tuple[Any, ...], row: int, steps: int, depth: int) -> None:
    """Check that a stored value is the product of whole rows and columns, one tile after the other."""
    for a, b in product:
        if isinstance(a, Tensor) or isinstance(b, Tensor):  # the fused kernel's second product, of its first one
            for operand in (a, b):
                for inner in operand.products if isinstance(operand, Tensor) else ():
                    check_product(inner, row, steps, depth)
            return
        if a[0] != "a" or b[0] != "b" or a[1] != row:
            raise Fault(f"rows {row} are multiplied by {a} and {b}")
    for index in (0, 1):
        at = [step[index][1:] for step in product]
        if not any([place[axis] for place in at] == [depth * k for k in range(steps)] for axis in range(len(at[0]))):
            raise Fault(f"{steps} steps of a product use {at}")


def check(launch: Launch, text: str) -> int:
    """Run a kernel with few and many steps and programs, and return the number of stores."""
    count = 0
    for steps in (0, 1, 2, 3, 7):
        for programs in (1, 4, 7) if launch.arguments.get("PERSISTENT") else (6,):
            stored = run(text, sizes(launch, steps), programs)
            for _, (row, _column), value in stored:
                if len(value.products) > 1 or (steps and not value.products):
                    raise Fault(f"{len(value.products)} products are stored at once")
                for product in value.products if steps else ():
                    check_product(product, row, steps, launch.arguments["TILE"][2])
            count += len(stored)
    return count


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Yield the TTGIR without each wait and fence in turn, and the line that was changed."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        changed = None
        if re.search(r"ttng\.(wait_barrier|fence_async_shared|async_tma_store_wait)", line):
            changed = ""
        elif re.search(r"(warp_group_dot_wait|async_wait)\b", line):
            changed = re.sub(r"(pendings|num) = \d+", r"\1 = 99", line)
        if changed is not None:
            yield re.sub(r" loc\(.*", "", line.strip()), "\n".join([*lines[:i], changed, *lines[i + 1 :]])


def found(launch: Launch, text: str) -> str:
    try:
        check(launch, text)
    except Fault as fault:
        return str(fault.args[0])
    return ""


def main() -> None:
    """Print what was found in each kernel that multiplies, and in each mutant of two of them."""
    triton.runtime.driver.set_active(StubDriver(90))
    report: dict[str, Any] = {"triton": triton.__version__, "kernels": {}, "mutants": []}
    for launch in (*record_gemm((9, 0)), *record_fp8((9, 0)), *record_fused((9, 0))):
        if "TILE" not in launch.arguments:
            continue
        text = ttgir(launch)
        described = isinstance(launch.arguments["a"], TensorDescriptor)
        report["kernels"][launch.label] = {
            "fault": found(launch, text),
            "tma": described and "async_tma_copy_global_to_local" in text,
            "wgmma": "warp_group_dot " in text,
            "described": described,
        }
        if launch.label.endswith(MUTATED) and "bf16" in launch.label:
            report["mutants"] += [(launch.label, line, found(launch, mutant)) for line, mutant in mutants(text)]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
