"""The element-wise work of svd_linear on every path of the CPU: each instruction set, threads, and torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.svd_linear import cpu_rows
from tests.support.sinkhorn_cases import isas
from tests.support.svd_linear_cases import make_inputs

NARROW = [torch.float32, torch.bfloat16]
# one thread of 32 rows and 512 columns a turn, and one value more or less; many samples, and fewer than threads
SHAPES = [(1, 1, 1), (3, 31, 17), (2, 33, 513), (1, 97, 1025), (5, 64, 512), (4, 0, 8), (0, 3, 8)]


@pytest.fixture(params=[*isas(), "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(cpu_rows, "extension", lambda: None)
    else:
        monkeypatch.setattr(cpu_rows, "ISA", name)
    return name


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _rows(samples: int, tokens: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    dg, h = torch.randn(2, samples * tokens, rank).to(dtype)
    return dg, h, torch.randn(samples, rank)


def _scaled(rows: Tensor, scale: Tensor, tokens: int) -> Tensor:
    """Return the products, made in float32 and rounded once."""
    wide = rows.float().view(len(scale), tokens, rows.shape[1]) * scale.float().unsqueeze(1)
    return wide.to(rows.dtype).view(rows.shape)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_rounded_once_and_sums_cover_every_row(
    shape: tuple[int, int, int], dtype: torch.dtype, threads: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_rows, "_BLOCK", 1 << 12)
    samples, tokens, rank = shape
    dg, h, scale = _rows(*shape, dtype)
    expected = _scaled(dg, scale, tokens)
    out = torch.full_like(dg, float("nan"))
    cpu_rows.scale_rows(dg, scale, tokens, out=out)
    assert torch.equal(out, expected)

    true = (dg.double() * h.double()).view(samples, tokens, rank).sum(1)
    before = dg.clone()
    for scaled in (False, True):
        sums = cpu_rows.sum_and_scale(dg, h, scale, tokens, scaled=scaled)
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums.double(), true, rtol=1e-5, atol=1e-5)
        assert torch.equal(dg, expected if scaled else before)


def test_h_of_another_dtype_than_the_gradient_is_read_as_what_it_is(path: str) -> None:
    dg, _, scale = _rows(2, 33, 17, torch.bfloat16)
    h = torch.randn(66, 17)
    sums = cpu_rows.sum_and_scale(dg, h, scale, 33, scaled=False)
    torch.testing.assert_close(sums.double(), (dg.double() * h.double()).view(2, 33, 17).sum(1), rtol=1e-5, atol=1e-5)


def test_many_tokens_lose_no_accuracy(path: str) -> None:
    """A plain float32 sum of 2**18 times 0.1 is off by 1e-3 of it, which is what the sums of 32 rows avoid."""
    ones = torch.ones(1 << 18, 1)
    (total,) = cpu_rows.sum_and_scale(0.1 * ones, ones, torch.ones(1, 1), 1 << 18, scaled=False)
    assert total.item() == pytest.approx((1 << 18) * torch.tensor(0.1).double().item(), rel=1e-4)


def test_rounding_keeps_ties_even_infinity_and_nan(path: str) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).view(-1, 1)
    for factor in (1.0, 1.00390625, 3.0e38, -1.0 / 3, float("nan"), float("inf")):
        scale = torch.tensor([[factor]])
        out = torch.empty_like(bits)
        cpu_rows.scale_rows(bits, scale, len(bits), out=out)
        expected = _scaled(bits, scale, len(bits))
        assert torch.equal(out.isnan(), expected.isnan())
        kept = ~expected.isnan()
        assert torch.equal(out[kept].view(torch.int16), expected[kept].view(torch.int16))


@pytest.mark.parametrize(
    ("rows", "scale", "native"),
    [
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float64, False),
        (torch.float64, torch.float64, False),
    ],
    ids=str,
)
def test_the_extension_runs_for_the_dtypes_that_it_knows(
    rows: torch.dtype, scale: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    real = cpu_rows._pass

    def spy(*arguments: Any) -> None:
        called.append(arguments)
        real(*arguments)

    monkeypatch.setattr(cpu_rows, "_pass", spy)
    dg, _, row_scale = _rows(2, 5, 7, rows)
    row_scale = row_scale.to(scale)
    out = torch.empty_like(dg)
    cpu_rows.scale_rows(dg, row_scale, 5, out=out)
    assert bool(called) == native
    torch.testing.assert_close(out, (dg.view(2, 5, 7) * row_scale.unsqueeze(1)).to(rows).view(10, 7))


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_rows, "ISA", "avx1024")
    x, u, scale, vh, bias, _ = make_inputs(2, 3, 4, 5, 3, "sample", torch.float32)
    with pytest.raises(ValueError, match="this CPU has no avx1024"):
        hf.svd_linear(x, u, scale, vh, bias)
