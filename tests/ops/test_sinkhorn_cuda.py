"""The CUDA Sinkhorn: its block algorithms run on the CPU against the float64 reference; on a GPU, the kernels too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hystar_fast.ops import native
from hystar_fast.ref.sinkhorn import SinkhornStatus
from tests.support.gpu import requires_cuda
from tests.support.sinkhorn_cuda_host import Host, Solved, check, empty_outputs, paper_cost

SIZES = [(1, 1), (2, 2), (5, 7), (17, 17), (32, 32), (31, 48), (48, 48), (64, 64), (65, 33), (100, 100), (130, 127)]


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_a_tile_agrees_with_the_reference(host: Host, n: int, m: int, epsilon: float) -> None:
    n_iter = 20 if max(n, m) <= 100 else 9
    cost = paper_cost(2 if n < 64 else 1, n, m)
    check(host(cost, epsilon, n_iter), cost, epsilon, n_iter)


@pytest.mark.parametrize(("n", "m"), [(192, 192), (3, 180)])
def test_the_largest_tile_agrees_with_the_reference(host: Host, n: int, m: int) -> None:
    cost = paper_cost(1, n, m)
    check(host(cost, 0.05, 6), cost, 0.05, 6)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (5, 7), (17, 17), (33, 65), (48, 48)])
def test_streaming_agrees_with_the_reference(host: Host, n: int, m: int) -> None:
    cost = paper_cost(1, n, m)
    check(host(cost, 0.05, 12, streaming=True), cost, 0.05, 12)


@pytest.mark.parametrize(("n", "m"), [(200, 200), (3, 300), (250, 9)])
def test_sizes_beyond_the_tiles_stream(host: Host, n: int, m: int) -> None:
    cost = paper_cost(1, n, m)
    check(host(cost, 0.1, 3, streaming=True), cost, 0.1, 3)


@pytest.mark.parametrize("n_iter", [1, 2, 3, 4, 5, 8, 9, 50])
def test_every_number_of_iterations_is_the_reference_s(host: Host, n_iter: int) -> None:
    cost = paper_cost(2, 19, 23)
    check(host(cost, 0.03, n_iter), cost, 0.03, n_iter)


@pytest.mark.parametrize("epsilon", [1e-2, 2e-3, 5e-4, 1e-6])
@pytest.mark.parametrize("size", [20, 70])
def test_scalings_are_absorbed_long_before_they_overflow(host: Host, size: int, epsilon: float) -> None:
    cost = torch.rand(1, size, size) * 10
    check(host(cost, epsilon, 40), cost, epsilon, 40)


@pytest.mark.parametrize("outside", [2.0, math.inf])
@pytest.mark.parametrize(("size", "streaming"), [(31, False), (60, False), (90, False), (31, True)])
def test_scalings_that_grow_by_the_size_in_every_iteration(
    host: Host, size: int, streaming: bool, outside: float
) -> None:
    """All rows but the last share the first column until what is 200 nats further away comes into play."""
    cost = torch.rand(1, size, size) * 0.1 + outside
    cost[:, :-1, 0], cost[:, -1, 1:] = 0.0, 0.0
    for n_iter in (8, 60):
        check(host(cost, 0.01, n_iter, streaming=streaming), cost, 0.01, n_iter)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_far_from_the_others_do_not_underflow(host: Host, streaming: bool) -> None:
    cost = torch.rand(2, 20, 20)
    cost[:, :, 3] += 100
    cost[:, 4] += 1e4
    check(host(cost, 0.1, 15, streaming=streaming), cost, 0.1, 15)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tolerance_stops_each_problem_at_its_own_iteration(host: Host, streaming: bool) -> None:
    cost = torch.rand(3, 20, 20)
    solved = host(cost, 0.05, 200, tol=1e-4, streaming=streaming)
    check(solved, cost, 0.05, 200, tol=1e-4)
    assert len(set(solved.iterations.tolist())) > 1 and (solved.status == SinkhornStatus.CONVERGED).all()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mask_forbids_what_it_covers_whatever_lies_there(host: Host, streaming: bool) -> None:
    cost, mask = torch.rand(2, 13, 11), torch.rand(13, 11) < 0.3
    cost[:, mask] = (
        torch.tensor([math.nan, -math.inf, math.inf]).repeat(int(mask.sum()))[: 2 * int(mask.sum())].view(2, -1)
    )
    check(
        host(cost, 0.1, 30, mask=mask, streaming=streaming),
        cost.masked_fill(mask, 0),
        0.1,
        30,
        mask=mask.expand(2, -1, -1),
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("size", [9, 40, 70])
def test_problems_without_a_plan_do_not_affect_others(host: Host, size: int, streaming: bool) -> None:
    cost = torch.rand(6, size, size)
    cost[0, 3, :] = math.inf
    cost[1, :, 4] = math.inf
    cost[2, 1, 1] = math.nan
    cost[3, 2, 2] = -math.inf
    half = size // 2 + 1
    cost[4, :half, :half] = math.inf  # more rows than columns left to them
    n_iter = 12 if size < 20 else 4
    if streaming and size > 20:
        cost, n_iter = cost[[0, 2, 4, 5]], 3
    solved = host(cost, 0.05, n_iter, streaming=streaming)
    check(solved, cost, 0.05, n_iter)
    alone = host(cost[-1:], 0.05, n_iter, streaming=streaming)
    assert torch.equal(solved.plan[-1], alone.plan[0])


def test_feasibility_is_exact_on_sparse_masks(host: Host) -> None:
    """Few allowed entries and few iterations: the degrees decide nothing, augmenting paths do."""
    generator = torch.Generator().manual_seed(3)
    statuses: set[int] = set()
    for n, m in [(6, 6), (8, 6), (5, 7), (12, 12), (9, 3)]:
        cost = torch.rand(12, n, m, generator=generator)
        cost[torch.rand(12, n, m, generator=generator) < 0.62] = math.inf
        solved = host(cost, 0.01, 3)
        check(solved, cost, 0.01, 3)
        statuses |= set(solved.status.tolist())
    assert statuses == {SinkhornStatus.NOT_CONVERGED, SinkhornStatus.INFEASIBLE}


@pytest.mark.parametrize(("size", "streaming"), [(48, False), (64, False), (70, False), (24, True)])
def test_the_order_of_threads_never_matters(host: Host, size: int, streaming: bool) -> None:
    cost = torch.rand(1, size, size) * 3
    cost[:, : size // 3, : size // 3] = math.inf
    host.check_order(cost, 0.004, 12, tol=1e-6, streaming=streaming)


@settings(max_examples=40)
@given(
    n=st.integers(1, 24),
    m=st.integers(1, 24),
    epsilon=st.sampled_from([1.0, 0.1, 0.02]),
    forbidden=st.sampled_from([0.0, 0.2, 0.6]),
    seed=st.integers(0, 2**16),
)
def test_permuting_a_problem_permutes_its_plan(
    host: Host, n: int, m: int, epsilon: float, forbidden: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(1, n, m, generator=generator)
    cost[torch.rand(1, n, m, generator=generator) < forbidden] = math.inf
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    solved, permuted = host(cost, epsilon, 10), host(cost[:, rows][:, :, columns], epsilon, 10)
    check(solved, cost, epsilon, 10)
    assert permuted.status.tolist() == solved.status.tolist()
    torch.testing.assert_close(permuted.plan, solved.plan[:, rows][:, :, columns], rtol=1e-4, atol=1e-6)


def on_gpu(cost: Tensor, epsilon: float, n_iter: int, mask: Tensor | None = None, tol: float = 0.0) -> Solved:
    module = native.extension()
    assert module is not None, native.extension_problem()
    cost = cost.float().cuda().contiguous()
    forbidden = None if mask is None else mask.expand_as(cost).cuda().contiguous()
    batch, n, m = cost.shape
    solved = empty_outputs(cost)
    workspace = torch.empty(module.sinkhorn_cuda_workspace(batch, n, m), dtype=torch.uint8, device=cost.device)
    module.sinkhorn_cuda_forward(
        cost.data_ptr(),
        0 if forbidden is None else forbidden.data_ptr(),
        *(tensor.data_ptr() for tensor in (solved.plan, solved.u, solved.v, solved.status, solved.error)),
        solved.iterations.data_ptr(),
        batch,
        n,
        m,
        epsilon,
        n_iter,
        tol,
        torch.cuda.current_stream().cuda_stream,
        workspace.data_ptr(),
    )
    return solved


def to_cpu(solved: Solved) -> Solved:
    return Solved(**{name: tensor.cpu() for name, tensor in vars(solved).items()})


LARGER = [(192, 192), (193, 193), (200, 40), (5, 700), (256, 256), (512, 512), (513, 511), (700, 768), (1024, 1024)]
OFF_CHIP = [(1100, 37), (1100, 2048), (300, 2049), (150, 8191), (60, 8192), (20, 8193)]


@requires_cuda
@pytest.mark.parametrize("epsilon", [0.1, 0.02])
@pytest.mark.parametrize(("n", "m"), [*SIZES, *LARGER, *OFF_CHIP])
def test_the_gpu_agrees_with_the_reference(n: int, m: int, epsilon: float) -> None:
    cost = paper_cost(3, n, m)
    check(to_cpu(on_gpu(cost, epsilon, 50)), cost, epsilon, 50)
    mask = torch.rand(n, m) < 0.1
    check(to_cpu(on_gpu(cost, epsilon, 50, mask=mask)), cost, epsilon, 50, mask=mask.expand_as(cost))


@requires_cuda
@pytest.mark.parametrize("size", [9, 40, 70, 150, 220, 600])
def test_the_gpu_contains_problems_without_a_plan(size: int) -> None:
    cost = torch.rand(4, size, size)
    cost[0, 3, :], cost[1, 1, 1] = math.inf, math.nan
    cost[2, : size // 2 + 1, : size // 2 + 1] = math.inf
    check(to_cpu(on_gpu(cost, 0.05, 30)), cost, 0.05, 30)


@requires_cuda
@pytest.mark.parametrize("size", [48, 100, 300, 1100, 1101])
def test_the_gpu_is_deterministic_and_its_launches_can_be_captured(size: int) -> None:
    cost = paper_cost(64, size, size).cuda()
    first = on_gpu(cost, 0.05, 50)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = on_gpu(cost, 0.05, 50)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(first.plan, captured.plan) and torch.equal(first.status, captured.status)


@requires_cuda
def test_the_gpu_takes_batches_of_thousands() -> None:
    cost = paper_cost(5000, 17, 17)
    check(to_cpu(on_gpu(cost, 0.1, 30)), cost, 0.1, 30)
