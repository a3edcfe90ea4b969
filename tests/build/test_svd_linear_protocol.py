"""The asynchronous operations of svd_linear's kernels for Hopper: nothing is read before it has arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.ttgir_protocol import Fault, run


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "3.6"])
def test_no_order_of_copies_and_products_is_wrong(version: str, report_with: Callable[..., dict[str, Any]]) -> None:
    report = report_with(version, "tests.support.svd_linear_protocol")
    kernels = report["kernels"]
    assert {label: kernel["fault"] for label, kernel in kernels.items() if kernel["fault"]} == {}
    described = [kernel for kernel in kernels.values() if kernel["described"]]
    assert len(kernels) == 78 and len(described) == 53
    assert all(kernel["tma"] and kernel["wgmma"] for kernel in described)
    # the epilogue waits for all products before it, so the wait behind the loop of a persistent kernel has none left
    missed = [line for _, line, found in report["mutants"] if not found]
    assert all("warp_group_dot_wait" in line and "pendings = 0" in line for line in missed) and len(missed) == 2
    assert len(report["mutants"]) >= 20  # waits and fences of two kernels


KERNEL = """
  tt.func public @kernel(%a: !tt.tensordesc<64x64xbf16>, %g: !tt.tensordesc<64x64xbf16>) attributes {} {
    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %three = arith.constant 3 : i32
    %two = arith.constant 2 : i32
    %true = arith.constant true
    %tile = ttg.local_alloc : () -> !ttg.memdesc<64x64xbf16>
    %barrier = ttg.local_alloc : () -> !ttg.memdesc<1xi64>
    ttng.init_barrier %barrier, 1
    scf.for %i = %zero to %three step %one  : i32 {
      %phase = arith.remsi %i, %two : i32
      ttng.barrier_expect %barrier, 8192, %true
      ttng.async_tma_copy_global_to_local %a[%i, %zero] %tile, %barrier, %true -> !ttg.memdesc<64x64xbf16>
      ttng.wait_barrier %barrier, %phase
      ttng.async_tma_copy_local_to_global %g[%i, %zero] %tile
      ttng.async_tma_store_wait {pendings = 0 : i32}
    }
    tt.return
  }
"""


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("ttng.wait_barrier %barrier, %phase", "", "before its copy has arrived"),
        ("ttng.wait_barrier %barrier, %phase", "ttng.wait_barrier %barrier, %zero", "before its copy has arrived"),
        ("ttng.wait_barrier %barrier, %phase", "ttng.wait_barrier %barrier, %one", "before its copy has arrived"),
        ("ttng.barrier_expect %barrier, 8192, %true", "", "does not expect it"),
        ("8192", "16384", "a wait never ends: 8192 bytes are missing"),
        ("pendings = 0", "pendings = 1", "overwritten while it is read"),
        ("ttng.async_tma_store_wait {pendings = 0 : i32}", "", "overwritten while it is read"),
    ],
)
def test_a_broken_protocol_is_found(before: str, after: str, fault: str) -> None:
    assert run(KERNEL, {}, 1) == [("g", (i, 0), ("a", i, 0)) for i in range(3)]
    text = "\n".join(line.replace(before, after) if after or before not in line else "" for line in KERNEL.splitlines())
    with pytest.raises(Fault, match=fault):
        run(text, {}, 1)
