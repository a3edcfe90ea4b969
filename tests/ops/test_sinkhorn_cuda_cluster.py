"""Sinkhorn on a cluster of thread blocks, run on the CPU against the float64 reference, and which problems get one."""

from __future__ import annotations

import math

import pytest
import torch

from hystar_fast.ref.sinkhorn import SinkhornStatus
from tests.support.sinkhorn_cuda_host import (
    A100,
    CLUSTER,
    H200,
    NO_GPU,
    RTX_5090,
    STREAM,
    SWEEP,
    TILE,
    Choice,
    Gpu,
    Host,
    check,
    paper_cost,
)

TWO = Choice(CLUSTER, 0, 2)  # blocks of 128 x 256


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
@pytest.mark.parametrize(("n", "m"), [(193, 193), (200, 40), (256, 256), (131, 251)])
def test_two_blocks_agree_with_the_reference(host: Host, n: int, m: int, epsilon: float) -> None:
    cost = paper_cost(1, n, m)
    assert host.choose(1, n, m, H200) in (TWO, Choice(CLUSTER, 0, 4)) or max(n, m) == 251
    check(host(cost, epsilon, 9, choice=TWO), cost, epsilon, 9)


@pytest.mark.parametrize(
    ("n", "m", "shape", "blocks"),
    [
        (100, 90, 0, 1),
        (300, 130, 0, 4),
        (600, 33, 0, 8),
        (60, 300, 1, 1),
        (70, 300, 1, 2),
        (257, 257, 1, 8),
        (512, 512, 1, 8),
        (530, 270, 1, 16),
        (40, 760, 2, 1),
        (300, 700, 2, 8),
        (640, 768, 2, 16),
    ],
)
def test_every_shape_and_cluster_size_agrees_with_the_reference(
    host: Host, n: int, m: int, shape: int, blocks: int
) -> None:
    cost = paper_cost(1, n, m)
    choice = Choice(CLUSTER, shape, blocks)
    if max(n, m) > 192:
        assert host.choose(1, n, m, H200) == choice
    check(host(cost, 0.05, 4, choice=choice), cost, 0.05, 4)


@pytest.mark.parametrize("n_iter", [1, 2, 3, 4, 5, 9])
def test_every_number_of_iterations_is_the_reference_s(host: Host, n_iter: int) -> None:
    cost = paper_cost(1, 141, 23)
    check(host(cost, 0.03, n_iter, choice=TWO), cost, 0.03, n_iter)


@pytest.mark.parametrize("epsilon", [1e-2, 5e-4, 1e-6])
def test_scalings_are_absorbed_long_before_they_overflow(host: Host, epsilon: float) -> None:
    cost = torch.rand(1, 140, 140) * 10
    check(host(cost, epsilon, 16, choice=TWO), cost, epsilon, 16)


@pytest.mark.parametrize("outside", [2.0, math.inf])
def test_scalings_that_grow_by_the_size_in_every_iteration(host: Host, outside: float) -> None:
    """All rows but the last share the first column until what is 200 nats further away comes into play."""
    cost = torch.rand(1, 200, 200) * 0.1 + outside
    cost[:, :-1, 0], cost[:, -1, 1:] = 0.0, 0.0
    check(host(cost, 0.01, 30), cost, 0.01, 30)


def test_a_tolerance_stops_each_problem_at_its_own_iteration(host: Host) -> None:
    cost = torch.rand(3, 135, 120)
    cost[1] *= 3
    solved = host(cost, 0.1, 60, tol=1e-3, choice=TWO)
    check(solved, cost, 0.1, 60, tol=1e-3)
    assert len(set(solved.iterations.tolist())) > 1 and (solved.status == SinkhornStatus.CONVERGED).all()


def test_a_mask_forbids_what_it_covers_whatever_lies_there(host: Host) -> None:
    cost, mask = torch.rand(2, 150, 211), torch.rand(150, 211) < 0.3
    cost[:, mask] = math.nan
    check(host(cost, 0.1, 8, mask=mask), cost.masked_fill(mask, 0), 0.1, 8, mask=mask.expand(2, -1, -1))


def test_problems_without_a_plan_do_not_affect_others(host: Host) -> None:
    """The cause lies in either block: empty rows, an empty column, NaN, too few columns for many rows."""
    size = 140
    cost = torch.rand(7, size, size)
    cost[0, 3], cost[1, 137] = math.inf, math.inf
    cost[2, :, 4] = math.inf
    cost[3, 1, 1], cost[4, 138, 2] = math.nan, -math.inf
    half = size // 2 + 1
    cost[5, :half, :half] = math.inf
    solved = host(cost, 0.05, 4, choice=TWO)
    check(solved, cost, 0.05, 4)
    assert torch.equal(solved.plan[-1], host(cost[-1:], 0.05, 4, choice=TWO).plan[0])


@pytest.mark.parametrize(("size", "choice"), [(140, TWO), (150, Choice(CLUSTER, 1, 4)), (75, Choice(CLUSTER, 2, 2))])
def test_the_order_of_threads_and_blocks_never_matters(host: Host, size: int, choice: Choice) -> None:
    cost = torch.rand(1, size, size) * 3
    cost[:, : size // 3, : size // 3] = math.inf
    host.check_order(cost, 0.004, 9, tol=1e-6, choice=choice)


@pytest.mark.parametrize(
    ("gpu", "batch", "n", "m", "choice"),
    [
        (H200, 1, 1, 1, Choice(TILE, 0, 1)),
        (NO_GPU, 4096, 192, 192, Choice(TILE, 0, 1)),
        (H200, 1, 193, 193, Choice(CLUSTER, 0, 2)),
        (H200, 64, 256, 256, Choice(CLUSTER, 0, 2)),
        (H200, 4096, 256, 256, Choice(CLUSTER, 0, 2)),
        (H200, 1, 257, 256, Choice(CLUSTER, 0, 4)),
        (H200, 1, 256, 257, Choice(CLUSTER, 1, 4)),
        (H200, 1, 512, 512, Choice(CLUSTER, 1, 8)),
        (H200, 1, 1024, 256, Choice(CLUSTER, 0, 8)),
        (H200, 1, 1024, 512, Choice(CLUSTER, 1, 16)),
        (RTX_5090, 1, 1024, 512, Choice(SWEEP, 0, 64)),
        (H200, 1, 640, 768, Choice(CLUSTER, 2, 16)),
        (RTX_5090, 1, 320, 768, Choice(CLUSTER, 2, 8)),
        (RTX_5090, 1, 321, 768, Choice(SWEEP, 1, 81)),
        (H200, 1, 641, 768, Choice(SWEEP, 1, 132)),
        (H200, 1, 640, 769, Choice(SWEEP, 1, 132)),
        (H200, 1, 1025, 2, Choice(SWEEP, 0, 65)),
        (H200, 1, 1 << 40, 1 << 20, Choice(STREAM, 0, 0)),
        (A100, 1, 193, 193, Choice(SWEEP, 0, 13)),
        (NO_GPU, 1, 256, 256, Choice(STREAM, 0, 0)),
        # mostly empty blocks: a cluster while all of them run at once, then off chip
        (H200, 132, 5, 300, Choice(CLUSTER, 1, 1)),
        (H200, 133, 5, 300, Choice(STREAM, 0, 0)),
        (H200, 10000, 11, 300, Choice(CLUSTER, 1, 1)),
    ],
)
def test_the_choice_of_kernel(host: Host, gpu: Gpu, batch: int, n: int, m: int, choice: Choice) -> None:
    assert host.choose(batch, n, m, gpu) == choice


@pytest.mark.parametrize("gpu", [H200, RTX_5090])
def test_a_chosen_cluster_holds_the_problem(host: Host, gpu: Gpu) -> None:
    shapes = host.cluster_shapes()
    for n in range(1, 1100, 7):
        for m in (1, 192, 193, 256, 257, 300, 512, 513, 768, 800):
            kind, index, blocks = host.choose(8, n, m, gpu)
            if kind == CLUSTER:
                shape = shapes[index]
                assert n <= blocks * shape.rows and m <= shape.columns and blocks <= min(shape.most, gpu.cluster)
            else:
                off_chip = SWEEP if n >= 16 else STREAM
                assert kind == (TILE if max(n, m) <= 192 else off_chip)
