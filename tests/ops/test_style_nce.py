"""style_nce against its reference in float64: values, gradients, registration, compile, edges and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hystar_fast import StyleNCELoss, ref
from hystar_fast.ops.style_nce import status, style_nce
from tests.support.style_nce_parity import assert_parity, make_pair, run, same_class

SHAPES = [(1, 5), (2, 3), (5, 7), (31, 17), (48, 768), (131, 33)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WEIGHTS = ["paper", "authors", "uniform"]
PLAN_GRADS = ["none", "unroll", "implicit"]


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_parity(n: int, d: int, dtype: torch.dtype, weights: str, plan_grad: str) -> None:
    assert_parity(*make_pair(n, d, dtype), weights=weights, plan_grad=plan_grad)


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gamma", [3.0, "auto"])
@pytest.mark.parametrize("classes", [1, 2, 3, 7])
def test_parity_with_masks(classes: int, gamma: float | str, weights: str, plan_grad: str) -> None:
    """From a mask that leaves nothing (1 class) through infeasible ones (a class of 5 of 9) to feasible ones."""
    mask = same_class(9, classes)
    assert_parity(*make_pair(9, 6), mask=mask, weights=weights, plan_grad=plan_grad, gamma=gamma)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.01},
        {"temperature": 10.0},
        {"lam": 0.3},
        {"lam": 10.0},
        {"epsilon": 2.0, "n_iter": 1},
        {"gamma": 1e-3},
        {"gamma": 1e6},
    ],
    ids=str,
)
def test_parity_of_options(options: dict[str, float]) -> None:
    for weights in ("paper", "authors"):
        assert_parity(*make_pair(24, 16), weights=weights, **options)


@pytest.mark.parametrize(
    ("query_dtype", "target_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
)
def test_mixed_dtypes(query_dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    query, target = make_pair(7, 5)
    loss, dquery, dtarget = run(style_nce, query.to(query_dtype), target.to(target_dtype))
    assert (loss.dtype, dquery.dtype, dtarget.dtype) == (target_dtype, query_dtype, target_dtype)
    assert_parity(query.to(query_dtype), target.to(target_dtype))


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_gradient_of_one_input_alone(plan_grad: str) -> None:
    query, target = make_pair(6, 4, torch.float64)
    both = run(style_nce, query, target, plan_grad=plan_grad)[1:]
    weight = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    for index, expected in enumerate(both):
        inputs = [query.clone(), target.clone()]
        inputs[index].requires_grad_()
        loss = style_nce(*inputs, plan_grad=plan_grad, reduction="none")
        (loss * weight).sum().backward()
        torch.testing.assert_close(inputs[index].grad, expected)
        assert inputs[1 - index].grad is None


@pytest.mark.parametrize("classes", [7, 4, 2, 1])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradcheck_of_reference(weights: str, classes: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in make_pair(7, 3, torch.float64)]
    mask = same_class(7, classes)
    for gamma in (20.0, "auto"):
        assert torch.autograd.gradcheck(
            lambda q, t, gamma=gamma: ref.style_nce(
                q, t, weights=weights, plan_grad="unroll", n_iter=8, mask=mask, gamma=gamma, reduction="none"
            ),
            inputs,
        )


def test_gradcheck_of_reference_implicit() -> None:
    """The implicit gradient is that of the converged plan, so it is checked where 50 iterations converge."""
    inputs = [tensor.requires_grad_() for tensor in make_pair(5, 3, torch.float64)]
    for weights, options in (("paper", {"epsilon": 2.0}), ("authors", {"lam": 2.0})):
        assert torch.autograd.gradcheck(
            lambda q, t, weights=weights, options=options: ref.style_nce(
                q, t, weights=weights, plan_grad="implicit", n_iter=300, **options
            ),
            inputs,
        )


def test_detached_gradient_ignores_the_plan() -> None:
    """With plan_grad="none" the gradient is that of Eq. 4 with the weights held: check by finite differences."""
    query, target = make_pair(5, 4, torch.float64)
    held = ref.sinkhorn(
        torch.exp(1 - torch.cosine_similarity(query[:, None], target, dim=-1)), 0.1, mask=torch.eye(5).bool()
    )

    def with_held_weights(q: Tensor, t: Tensor) -> Tensor:
        sim = torch.cosine_similarity(q[:, None], t, dim=-1) / 0.07
        negatives = 80 * (held * sim.exp()).sum(1)
        return torch.log1p(negatives / sim.diagonal().exp()).mean()

    inputs = [query.requires_grad_(), target.requires_grad_()]
    expected = torch.autograd.grad(with_held_weights(*inputs), inputs)
    torch.testing.assert_close(torch.autograd.grad(style_nce(*inputs), inputs), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.autograd.grad(style_nce(*inputs, plan_grad="unroll"), inputs), expected)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(weights: str, masked: bool) -> None:
    query, target = make_pair(6, 4)
    mask = same_class(6, 3) if masked else None
    for gamma, mean, keep in ((80.0, False, True), (80.0, True, True), (None, False, False)):
        arguments = (query, target, mask, 0.07, gamma, 1.0, 0.1, 20, weights, mean, keep)
        torch.library.opcheck(torch.ops.hystar_fast.style_nce_forward.default, arguments)
    saved = torch.ops.hystar_fast.style_nce_forward(*arguments[:-1], True)[1:]
    for dloss in (torch.rand(6), torch.rand(())):
        for needs in ((True, True), (False, True), (True, False)):
            arguments = (dloss, *saved, 0.07, *needs)
            torch.library.opcheck(torch.ops.hystar_fast.style_nce_backward.default, arguments)


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_compile_fullgraph(plan_grad: str) -> None:
    torch._dynamo.reset()  # the three compile the same code: together they would pass its limit of recompilations
    criterion = StyleNCELoss(plan_grad=plan_grad, gamma="auto")
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for n in (6, 9):
        query, target = (tensor.requires_grad_() for tensor in make_pair(n, 4))
        mask = same_class(n, 3)
        expected = torch.autograd.grad(criterion(query, target, mask), (query, target))
        torch.testing.assert_close(torch.autograd.grad(compiled(query, target, mask), (query, target)), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(query, target), criterion(query, target))


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_autocast_changes_nothing(plan_grad: str) -> None:
    query, target = make_pair(16, 32)
    expected = run(style_nce, query, target, plan_grad=plan_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(style_nce, query, target, plan_grad=plan_grad)
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_autocast_does_not_change_the_reference(plan_grad: str) -> None:
    query, target = make_pair(16, 32)
    expected = ref.style_nce(query, target, plan_grad=plan_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ref.style_nce(query, target, plan_grad=plan_grad), expected)


def test_module_is_the_function() -> None:
    query, target = make_pair(6, 4)
    options: dict[str, Any] = {
        "temperature": 0.1,
        "gamma": 5.0,
        "lam": 2.0,
        "epsilon": 0.3,
        "n_iter": 9,
        "weights": "authors",
    }
    criterion = StyleNCELoss(**options, plan_grad="implicit")
    mask = same_class(6, 3)
    assert torch.equal(criterion(query, target, mask), style_nce(query, target, mask=mask, **options))
    assert "lam=2.0" in repr(criterion)
    assert not list(criterion.parameters())


def test_keeps_one_matrix_for_the_backward() -> None:
    query, target = (tensor.requires_grad_() for tensor in make_pair(64, 8))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        style_nce(query, target)
    assert [tuple(tensor.shape) for tensor in saved].count((64, 64)) == 1
    assert sum(tensor.numel() for tensor in saved) <= 64 * 64 + 2 * 64 * 8 + 2 * 64
    with torch.no_grad():
        assert not style_nce(query, target).requires_grad


def test_double_backward_is_an_error() -> None:
    query, target = (tensor.requires_grad_() for tensor in make_pair(4, 3))
    for plan_grad in PLAN_GRADS:
        with pytest.raises(RuntimeError, match="create_graph must be False"):
            torch.autograd.grad(style_nce(query, target, plan_grad=plan_grad), query, create_graph=True)


def test_status_names_both_devices() -> None:
    assert [(row.op, row.device) for row in status()] == [("style_nce", "cpu"), ("style_nce", "cuda")]
    assert all(row.implementation for row in status())


# Edges


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gamma", [80.0, "auto"])
def test_without_negatives_loss_and_gradients_are_zero(gamma: float | str, weights: str, plan_grad: str) -> None:
    nothing = torch.ones(3, 3, dtype=torch.bool)
    for (query, target), mask in ((make_pair(1, 4), None), (make_pair(3, 4), nothing)):
        for result in run(style_nce, query, target, weights=weights, plan_grad=plan_grad, gamma=gamma, mask=mask):
            assert torch.equal(result, torch.zeros_like(result))


def test_one_dimension_has_no_gradient() -> None:
    """Every cosine is 1 or -1 in one dimension, whatever the lengths."""
    query, target = torch.tensor([[1.0], [-2.0], [3.0]]), torch.tensor([[1.0], [1.0], [-1.0]])
    loss, dquery, dtarget = run(style_nce, query, target)
    torch.testing.assert_close(loss, ref.style_nce(query, target, reduction="none"))
    assert not dquery.any() and not dtarget.any()


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_strides(plan_grad: str) -> None:
    query, target = make_pair(6, 4, torch.float64)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[0, 2] = True
    expected = run(style_nce, query, target, plan_grad=plan_grad, mask=mask[::2, ::2].contiguous())
    layouts = (query.T.contiguous().T, torch.stack([target, target], 1)[:, 0], mask[::2, ::2])
    actual = run(style_nce, *layouts[:2], plan_grad=plan_grad, mask=layouts[2])
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)
    same = style_nce(query[:1].expand(6, 4), target)
    torch.testing.assert_close(same, style_nce(query[:1].repeat(6, 1), target))


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
def test_poisoned_buffers(plan_grad: str) -> None:
    """Uninitialised memory is filled with NaN: every element that is read was written."""
    query, target = make_pair(13, 5)
    expected = run(style_nce, query, target, plan_grad=plan_grad)
    torch.use_deterministic_algorithms(True)
    try:
        actual = run(style_nce, query, target, plan_grad=plan_grad)
    finally:
        torch.use_deterministic_algorithms(False)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_size_of_the_embeddings_does_not_matter(size: float, weights: str, plan_grad: str) -> None:
    query, target = make_pair(12, 6)
    expected = run(style_nce, query, target, weights=weights, plan_grad=plan_grad)
    loss, dquery, dtarget = run(style_nce, query * size, target * size, weights=weights, plan_grad=plan_grad)
    torch.testing.assert_close(loss, expected[0], rtol=1e-4, atol=1e-5)
    for got, want in ((dquery, expected[1]), (dtarget, expected[2])):
        torch.testing.assert_close(got.double() * size, want.double(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "options", [{"temperature": 1e-3}, {"lam": 0.01}, {"epsilon": 1e-3}, {"lam": 1e-3, "epsilon": 1e-3}], ids=str
)
def test_extreme_options_stay_finite(options: dict[str, float], weights: str, plan_grad: str) -> None:
    query, target = make_pair(12, 3)
    target[0] = -query[0]
    for result in run(style_nce, query, target, weights=weights, plan_grad=plan_grad, **options):
        assert result.isfinite().all()


def test_zero_vector_has_cosine_zero_and_no_gradient() -> None:
    query, target = make_pair(5, 4, torch.float64)
    query[2] = 0
    for plan_grad in PLAN_GRADS:
        loss, dquery, dtarget = run(style_nce, query, target, plan_grad=plan_grad, weights="uniform", gamma=4.0)
        sim = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(target).T
        torch.testing.assert_close(
            loss, torch.nn.functional.cross_entropy(sim / 0.07, torch.arange(5), reduction="none")
        )
        assert not dquery[2].any() and dquery[0].any() and dtarget.isfinite().all()


@pytest.mark.parametrize("plan_grad", PLAN_GRADS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["query", "target"])
def test_a_sample_that_is_not_finite_affects_only_itself(
    side: str, poison: float, weights: str, plan_grad: str
) -> None:
    query, target = make_pair(7, 4)
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[3] = mask[:, 3] = True
    expected = run(style_nce, query, target, weights=weights, plan_grad=plan_grad, mask=mask)
    (query if side == "query" else target)[3, 1] = poison
    actual = run(style_nce, query, target, weights=weights, plan_grad=plan_grad)
    assert actual[0][3].isnan()
    others = torch.arange(7) != 3
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got[others], want[others])
    assert not actual[1][3].any() and not actual[2][3].any()


# Bad input


BAD_INPUTS = [
    ({"query": [[1.0]]}, TypeError, "query must be a Tensor, got list"),
    ({"target": None}, TypeError, "target must be a Tensor, got NoneType"),
    ({"query": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "query must be float16, bfloat16, float32 or float64"),
    ({"target": torch.ones(4, 3, dtype=torch.complex64)}, TypeError, "target must be float16"),
    ({"query": torch.ones(4)}, ValueError, r"query must have shape \[N, D\].*got \[4\]"),
    ({"query": torch.ones(2, 4, 3)}, ValueError, r"query must have shape \[N, D\].*got \[2, 4, 3\]"),
    ({"query": torch.ones(0, 3), "target": torch.ones(0, 3)}, ValueError, r"N and D at least 1, got \[0, 3\]"),
    ({"query": torch.ones(4, 0), "target": torch.ones(4, 0)}, ValueError, r"N and D at least 1, got \[4, 0\]"),
    ({"target": torch.ones(5, 3)}, ValueError, r"target must have the shape of query, \[4, 3\], got \[5, 3\]"),
    ({"target": torch.ones(4, 2)}, ValueError, r"target must have the shape of query, \[4, 3\], got \[4, 2\]"),
    ({"target": torch.ones(4, 3, device="meta")}, ValueError, "target must be on the device of query, cpu, got meta"),
    ({"mask": [[True]]}, TypeError, "mask must be a Tensor or None, got list"),
    ({"mask": torch.ones(4, 4)}, TypeError, "mask must have dtype torch.bool .*got torch.float32"),
    (
        {"mask": torch.ones(4, 3, dtype=torch.bool)},
        ValueError,
        r"mask must have shape \[N, N\] = \[4, 4\], got \[4, 3\]",
    ),
    ({"mask": torch.ones(4, 4, dtype=torch.bool, device="meta")}, ValueError, "mask must be on the device of query"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": "hot"}, TypeError, "temperature must be a number, got str"),
    ({"gamma": -1.0}, ValueError, "gamma must be positive and finite, got -1.0"),
    ({"gamma": "large"}, ValueError, "gamma must be a positive number or 'auto', got 'large'"),
    ({"gamma": None}, TypeError, "gamma must be a number, got NoneType"),
    ({"lam": float("nan")}, ValueError, "lam must be positive and finite, got nan"),
    ({"epsilon": 0}, ValueError, "epsilon must be positive and finite, got 0"),
    ({"epsilon": float("inf")}, ValueError, "epsilon must be positive and finite, got inf"),
    ({"epsilon": True}, TypeError, "epsilon must be a number, got bool"),
    ({"n_iter": 0}, ValueError, "n_iter must be at least 1, got 0"),
    ({"n_iter": 2.5}, TypeError, "n_iter must be an int, got float"),
    ({"weights": "ours"}, ValueError, "weights must be one of paper, authors, uniform, got 'ours'"),
    ({"plan_grad": True}, ValueError, "plan_grad must be one of none, unroll, implicit, got True"),
    ({"reduction": "sum"}, ValueError, "reduction must be one of mean, none, got 'sum'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS, ids=[case[2] for case in BAD_INPUTS])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"query": torch.ones(4, 3), "target": torch.ones(4, 3), **change}
    with pytest.raises(error, match=message):
        style_nce(**arguments)


@pytest.mark.parametrize("change", [{"epsilon": 0}, {"weights": "ours"}, {"n_iter": 2.5}], ids=str)
def test_module_refuses_bad_options_when_built(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        StyleNCELoss(**change)


@pytest.mark.parametrize("n", [8, 300])
def test_flops_of_style_nce_are_its_three_products_over_all_pairs(n: int) -> None:
    query, target = (torch.randn(n, 16, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        style_nce(query, target).backward()
    assert counter.get_total_flops() == 3 * 2 * n * n * 16
