"""style_nce of batches whose matrices are never whole: the same values, gradients and exceptions, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hystar_fast import ref
from hystar_fast.ops.style_nce import stream, style_nce
from hystar_fast.ref.style_nce import WEIGHTS
from hystar_fast.ref.style_nce import style_nce as reference
from tests.support.style_nce_parity import assert_parity, make_pair, run, same_class
from tests.support.tolerance import relative_error


@pytest.fixture(autouse=True)
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is streamed, in blocks of a few rows."""
    monkeypatch.setattr(stream, "MAX_MATRIX_BYTES", 0)
    monkeypatch.setattr(stream, "_BLOCK_ELEMENTS", 7 * 31)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a pass over the rows."""
    passes: list[int] = []
    rows = stream.Rows.__iter__

    def counted(self: stream.Rows) -> object:
        passes.append(len(self.finite))
        return rows(self)

    monkeypatch.setattr(stream.Rows, "__iter__", counted)
    return passes


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 31, 64])
def test_parity(n: int, dtype: torch.dtype, weights: str) -> None:
    assert_parity(*make_pair(n, 24, dtype), weights=weights)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gamma", [80.0, "auto"])
@pytest.mark.parametrize("classes", [1, 2, 5], ids=["no plan", "a class of half", "five classes"])
def test_parity_with_masks(classes: int, gamma: float | str, weights: str) -> None:
    assert_parity(*make_pair(30, 16), weights=weights, gamma=gamma, mask=same_class(30, classes))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_auto_gamma_counts_the_negatives_of_each_row(weights: str) -> None:
    """The masks leave a different number of negatives in each row, so no fixed gamma gives the same losses."""
    query, target = make_pair(30, 16)
    feasible = torch.rand(30, 30) < 0.3
    infeasible = torch.arange(30) >= torch.arange(4, 34)[:, None]
    for mask in (feasible, infeasible):
        assert len((~mask).sum(1).unique()) > 5
    for mask in (None, feasible, infeasible):
        assert_parity(query, target, weights=weights, gamma="auto", mask=mask)
        loss = style_nce(query, target, weights=weights, gamma="auto", mask=mask)
        assert (loss - style_nce(query, target, weights=weights, gamma=80.0, mask=mask)).abs() > 0.1


def test_a_mask_without_a_plan_drops_the_columns() -> None:
    """Rows left with negatives, but a class of more than half: decided by a flow, not by an empty row."""
    labels = torch.tensor([0] * 6 + [1, 2, 3, 4])
    assert_parity(*make_pair(10, 8, torch.float64), mask=labels[:, None] == labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_nearly_equal_targets_in_a_half_type(dtype: torch.dtype) -> None:
    """Their parts cancel, so that a rounded weight would leave more than the gradient itself."""
    torch.manual_seed(0)
    centre = torch.randn(16)
    query, target = ((centre + 0.03 * torch.randn(60, 16)).to(dtype) for _ in range(2))
    wide = [x.double().requires_grad_() for x in (query, target)]
    truth = torch.autograd.grad(reference(*wide), wide)
    inputs = [x.requires_grad_() for x in (query, target)]
    found = torch.autograd.grad(style_nce(*inputs), inputs)
    for mine, other in zip(found, truth, strict=True):
        assert relative_error(mine, other) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("options", [{"lam": 0.2}, {"epsilon": 0.01}, {"temperature": 0.01}, {"n_iter": 1}])
def test_parity_of_options(options: dict[str, float]) -> None:
    assert_parity(*make_pair(40, 16, torch.float64), **options)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 0.0])
def test_a_poisoned_or_zero_sample_is_its_own_affair(poison: float) -> None:
    query, target = make_pair(20, 8)
    query[3] = poison
    ours, truth = (run(function, query, target) for function in (style_nce, reference))
    assert ours[0].isnan().tolist() == [poison != 0.0 and i == 3 for i in range(20)]
    for mine, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_forward_and_backward_pass_over_the_rows_once_an_iteration_and_once_each(calls: list[int]) -> None:
    query, target = make_pair(31, 8)
    style_nce(query.requires_grad_(), target, n_iter=5).backward()
    assert len(calls) == 5 + 1 + 1


def test_mean_is_the_mean_of_the_rows() -> None:
    query, target = make_pair(31, 8, torch.float64)
    query.requires_grad_()
    mean, rows = style_nce(query, target), style_nce(query, target, reduction="none").mean()
    torch.testing.assert_close(mean, rows)
    torch.testing.assert_close(torch.autograd.grad(mean, query), torch.autograd.grad(rows, query))
    with torch.no_grad():
        torch.testing.assert_close(style_nce(query, target), mean.detach())


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked: bool) -> None:
    query, target = make_pair(12, 8)
    options = (same_class(12, 4) if masked else None, 0.07, None, 1.0, 0.1, 3, "paper")
    torch.library.opcheck(torch.ops.hystar_fast.style_nce_stream_forward.default, (query, target, *options, True))
    _, *saved = torch.ops.hystar_fast.style_nce_stream_forward(query, target, *options, True)
    arguments = (torch.tensor(0.5), *saved, *options, True, False)
    torch.library.opcheck(torch.ops.hystar_fast.style_nce_stream_backward.default, arguments)


def test_compile_fullgraph() -> None:
    query, target = (x.requires_grad_() for x in make_pair(16, 8))
    eager = style_nce(query, target)
    compiled = torch.compile(style_nce, fullgraph=True, backend="aot_eager")(query, target)
    torch.testing.assert_close(compiled, eager)
    grads = (torch.autograd.grad(loss, (query, target)) for loss in (compiled, eager))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_through_the_plan_are_not_streamed(calls: list[int]) -> None:
    query, target = make_pair(9, 8, torch.float64)
    query.requires_grad_()
    loss = style_nce(query, target, plan_grad="unroll")
    assert not calls
    torch.testing.assert_close(loss, ref.style_nce(query, target, plan_grad="unroll"))


MEMORY = """
import torch
import hystar_fast as hf
from hystar_fast.ops.style_nce import stream
from tests.support.memory import peak_memory
stream._BLOCK_ELEMENTS = 1 << 20
n = 20480
assert stream.should_stream(n, torch.float32)
query, target = torch.randn(n, 8, requires_grad=True), torch.randn(n, 8)
hf.style_nce(query[:64], target[:64], n_iter=1).backward()
before = peak_memory()
hf.style_nce(query, target, n_iter=1).backward()
assert query.grad.isfinite().all() and (query.grad != 0).any()
print((peak_memory() - before) / 2**20)
"""


def test_no_matrix_of_the_whole_batch_is_ever_held() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20480**2 * 4 / 2**20 / 10  # MiB; one matrix would be 1600
