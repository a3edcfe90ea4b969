"""perturbed_topk on every path of the CPU: each instruction set, threads, and torch alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hystar_fast import perturbed_topk
from hystar_fast.ops.perturbed_topk import cpu as perturbed_topk_cpu
from hystar_fast.ops.perturbed_topk import torch as perturbed_topk_torch
from tests.support.perturbed_topk_cases import SHAPES, assert_parity, generator, make_mask, make_scores, run
from tests.support.sinkhorn_cases import isas

PATHS = [*isas(), "torch"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(perturbed_topk_cpu, "extension", lambda: None)
    else:
        monkeypatch.setattr(perturbed_topk_cpu, "ISA", name)
    return name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_path_runs_what_it_says(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    real = perturbed_topk_torch.forward
    monkeypatch.setattr(perturbed_topk_torch, "forward", lambda *arguments: called.append("torch") or real(*arguments))
    perturbed_topk(make_scores(2, 5), 2, sigma=0.1, samples=3)
    assert bool(called) == (path == "torch")


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbed_topk_cpu, "ISA", "avx1024")
    with pytest.raises(ValueError, match="this CPU has no avx1024"):
        perturbed_topk(make_scores(2, 5), 2, sigma=0.1, samples=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("b", "samples", "n", "k"), SHAPES)
def test_parity(b: int, samples: int, n: int, k: int, dtype: torch.dtype, path: str) -> None:
    for sigma in (1e-6, 0.1, 10.0):
        assert_parity(make_scores(b, n, dtype), k, sigma=sigma, samples=samples)
        assert_parity(make_scores(b, n, dtype), k, sigma=sigma, samples=samples, mask=make_mask(b, n))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_go_to_the_first(levels: int, dtype: torch.dtype, path: str) -> None:
    """Scores of few values under noise below their last digit: every sample has ties at the limit."""
    scores = torch.randint(1, levels + 1, (3, 67)).to(dtype)
    for k in (1, 8, 33, 66):
        assert_parity(scores, k, sigma=1e-30, samples=12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scores_of_very_different_sizes(dtype: torch.dtype, path: str) -> None:
    """Interpolation between thresholds fails here: the selection that always ends takes over."""
    scores = 10 ** (torch.rand(2, 131, dtype=torch.float64) * 70 - 35)
    for sigma in (1e-30, 1.0, 1e30):
        assert_parity(scores.to(dtype), 40, sigma=sigma, samples=20)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("b", "samples", "n"), [(1, 6007, 331), (7, 1009, 196)])
def test_threads_share_the_samples(
    b: int, samples: int, n: int, count: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough samples that threads are worth their start; a thread may begin and end within an item of the batch."""
    scores, mask = make_scores(b, n, torch.float32), make_mask(b, n)
    scores[-1, 1] = torch.nan
    results = []
    for number in (1, count):
        torch.set_num_threads(number)
        results.append(run(perturbed_topk, scores, 9, sigma=0.05, samples=samples, mask=mask))
    assert torch.equal(results[0][0].nan_to_num(2), results[1][0].nan_to_num(2))
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-4)


def test_many_python_threads_at_once() -> None:
    batches = [make_scores(4, 50) for _ in range(4)]
    expected = [
        run(perturbed_topk, scores, 5, seed=index, sigma=0.1, samples=50) for index, scores in enumerate(batches)
    ]
    results: list[list[Tensor]] = [[]] * 4

    def work(index: int) -> None:
        for _ in range(5):
            results[index] = run(perturbed_topk, batches[index], 5, seed=index, sigma=0.1, samples=50)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for got, want in zip(results, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_evaluation_keeps_no_positions(path: str) -> None:
    scores, noise = make_scores(2, 9), torch.randn(2, 5, 9, generator=generator())
    forbidden = make_mask(2, 9)
    soft, chosen = perturbed_topk_cpu.forward(scores, noise, forbidden, 3, 0.1, False)
    kept, positions = perturbed_topk_cpu.forward(scores, noise, forbidden, 3, 0.1, True)
    assert chosen.shape == (0,) and torch.equal(soft, kept)
    assert positions.dtype == torch.int32 and (positions.diff(dim=-1) > 0).all()
