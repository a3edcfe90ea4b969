"""Sinkhorn by one sweep over the matrix an iteration, run on the CPU against the float64 reference, and who gets it."""

from __future__ import annotations

import math

import pytest
import torch

from hystar_fast.ref.sinkhorn import SinkhornStatus
from tests.support.sinkhorn_cuda_host import (
    A100,
    CLUSTER,
    H200,
    NO_BARRIERS,
    NO_GPU,
    RTX_5090,
    STREAM,
    SWEEP,
    Choice,
    Gpu,
    Host,
    check,
    paper_cost,
)

THREE = Choice(SWEEP, 0, 3)  # three blocks of 16 teams
COLUMNS = (512, 2048, 8192)  # of the shapes


@pytest.mark.parametrize(
    ("batch", "n", "m", "shape", "blocks"),
    [
        (1, 17, 12, 0, 1),
        (1, 200, 36, 0, 2),
        (2, 100, 41, 0, 3),
        (1, 40, 512, 0, 1),
        (1, 23, 511, 0, 1),
        (1, 40, 36, 1, 2),
        (3, 19, 21, 1, 3),
        (1, 17, 700, 1, 2),
        (1, 16, 20, 2, 3),
        (1, 17, 2501, 2, 1),
        (1, 16, 4100, 2, 1),
    ],
)
def test_every_shape_agrees_with_the_reference(host: Host, batch: int, n: int, m: int, shape: int, blocks: int) -> None:
    cost = paper_cost(batch, n, m)
    check(host(cost, 0.05, 5, choice=Choice(SWEEP, shape, blocks)), cost, 0.05, 5)


@pytest.mark.parametrize("shape", [0, 1, 2])
@pytest.mark.parametrize("lacking", [0, 1])
def test_a_shape_holds_all_its_columns(host: Host, shape: int, lacking: int) -> None:
    m = COLUMNS[shape] - lacking
    assert host.choose(1, 16, m, A100).shape == shape and host.choose(1, 16, COLUMNS[shape] + 1, A100).shape != shape
    cost = torch.rand(1, 3, m)
    check(host(cost, 0.3, 2, choice=Choice(SWEEP, shape, 1)), cost, 0.3, 2)


def test_a_cost_that_is_not_aligned_is_read_one_by_one(host: Host) -> None:
    cost = torch.rand(1 + 2 * 30 * 40)[1:].view(2, 30, 40)
    assert cost.data_ptr() % 16 == 4
    check(host(cost, 0.1, 4, choice=THREE), cost, 0.1, 4)


@pytest.mark.parametrize("n_iter", [1, 2, 3, 4, 5, 9])
def test_every_number_of_iterations_is_the_reference_s(host: Host, n_iter: int) -> None:
    cost = paper_cost(2, 70, 23)
    check(host(cost, 0.03, n_iter, choice=THREE), cost, 0.03, n_iter)


@pytest.mark.parametrize(("batch", "n"), [(5, 40), (40, 3), (7, 16), (2, 100)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_rows_are_shared_out_whatever_the_problems(host: Host, batch: int, n: int, blocks: int) -> None:
    """Blocks that end inside a problem, hold several, or share one with all others."""
    cost = torch.rand(batch, n, 13)
    check(host(cost, 0.1, 4, choice=Choice(SWEEP, 0, blocks)), cost, 0.1, 4)


@pytest.mark.parametrize("epsilon", [1e-2, 2e-3, 5e-4, 1e-6])
def test_scalings_are_absorbed_long_before_they_overflow(host: Host, epsilon: float) -> None:
    cost = torch.rand(2, 60, 60) * 10
    check(host(cost, epsilon, 30, choice=THREE), cost, epsilon, 30)


@pytest.mark.parametrize("outside", [2.0, math.inf])
@pytest.mark.parametrize("shape", [0, 1])
def test_scalings_that_grow_by_the_size_in_every_iteration(host: Host, shape: int, outside: float) -> None:
    """All rows but the last share the first column until what is 200 nats further away comes into play."""
    cost = torch.rand(1, 90, 90) * 0.1 + outside
    cost[:, :-1, 0], cost[:, -1, 1:] = 0.0, 0.0
    for n_iter in (8, 40):
        check(host(cost, 0.01, n_iter, choice=Choice(SWEEP, shape, 2)), cost, 0.01, n_iter)


def test_columns_far_from_the_others_do_not_underflow(host: Host) -> None:
    cost = torch.rand(2, 50, 20)
    cost[:, :, 3] += 100
    cost[:, 4] += 1e4
    check(host(cost, 0.1, 15, choice=THREE), cost, 0.1, 15)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_tolerance_stops_each_problem_at_its_own_iteration(host: Host, blocks: int) -> None:
    cost = torch.rand(4, 60, 24) * torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None, None]
    solved = host(cost, 0.05, 200, tol=1e-4, choice=Choice(SWEEP, 0, blocks))
    check(solved, cost, 0.05, 200, tol=1e-4)
    assert len(set(solved.iterations.tolist())) > 2 and (solved.status == SinkhornStatus.CONVERGED).all()


def test_a_tolerance_is_met_in_a_sweep_that_absorbs(host: Host) -> None:
    """Scalings move by powers of two far from each other, so that some problem stops while A is being built."""
    cost = torch.rand(6, 20, 18) * 6
    stopped: set[int] = set()
    for tol in (0.5, 0.1):
        solved = host(cost, 0.01, 40, tol=tol, choice=THREE)
        check(solved, cost, 0.01, 40, tol=tol)
        stopped |= set(solved.iterations.tolist())
    assert len(stopped) > 3


@pytest.mark.parametrize("m", [211, 44])
def test_a_mask_forbids_what_it_covers_whatever_lies_there(host: Host, m: int) -> None:
    cost, mask = torch.rand(2, 50, m), torch.rand(50, m) < 0.3
    cost[:, mask] = math.nan
    solved = host(cost, 0.1, 8, mask=mask, choice=THREE)
    check(solved, cost.masked_fill(mask, 0), 0.1, 8, mask=mask.expand(2, -1, -1))


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_problems_without_a_plan_do_not_affect_others(host: Host, tol: float) -> None:
    size = 40
    cost = torch.rand(7, size, size)
    cost[0, 3], cost[1, 37] = math.inf, math.inf
    cost[2, :, 4] = math.inf
    cost[3, 1, 1], cost[4, 38, 2] = math.nan, -math.inf
    half = size // 2 + 1
    cost[5, :half, :half] = math.inf
    solved = host(cost, 0.05, 6, tol=tol, choice=THREE)
    check(solved, cost, 0.05, 6, tol=tol or None)
    same_sharing = torch.rand(7, size, size)
    same_sharing[6] = cost[6]
    if tol == 0:
        assert torch.equal(solved.plan[6], host(same_sharing, 0.05, 6, choice=THREE).plan[6])


@pytest.mark.parametrize(("shape", "m", "tol"), [(0, 60, 0.0), (0, 37, 1e-3), (1, 60, 1e-3), (2, 24, 0.0)])
def test_the_order_of_threads_and_the_depth_of_the_ring_never_matter(
    host: Host, shape: int, m: int, tol: float
) -> None:
    cost = torch.rand(2, 70 if shape == 0 else 30, m) * 3
    cost[:, :10, : m // 3] = math.inf
    host.check_order(cost, 0.01, 9, tol=tol, choice=Choice(SWEEP, shape, 2))


@pytest.mark.parametrize(
    ("gpu", "batch", "n", "m", "choice"),
    [
        (H200, 1, 8192, 8192, Choice(SWEEP, 2, 132)),
        (RTX_5090, 1, 8192, 8192, Choice(SWEEP, 2, 170)),
        (H200, 1, 8192, 8193, Choice(STREAM, 0, 0)),
        (H200, 64, 1024, 1024, Choice(SWEEP, 1, 132)),
        (H200, 1, 1025, 2, Choice(SWEEP, 0, 65)),
        (H200, 1, 641, 768, Choice(SWEEP, 1, 132)),
        (H200, 1, 15, 2048, Choice(STREAM, 0, 0)),
        (H200, 100, 16, 2048, Choice(SWEEP, 1, 132)),
        (A100, 1, 193, 193, Choice(SWEEP, 0, 13)),
        (NO_BARRIERS, 1, 8192, 8192, Choice(STREAM, 0, 0)),
        (NO_BARRIERS, 1, 256, 256, Choice(CLUSTER, 0, 2)),
        (Gpu(20, 0, 48 << 10), 1, 8192, 8192, Choice(STREAM, 0, 0)),
        (NO_GPU, 1, 8192, 8192, Choice(STREAM, 0, 0)),
    ],
)
def test_the_choice_of_kernel(host: Host, gpu: Gpu, batch: int, n: int, m: int, choice: Choice) -> None:
    assert host.choose(batch, n, m, gpu) == choice
