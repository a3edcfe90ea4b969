"""sinkhorn: parity with the reference, what it reports, edges, bad input, compilation and the implementations."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast import ref
from hystar_fast.ops.sinkhorn import SinkhornStatus as Status
from hystar_fast.ops.sinkhorn import api as op
from hystar_fast.ops.sinkhorn import cpu as sinkhorn_cpu
from tests.support.gpu import requires_cuda
from tests.support.shapes import SINKHORN
from tests.support.sinkhorn_cases import INF, NAN, isas, random_cost
from tests.support.tolerance import assert_as_accurate


def assert_same(cost: Tensor, epsilon: float, n_iter: int = 50, **options: object) -> None:
    """The plan is as accurate as the reference in the same dtype, and the report the same as in float64."""
    plan, info = hf.sinkhorn(cost, epsilon, n_iter, return_info=True, **options)
    same = ref.sinkhorn(cost, epsilon, n_iter, **options)
    truth, true_info = ref.sinkhorn(cost.double(), epsilon, n_iter, return_info=True, **options)
    assert plan.dtype == same.dtype
    assert_as_accurate(plan, same, truth)
    assert torch.equal(info.status, true_info.status)
    assert torch.equal(info.iterations, true_info.iterations)
    torch.testing.assert_close(info.max_marginal_error.double(), true_info.max_marginal_error, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SINKHORN)
def test_parity(shape: tuple[int, int, int], dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn_cpu, "ISA", isa)
    for epsilon in (1.0, 0.1, 0.02):
        assert_same(random_cost(*shape, dtype=dtype), epsilon)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("epsilon", [5e-3, 5e-4])
def test_parity_far_from_convergence(epsilon: float, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # here the plan depends on the order of the half-steps and most steps leave the range of plain scaling
    monkeypatch.setattr(sinkhorn_cpu, "ISA", isa)
    for shape, n_iter in (((2, 31, 31), 50), ((3, 17, 29), 1), ((1, 65, 33), 7)):
        assert_same(random_cost(*shape, dtype=torch.float32), epsilon, n_iter)
        assert_same(100 + random_cost(*shape, dtype=torch.float32), epsilon, n_iter)


@pytest.mark.parametrize("isa", isas())
def test_parity_masked(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn_cpu, "ISA", isa)
    diagonal = torch.eye(48, dtype=torch.bool)
    assert_same(random_cost(3, 48, 48, dtype=torch.float32), 0.1, mask=diagonal)
    classes = torch.arange(48) % 7
    assert_same(random_cost(2, 48, 48), 0.05, mask=classes[:, None] == classes)
    each = torch.rand(4, 1, 23, 37) < 0.3
    assert_same(random_cost(4, 2, 23, 37, dtype=torch.float32), 0.1, mask=each)
    assert_same(random_cost(4, 2, 23, 37), 0.1, mask=each.expand(4, 2, 23, 37), tol=1e-4)


def test_team_of_threads_on_one_problem() -> None:
    cost = random_cost(1, 400, 512, dtype=torch.float32)
    cost[0, :100, :50] = INF
    before = torch.get_num_threads()
    try:
        for epsilon, options in ((0.05, {}), (2e-3, {}), (0.05, {"tol": 1e-3})):
            torch.set_num_threads(1)
            alone, alone_info = hf.sinkhorn(cost, epsilon, 60, return_info=True, **options)
            torch.set_num_threads(3)
            team, team_info = hf.sinkhorn(cost, epsilon, 60, return_info=True, **options)
            torch.testing.assert_close(team, alone, atol=1e-6, rtol=1e-5)
            assert torch.equal(team_info.iterations, alone_info.iterations)
            assert torch.equal(hf.sinkhorn(cost, epsilon, 60, **options), team), "the same threads, the same bits"
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_at_once() -> None:
    costs = [random_cost(8, 48, 48, dtype=torch.float32) for _ in range(4)]
    expected = [hf.sinkhorn(cost, 0.05) for cost in costs]
    results: list[Tensor | None] = [None] * 4

    def work(index: int) -> None:
        for _ in range(5):
            results[index] = hf.sinkhorn(costs[index], 0.05)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got, want) for got, want in zip(results, expected, strict=True) if got is not None)
    assert None not in results


@pytest.mark.parametrize("sinkhorn", [hf.sinkhorn, ref.sinkhorn])
def test_no_plan_is_zeros_and_says_so(sinkhorn: object) -> None:
    cost = torch.zeros(5, 3, 3)
    cost[1, 0] = INF  # an empty row
    cost[2, :, 1] = INF  # an empty column
    cost[3, :2, :2] = INF  # two rows for one column: every row and column has an entry, yet there is no matching
    cost[4, 0, 0] = NAN
    plan, info = sinkhorn(cost, 0.1, return_info=True)  # type: ignore[operator]
    expected = [Status.CONVERGED, *[Status.INFEASIBLE] * 3, Status.INVALID]
    assert info.status.tolist() == expected
    assert info.iterations.tolist() == [50, 0, 0, 0, 0]
    assert info.converged.tolist() == [True, False, False, False, False]
    torch.testing.assert_close(plan[0], torch.full((3, 3), 1 / 3))
    assert not plan[1:4].any()
    assert plan[4].isnan().all()
    assert torch.equal(sinkhorn(cost, 0.1)[:4], plan[:4])  # type: ignore[operator]
    alone = sinkhorn(torch.zeros(1, 1), 0.1, mask=torch.ones(1, 1, dtype=torch.bool), return_info=True)  # type: ignore[operator]
    assert alone[0].item() == 0
    assert alone[1].status.item() == Status.INFEASIBLE


def test_slow_but_feasible_is_not_called_infeasible() -> None:
    # upper triangular: only the identity carries a plan, which the iteration approaches like 1/k
    mask = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    plan, info = hf.sinkhorn(torch.zeros(12, 12), 1.0, 3, mask=mask, return_info=True)
    assert info.status.item() == Status.NOT_CONVERGED
    assert plan.isfinite().all()
    assert_same(random_cost(1, 12, 12), 1e-3, 2, mask=mask)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (2, 4, 0), (0, 0), (2, 0, 3, 3)])
def test_empty(shape: tuple[int, ...]) -> None:
    cost = torch.zeros(shape, requires_grad=True)
    plan, info = hf.sinkhorn(cost, 0.1, return_info=True)
    expected, expected_info = ref.sinkhorn(cost, 0.1, return_info=True)
    assert plan.shape == shape
    assert torch.equal(info.status, expected_info.status)
    assert info.status.shape == shape[:-2]
    plan.sum().backward()
    assert cost.grad is not None and cost.grad.shape == shape
    assert torch.equal(plan, expected)


def test_leading_shapes_and_strides() -> None:
    cost = random_cost(2, 3, 9, 11, dtype=torch.float32)
    plan, info = hf.sinkhorn(cost, 0.1, return_info=True)
    assert plan.shape == cost.shape
    assert info.status.shape == (2, 3)
    assert torch.equal(hf.sinkhorn(cost[1, 2], 0.1), plan[1, 2])
    strided = cost.transpose(0, 1).mT.contiguous().mT.transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(hf.sinkhorn(strided, 0.1), plan)
    assert torch.equal(hf.sinkhorn(cost[:1].expand(2, 3, 9, 11), 0.1)[1], plan[0])
    padded = torch.full((9, 13), NAN)
    padded[:, :11] = cost[0, 0]
    assert torch.equal(hf.sinkhorn(padded[:, :11], 0.1), plan[0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_and_returned_in_float32(dtype: torch.dtype) -> None:
    cost = random_cost(2, 7, 7).to(dtype).requires_grad_()
    plan = hf.sinkhorn(cost, 0.1)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, hf.sinkhorn(cost.float(), 0.1))
    plan.square().sum().backward()
    assert cost.grad is not None and cost.grad.dtype == dtype


def test_autocast_changes_nothing() -> None:
    cost = random_cost(2, 9, 9, dtype=torch.float32).requires_grad_()
    for grad in ("unroll", "implicit"):
        (expected,) = torch.autograd.grad(hf.sinkhorn(cost, 0.1, grad=grad).square().sum(), cost)
        with torch.autocast("cpu", torch.bfloat16):
            plan = hf.sinkhorn(cost, 0.1, grad=grad)
            (actual,) = torch.autograd.grad(plan.square().sum(), cost)
        assert plan.dtype == torch.float32
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("scale", [1e-30, 1e20, 3e38])
def test_extremes_stay_finite(scale: float) -> None:
    cost = (random_cost(2, 8, 5) - 0.5).float() * scale
    for epsilon in (5e-4, 1e-6, 1e6):
        cost.grad = None
        plan, info = hf.sinkhorn(cost.requires_grad_(), epsilon, return_info=True)
        plan.sum().backward()
        assert plan.isfinite().all()
        assert cost.grad is not None and cost.grad.isfinite().all()
        assert (info.status <= Status.NOT_CONVERGED).all()


def test_tol_stops_each_problem_by_itself() -> None:
    cost = torch.stack([torch.zeros(16, 16), random_cost(16, 16).float(), 30 * random_cost(16, 16).float()])
    plan, info = hf.sinkhorn(cost, 0.1, 200, tol=1e-4, return_info=True)
    assert info.iterations[0] == 1
    assert info.iterations[0] < info.iterations[1] < info.iterations[2] == 200
    assert info.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NOT_CONVERGED]
    assert info.max_marginal_error[1] <= 1e-4
    assert_same(cost, 0.1, 200, tol=1e-4)
    assert torch.equal(plan[1], hf.sinkhorn(cost[1], 0.1, int(info.iterations[1])))


BAD = [
    (TypeError, r"cost must be a Tensor, got list", {"cost": [[0.0]]}),
    (TypeError, r"cost must be float16, .*, got torch.int64", {"cost": torch.zeros(2, 2, dtype=torch.int64)}),
    (ValueError, r"cost must have shape \[..., N, M\], got \[4\]", {"cost": torch.zeros(4)}),
    (TypeError, r"epsilon must be a number, got Tensor", {"epsilon": torch.tensor(0.1)}),
    (TypeError, r"epsilon must be a number, got bool", {"epsilon": True}),
    (ValueError, r"epsilon must be positive and finite, got 0", {"epsilon": 0.0}),
    (ValueError, r"epsilon must be positive and finite, got nan", {"epsilon": NAN}),
    (ValueError, r"epsilon must be at least 9.86e-32.*, got 1e-35; multiply it and cost", {"epsilon": 1e-35}),
    (TypeError, r"n_iter must be an int, got float", {"n_iter": 5.0}),
    (ValueError, r"n_iter must be at least 1, got 0", {"n_iter": 0}),
    (ValueError, r"grad must be one of unroll, implicit, none, got 'exact'", {"grad": "exact"}),
    (TypeError, r"mask must be a Tensor or None, got bool", {"mask": True}),
    (TypeError, r"mask must have dtype torch.bool .*, got torch.float32", {"mask": torch.zeros(3, 3)}),
    (ValueError, r"mask must have a shape .* \[2, 3, 3\], got \[3, 2\]", {"mask": torch.zeros(3, 2, dtype=torch.bool)}),
    (ValueError, r"mask must have a shape", {"mask": torch.zeros(1, 2, 3, 3, dtype=torch.bool)}),
    (
        ValueError,
        r"mask must be on the device of cost, cpu",
        {"mask": torch.zeros(3, 3, dtype=torch.bool, device="meta")},
    ),
    (TypeError, r"tol must be a number or None, got str", {"tol": "1e-3"}),
    (ValueError, r"tol must be positive and finite, got -1", {"tol": -1}),
]


@pytest.mark.parametrize("sinkhorn", [hf.sinkhorn, ref.sinkhorn])
@pytest.mark.parametrize(("error", "message", "arguments"), BAD)
def test_bad_input(sinkhorn: object, error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        sinkhorn(**{"cost": torch.zeros(2, 3, 3), "epsilon": 0.1, **arguments})  # type: ignore[operator]


def test_opcheck() -> None:
    cost, mask = random_cost(2, 5, 4, dtype=torch.float32), torch.rand(5, 4) < 0.1
    for keep_history in (False, True):
        arguments = (cost, mask, 0.1, 6, 0.0, keep_history)
        torch.library.opcheck(torch.ops.hystar_fast.sinkhorn_forward.default, arguments)
    plan, history, info = torch.ops.hystar_fast.sinkhorn_forward(cost, mask, 0.1, 6, 0.0, True)
    dplan = torch.rand_like(plan)
    arguments = (dplan, plan, cost, mask, history, info, 0.1, 6)
    torch.library.opcheck(torch.ops.hystar_fast.sinkhorn_unrolled_backward.default, arguments)
    torch.library.opcheck(torch.ops.hystar_fast.sinkhorn_implicit_backward.default, (dplan, plan, info, 0.1))


@pytest.mark.parametrize("grad", ["unroll", "implicit", "none"])
def test_compiles_without_a_graph_break(grad: str) -> None:
    mask = torch.eye(6, dtype=torch.bool)

    def loss(cost: Tensor) -> tuple[Tensor, Tensor]:
        plan, info = hf.sinkhorn(cost * 2, 0.1, 20, mask=mask, grad=grad, return_info=True)
        return (plan * cost).sum(), info.status

    results = []
    cost = random_cost(3, 6, 6, dtype=torch.float32)
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = cost.clone().requires_grad_()
        value, status = function(leaf)
        value.backward()
        results.append((value.detach(), status, leaf.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("masked", ["no", "one mask", "a mask for each problem"])
def test_without_the_extension(masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = random_cost(3, 7, 6, dtype=torch.float32)
    cost[1, 0] = INF
    masks = {"no": None, "one mask": torch.eye(7, 6).bool(), "a mask for each problem": torch.rand(3, 7, 6) < 0.2}
    mask = masks[masked]
    truth, true_info = ref.sinkhorn(cost.double(), 0.1, return_info=True, tol=1e-3, mask=mask)
    monkeypatch.setattr(sinkhorn_cpu, "extension", lambda: None)
    monkeypatch.setattr(op, "extension", lambda: None)
    monkeypatch.setattr(op, "instruction_set", lambda: None)
    monkeypatch.setattr(op, "extension_problem", lambda: "it was not built")
    plan, info = hf.sinkhorn(cost, 0.1, return_info=True, tol=1e-3, mask=mask)
    torch.testing.assert_close(plan.double(), truth, atol=1e-6, rtol=1e-5)
    assert torch.equal(info.status, true_info.status)
    assert torch.equal(info.iterations, true_info.iterations)
    if mask is not None:
        assert not plan[mask.expand_as(plan)].any()
    cpu = op.status()[0]
    assert (cpu.implementation, cpu.reason) == ("torch: logsumexp", "it was not built")
    torch.library.opcheck(torch.ops.hystar_fast.sinkhorn_forward.default, (cost, mask, 0.1, 6, 0.0, True))


def test_status_names_the_instruction_set() -> None:
    cpu, cuda = op.status()
    assert (cpu.op, cpu.device, cpu.reason) == ("sinkhorn", "cpu", "")
    assert re.fullmatch(r"C\+\+: stabilised scaling, (avx512|avx2|baseline)", cpu.implementation)
    assert cuda.device == "cuda"
    assert bool(cuda.reason) == (cuda.implementation == "torch: logsumexp")


@requires_cuda
@pytest.mark.parametrize("shape", [*SINKHORN, (2, 257, 300)])
def test_cuda_parity(shape: tuple[int, int, int]) -> None:
    for dtype in (torch.float32, torch.float64):
        cost = random_cost(*shape, dtype=dtype).cuda()
        for epsilon in (1.0, 0.1, 0.02):
            assert_same(cost, epsilon)
            mask = torch.rand(shape, device="cuda") < 0.2
            assert_same(cost, epsilon, mask=mask)


@requires_cuda
def test_cuda_graph() -> None:
    cost = random_cost(2, 48, 48, dtype=torch.float32).cuda().requires_grad_()
    hf.sinkhorn(cost, 0.1).square().sum().backward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = hf.sinkhorn(cost, 0.1)
    with torch.no_grad():
        cost.copy_(torch.rand_like(cost))
    graph.replay()
    torch.testing.assert_close(plan, hf.sinkhorn(cost, 0.1))
