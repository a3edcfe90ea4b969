"""style_nce on every path of the CPU: each instruction set with its own products and with torch's, and torch alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hystar_fast.ops.style_nce import cpu as style_nce_cpu
from hystar_fast.ops.style_nce import style_nce
from hystar_fast.ops.style_nce import torch as style_nce_torch
from tests.support.sinkhorn_cases import isas
from tests.support.style_nce_contract import (  # noqa: F401 - collected here, with the `path` below
    WEIGHTS,
    test_a_sample_that_is_not_finite_affects_only_itself,
    test_a_second_backward_gives_the_same_gradient,
    test_extreme_options_stay_finite,
    test_gradient_of_one_input_alone,
    test_gradient_of_the_mean_is_that_of_equal_rows,
    test_parity_with_masks,
    test_poisoned_buffers,
    test_size_of_the_embeddings_does_not_matter,
    test_strides,
    test_without_negatives_loss_and_gradients_are_zero,
    test_zero_vector_has_cosine_zero_and_no_gradient,
)
from tests.support.style_nce_parity import assert_parity, make_pair, run, same_class

# one vector and its parts, tiles and their remainders, both below and above each width
SHAPES = [(1, 5), (2, 3), (5, 16), (31, 17), (48, 768), (67, 131), (130, 33)]
ISAS = isas()
PATHS = [*ISAS, *(f"{isa}, torch's products" for isa in ISAS), "torch"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(style_nce_cpu, "extension", lambda: None)
    else:
        monkeypatch.setattr(style_nce_cpu, "ISA", name.split(",")[0])
        monkeypatch.setattr(style_nce_cpu, "MAX_OWN_PRODUCT", dict.fromkeys(ISAS, 0 if "," in name else 1 << 62))
    return name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_path_runs_what_it_says(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    real = style_nce_torch.forward
    monkeypatch.setattr(style_nce_torch, "forward", lambda *arguments: called.append("torch") or real(*arguments))
    style_nce(*make_pair(4, 3))
    assert bool(called) == (path == "torch")


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_nce_cpu, "ISA", "avx1024")
    with pytest.raises(ValueError, match="this CPU has no avx1024"):
        style_nce(*make_pair(4, 3))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_parity(n: int, d: int, dtype: torch.dtype, weights: str, path: str) -> None:
    assert_parity(*make_pair(n, d, dtype), weights=weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_parity_of_options(dtype: torch.dtype, path: str) -> None:
    for options in ({"temperature": 0.01}, {"lam": 0.3}, {"lam": 10.0}, {"gamma": 1e-3}, {"gamma": 1e6}, {"n_iter": 1}):
        for weights in ("paper", "authors"):
            assert_parity(*make_pair(24, 16, dtype), weights=weights, **options)


def test_parity_of_a_large_batch(path: str) -> None:
    """Large enough that torch works the rows off in several blocks, the last partial."""
    assert_parity(*make_pair(1031, 8), gamma="auto", mask=same_class(1031, 400))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("n", "d"), [(131, 12007), (1031, 40)])
def test_threads_share_the_rows(n: int, d: int, count: int, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough that the passes over embeddings, and those over pairs, pay for threads; the rows do not divide by them."""
    inputs = make_pair(n, d)
    for own in (0, 1 << 62):
        monkeypatch.setattr(style_nce_cpu, "MAX_OWN_PRODUCT", dict.fromkeys(ISAS, own))
        torch.set_num_threads(1)
        alone = run(style_nce, *inputs)
        torch.set_num_threads(count)
        for got, want in zip(run(style_nce, *inputs), alone, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_many_python_threads_at_once() -> None:
    pairs = [make_pair(48, 64) for _ in range(4)]
    expected = [run(style_nce, *pair) for pair in pairs]
    results: list[tuple[Tensor, ...]] = [()] * 4

    def work(index: int) -> None:
        for _ in range(5):
            results[index] = run(style_nce, *pairs[index])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for got, want in zip(results, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradient_by_finite_differences(weights: str, path: str) -> None:
    """Differentiate in float64 along a random direction; uniform weights or one negative, which cannot change."""
    query, target = make_pair(7 if weights == "uniform" else 2, 5, torch.float64)
    mask = same_class(7, 3) if weights == "uniform" else None
    turn = [torch.randn_like(tensor) for tensor in (query, target)]

    def loss(step: float) -> Tensor:
        return style_nce(query + step * turn[0], target + step * turn[1], weights=weights, mask=mask, temperature=0.5)

    inputs = [tensor.clone().requires_grad_() for tensor in (query, target)]
    gradients = torch.autograd.grad(style_nce(*inputs, weights=weights, mask=mask, temperature=0.5), inputs)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, turn, strict=True))
    torch.testing.assert_close((loss(1e-5) - loss(-1e-5)) / 2e-5, slope, rtol=1e-6, atol=1e-9)
