"""svd_linear names the argument, what it needs and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hystar_fast as hf


def good() -> dict[str, Any]:
    return {
        "x": torch.randn(2, 3, 4),
        "u": torch.randn(6, 5),
        "scale": torch.randn(2, 5),
        "vh": torch.randn(5, 4),
        "bias": torch.randn(6),
        "index": None,
    }


def bank(index: Any) -> dict[str, Any]:
    return {"scale": torch.randn(3, 5), "index": index}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": torch.randint(0, 2, (2, 3, 4))}, TypeError, "x must be float16.*got torch.int64"),
        ({"x": torch.randn(2, 3, 5)}, ValueError, r"x must have 4 features.*got shape \[2, 3, 5\]"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must have 4 features.*got shape \[\]"),
        (
            {"x": torch.randn(4)},
            ValueError,
            r"x must have shape \[B, T, in\] or \[B, in\] if scale has two .*got \[4\]",
        ),
        ({"x": torch.randn(2, 3, 4).half()}, TypeError, "u must have the dtype of x, torch.float16, got torch.float32"),
        (
            {"u": torch.randn(6, 4)},
            ValueError,
            r"u and vh must have shapes \[out, r\] and \[r, in\], got \[6, 4\] and \[5, 4\]",
        ),
        ({"u": torch.randn(6)}, ValueError, "u and vh must have shapes"),
        ({"vh": torch.randn(1, 5, 4)}, ValueError, "u and vh must have shapes"),
        ({"u": torch.randn(6, 5, dtype=torch.complex64)}, TypeError, "u must be float16.*got torch.complex64"),
        ({"u": torch.randn(6, 5, requires_grad=True)}, ValueError, "u must be frozen.*pass it detached"),
        ({"vh": torch.randn(5, 4, requires_grad=True)}, ValueError, "vh must be frozen.*pass it detached"),
        ({"vh": torch.randn(5, 4, device="meta")}, ValueError, "vh must be on the device of x, cpu, got meta"),
        ({"scale": torch.randn(2, 4)}, ValueError, r"scale must have shape \[5\].*got \[2, 4\]"),
        (
            {"scale": torch.randn(3, 5)},
            ValueError,
            r"scale must have one row for each sample, \[2, 5\], got \[3, 5\]; pass index",
        ),
        ({"scale": torch.randn(2, 1, 5)}, ValueError, r"scale must have shape \[5\].*got \[2, 1, 5\]"),
        ({"scale": torch.ones(2, 5, dtype=torch.int32)}, TypeError, "scale must be float16.*got torch.int32"),
        ({"bias": torch.randn(5)}, ValueError, r"bias must have shape \[6\], got \[5\]"),
        (
            {"bias": torch.randn(6).double()},
            TypeError,
            "bias must have the dtype of x, torch.float32, got torch.float64",
        ),
        ({"scale": torch.randn(5), "index": torch.tensor([0, 1])}, ValueError, r"scale must be a bank \[K, 5\]"),
        (bank([0, 1]), TypeError, "index must be an int32 or int64 Tensor, got list"),
        (bank(torch.tensor([0.0, 1.0])), TypeError, "index must be an int32 or int64 Tensor, got torch.float32"),
        (bank(torch.tensor([0, 1, 2])), ValueError, r"index must have .*shape \[2\], got \[3\]"),
        (bank(torch.tensor([0, 3])), ValueError, r"index must be in \[0, 3\).*got 0\.\.3"),
        (bank(torch.tensor([-1, 0])), ValueError, r"index must be in \[0, 3\).*got -1\.\.0"),
        (bank(torch.zeros(2, dtype=torch.long, device="meta")), ValueError, "index must be on the device of x, cpu"),
        ({"scale": torch.randn(0, 5), "index": torch.tensor([0, 0])}, ValueError, "scale must have at least one row"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = good() | change
    with pytest.raises(error, match=message):
        hf.svd_linear(**arguments)


@pytest.mark.parametrize("rows", [4, 4096])
def test_an_index_out_of_range_is_found_on_both_paths(rows: int) -> None:
    """4096 tokens a style at rank 4 of a 4 x 4 layer are materialised, 4 are not."""
    square: Tensor = torch.randn(4, 4)
    with pytest.raises(ValueError, match="index must be in"):
        hf.svd_linear(torch.randn(2, rows, 4), square, torch.randn(2, 4), square, index=torch.tensor([0, 2]))


def test_frozen_factors_may_require_grad_where_none_is_recorded() -> None:
    arguments = good() | {"u": torch.randn(6, 5, requires_grad=True)}
    with torch.no_grad():
        assert hf.svd_linear(**arguments).shape == (2, 3, 6)


def test_empty_bank_and_empty_batch() -> None:
    x, empty = torch.randn(0, 3, 4), torch.zeros(0, dtype=torch.long)
    y = hf.svd_linear(x, torch.randn(6, 5), torch.randn(0, 5), torch.randn(5, 4), index=empty)
    assert y.shape == (0, 3, 6)
