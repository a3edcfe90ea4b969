"""Every launch of svd_linear compiles for every architecture without a GPU: no spills, shared memory within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from hystar_fast.kernels.tuning import SHARED_MEMORY


class Budget(NamedTuple):
    """The most of each in one kernel: instructions, shuffles, barriers, and loads from global memory."""

    instructions: int
    shuffles: int
    barriers: int
    loads: int


# On sm_90, of both versions of Triton, with 2 % more instructions. A step takes 4 MMAs; the rest is mostly epilogue,
# during which no MMA runs. Its loads are those of the scale and of h, 8 bytes of a lane each.
BUDGETS = {
    "_svd_linear_gemm_kernel bf16 forward persistent pair of samples": Budget(1570, 0, 24, 64),
    "_svd_linear_gemm_kernel bf16 backward persistent pair of samples": Budget(3200, 384, 32, 64),
    "_svd_linear_fp8_kernel first pair": Budget(1990, 0, 24, 104),
    "_svd_linear_fp8_kernel second pair": Budget(1420, 0, 20, 66),
    # two groups of warps, each with an epilogue for one sample and one for two
    "_svd_linear_specialised_kernel bf16 sample": Budget(6500, 336, 76, 384),
    "_svd_linear_fused_kernel bf16 forward tall r64": Budget(1040, 0, 30, 32),
    "_svd_linear_fused_kernel bf16 backward tall r64": Budget(1370, 96, 34, 16),
    # without MMAs: bound by memory, so that loads are whole vectors and nothing is read twice
    "_svd_linear_reduce_kernel bf16 pair of samples": Budget(325, 12, 6, 4),
    "_svd_linear_quantise_kernel pair": Budget(378, 25, 14, 6),
    "_svd_linear_quantise_kernel shared": Budget(376, 25, 14, 11),
}


def check_budget(label: str, opcodes: dict[str, int]) -> None:
    """Assert that a kernel has no more instructions than its budget, and that its MMAs run without waits between."""

    def count(*names: str) -> int:
        return sum(number for opcode, number in opcodes.items() if opcode.startswith(names))

    found = Budget(sum(opcodes.values()) - count("NOP"), count("SHFL"), count("BAR"), count("LDG"))
    assert all(number <= most for number, most in zip(found, BUDGETS[label], strict=True)), (label, found)
    assert count("STL", "LDL") == count("STS.U16") == 0, label
    if "reduce" in label or "quantise" in label:
        assert count("HGMMA", "QGMMA") == 0 < count("LDG.E.128"), label
    else:
        assert count("HGMMA", "QGMMA") == 4 * count("WARPGROUP.ARRIVE") > 0, f"{label}: serialised MMAs"
        assert count("UTMALDG") > 0, label


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "architecture"),
    [*(("installed", a) for a in (80, 89, 90, 100, 120)), ("3.6", 90)],
)
def test_compiles_without_spills(version: str, architecture: int, report_with: Callable[..., dict[str, Any]]) -> None:
    report = report_with(version, "tests.support.svd_linear_compiled", str(architecture))
    gemms = [row for row in report["rows"] if "gemm" in row["kernel"]]
    wide = architecture in (90, 100)
    assert len(gemms) == (50 if wide else 42) and len(report["rows"]) > len(gemms)
    roles = {" ".join(row["kernel"].split()[1:]) for row in gemms}
    for role in ("inference", "forward", "backward", "backward of x", "backward of scale"):
        assert {f"bf16 {role} {'persistent ' * wide}pair", f"bf16 {role} pair"} <= roles, role
    assert {f"bf16 {role} batch of {n}" for role in ("forward", "backward") for n in (1, 2, 4)} <= roles
    for row in report["rows"]:
        assert row["stack"] == row["local"] == 0, f"spills: {row}"
        assert row["shared"] <= SHARED_MEMORY[architecture], f"shared memory: {row}"
    fp8 = [row for row in report["rows"] if "fp8_kernel" in row["kernel"]]
    assert len(fp8) == (10 if architecture >= 89 else 0) and all(row["fp8"] for row in fp8)
    fused = [row for row in report["rows"] if "fused_kernel" in row["kernel"]]
    assert len(fused) == 18 and {"r13", "r16", "r64", "r128"} <= {row["kernel"].split()[-1] for row in fused}
    specialised = [row for row in report["rows"] if "specialised" in row["kernel"]]
    assert len(specialised) == (4 if architecture == 90 else 0) and all(row["registers"] for row in specialised)
    persistent = [row["kernel"] for row in gemms + fp8 if row["persistent"]]
    assert bool(persistent) == wide, persistent
    described = [row for row in gemms + fp8 + fused + specialised if row["descriptors"]]
    assert bool(described) == wide
    listed = {row["kernel"]: row["opcodes"] for row in report["rows"] if row["opcodes"] is not None}
    assert set(listed) == (set(BUDGETS) if architecture == 90 else set())
    for label, opcodes in listed.items():
        check_budget(label, opcodes)
    for row in described:
        assert row["tma"], f"no TMA: {row}"
        assert row["wgmma" if architecture == 90 else "tcgen05"], f"not on the tensor cores' own path: {row}"


def test_a_kernel_over_its_budget_is_found() -> None:
    label = "_svd_linear_fp8_kernel second pair"
    within = {"FADD": 1400, "QGMMA.64x256x32": 4, "WARPGROUP.ARRIVE": 1, "UTMALDG.2D": 6, "NOP": 900}
    check_budget(label, within)
    for more in (
        {"FADD": 1500},
        {"STS.U16": 1},
        {"WARPGROUP.ARRIVE": 4},
        {"LDL": 2},
        {"SHFL.BFLY": 1},
        {"LDG.E.64": 67},
        {"BAR.SYNC": 21},
    ):
        with pytest.raises(AssertionError):
            check_budget(label, within | more)


def test_a_small_kernel_that_reads_single_values_is_found() -> None:
    label = "_svd_linear_reduce_kernel bf16 pair of samples"
    check_budget(label, {"LDG.E.128": 4, "FADD": 300})
    for wrong in ({"LDG.E": 4, "FADD": 300}, {"LDG.E.128": 5, "FADD": 300}, {"LDG.E.128": 4, "FADD": 330}):
        with pytest.raises(AssertionError):
            check_budget(label, wrong)
