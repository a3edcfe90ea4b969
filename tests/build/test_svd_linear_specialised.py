"""The warp-specialised backward of svd_linear, run on a CPU from what Triton's compiler makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hystar_fast.kernels.svd_linear import gemm
from hystar_fast.kernels.svd_linear.launch import Modulation
from hystar_fast.kernels.tuning import SPECIALISED, Gpu
from tests.support.svd_linear_compiled import recorded


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "3.6"])
def test_results_and_order_are_right_and_nothing_is_superfluous(
    version: str, report_with: Callable[..., dict[str, Any]]
) -> None:
    report = report_with(version, "tests.support.svd_linear_specialised")
    assert len(report["problems"]) == 5
    for problem, found in report["problems"].items():
        assert set(found) == {""}, problem
    assert set(report["without order"]) == {""} and report["without arrival"] == "every partition waits"
    assert [line for line, found in report["mutants"] if not found] == [] and len(report["mutants"]) == 66
    # the barriers between the warps of a group, which the compiler adds: an arrival comes after all warps, a buffer is
    # written after the wait of the warp that stores it, and stored after all warps have written it
    order = report["ptx"]
    assert set(re.findall("(.)a", order)) == {"b"} and order.count("a") == 11
    assert len(re.findall("wb+s+fb+t", order)) == order.count("t") == 16


def backward(tokens: int = 257, rank: int = 512, **changes: object) -> list[str]:
    """Return the kernels of a backward."""
    kinds = {"gpu": Gpu((9, 0), 4), "needs_dg": True, "tile": SPECIALISED, "dtype": torch.bfloat16, "shared": False}
    kinds |= changes
    dtype, scale = kinds.pop("dtype"), torch.empty(rank) if kinds.pop("shared") else torch.empty(2, rank)
    dy, h, u = (torch.empty(shape, dtype=dtype) for shape in ((2 * tokens, 512), (2 * tokens, rank), (512, rank)))
    with recorded() as launches:
        gemm.backward(dy, u, h, Modulation(scale, None, tokens), **kinds)  # type: ignore[arg-type]
    return [launch.kernel for launch in launches]


OTHERS = {
    "an A100": {"gpu": Gpu((8, 0), 4)},
    "few tiles": {"gpu": Gpu((9, 0), 132)},
    "float32": {"dtype": torch.float32},
    "one scale for all": {"shared": True},
    "short samples": {"tokens": 63},
    "part of a tile of columns": {"rank": 520},
}


def test_the_specialised_backward_is_chosen_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, specialised = "_svd_linear_gemm_kernel", "_svd_linear_specialised_kernel"
    assert backward()[0] == specialised and backward(tile=None)[0] == usual
    monkeypatch.setattr(gemm, "SPECIALISE", True)
    assert backward(tile=None) == [specialised, "_svd_linear_reduce_kernel"]
    assert backward(tile=None, needs_dg=False)[0] == usual
    for name, changes in OTHERS.items():
        assert backward(**{"tile": None, **changes})[0] == usual, name
        with pytest.raises(ValueError, match="this tile needs Hopper"):
            backward(**changes)
