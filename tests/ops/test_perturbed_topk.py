"""perturbed_topk against its reference in float64: values, gradients, registration, compile, edges and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.overrides import TorchFunctionMode

from hystar_fast import perturbed_topk, ref
from hystar_fast.ops.perturbed_topk import status
from hystar_fast.ref.perturbed_topk import soft_topk
from tests.support.perturbed_topk_cases import SHAPES, assert_parity, generator, make_mask, make_scores, run

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {"sigma": 0.1, "samples": 40}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "samples", "n", "k"), SHAPES)
def test_parity(b: int, samples: int, n: int, k: int, dtype: torch.dtype) -> None:
    scores = make_scores(b, n, dtype)
    assert_parity(scores, k, sigma=0.1, samples=samples)
    assert_parity(scores, k, sigma=0.1, samples=samples, mask=make_mask(b, n))


@pytest.mark.parametrize("sigma", [1e-6, 0.05, 1.0, 100.0])
def test_parity_of_the_noise_level(sigma: float) -> None:
    for dtype in (torch.float64, torch.float32):
        assert_parity(make_scores(2, 24, dtype), 4, sigma=sigma, samples=60)


def test_the_reference_is_the_formula_written_out() -> None:
    """Loops over samples, and the covariance of the one-hot rows and the noise in the dense form, by einsum."""
    scores, noise = make_scores(2, 9), torch.randn(2, 50, 9, generator=generator()).double()
    sigma, k = 0.2, 3
    hard = torch.zeros(2, 50, k, 9, dtype=torch.float64)
    for b in range(2):
        for s in range(50):
            largest = sorted(range(9), key=lambda j, b=b, s=s: -float(scores[b, j] + sigma * noise[b, s, j]))[:k]
            for row, position in enumerate(sorted(largest)):
                hard[b, s, row, position] = 1
    dsoft = torch.randn(2, k, 9, dtype=torch.float64)
    centred = hard - hard.mean(1, keepdim=True)
    dscores = torch.einsum("bskn,bkn,bsj->bj", centred, dsoft, noise) / (49 * sigma)
    dscores -= dscores.mean(1, keepdim=True)
    leaf = scores.clone().requires_grad_()
    for function in (soft_topk, through_the_op):
        soft = function(leaf, noise.float(), k, sigma)
        torch.testing.assert_close(soft, hard.mean(1), rtol=0, atol=1e-15)
        (found,) = torch.autograd.grad(soft, leaf, dsoft)
        torch.testing.assert_close(found, dscores, rtol=1e-12, atol=1e-12)


def through_the_op(scores: Tensor, noise: Tensor, k: int, sigma: float, mask: Tensor | None = None) -> Tensor:
    """Call the op on given noise, with the derivative that is registered for it."""
    forbidden = torch.zeros_like(scores, dtype=torch.bool) if mask is None else mask
    soft: Tensor = torch.ops.hystar_fast.perturbed_topk_forward(scores, noise, forbidden, k, sigma, True)[0]
    return soft


@pytest.mark.parametrize("function", [perturbed_topk, ref.perturbed_topk], ids=["op", "reference"])
def test_gradient_by_finite_differences_with_the_same_noise(function: Callable[..., Tensor]) -> None:
    """A random function has no gradcheck: differences of 2e5 samples of common noise, five standard errors wide."""
    scores = torch.tensor([[0.1, 0.3, 0.25, 0.7]], dtype=torch.float64)
    options: dict[str, Any] = {"sigma": 0.3, "samples": 200_000}
    dsoft = torch.randn(1, 2, 4, dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf, 2, generator=generator(), **options), leaf, dsoft)
    step = 0.03
    for position in range(4):
        move = torch.zeros_like(scores)
        move[0, position] = step
        ends = [function(scores + sign * move, 2, generator=generator(1), **options) for sign in (1, -1)]
        slope = ((ends[0] - ends[1]) * dsoft).sum() / (2 * step)
        assert abs(float(slope - found[0, position])) < 0.06
    assert float(found.abs().max()) > 0.5


def test_the_op_needs_less_memory_than_its_reference() -> None:
    leaf = make_scores(4, 64, torch.float32).requires_grad_()
    kept: dict[str, int] = {}
    for name, function in (("op", perturbed_topk), ("reference", ref.perturbed_topk)):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function(leaf, 6, sigma=0.1, samples=100)
        kept[name] = sum(saved.values())
    assert kept["op"] == 4 * 4 * 100 * (64 + 6) + 4 * 64  # noise and positions of four bytes, and the mask
    assert kept["reference"] > 5 * kept["op"]


@pytest.mark.parametrize(("n", "k", "dtype"), [(7, 3, torch.float64), (4, 6, torch.float32)])
def test_opcheck(n: int, k: int, dtype: torch.dtype) -> None:
    scores, noise, forbidden = make_scores(2, n, dtype), torch.randn(2, 6, n), make_mask(2, n)
    for leaf, keep in ((scores, False), (scores.clone().requires_grad_(), True)):
        arguments = (leaf, noise, forbidden, k, 0.1, keep)
        torch.library.opcheck(torch.ops.hystar_fast.perturbed_topk_forward.default, arguments)
    soft, chosen = torch.ops.hystar_fast.perturbed_topk_forward(scores, noise, forbidden, k, 0.1, True)
    arguments = (torch.rand_like(soft), chosen, noise, forbidden, 0.1)
    torch.library.opcheck(torch.ops.hystar_fast.perturbed_topk_backward.default, arguments)


def test_compile_fullgraph() -> None:
    compiled = torch.compile(perturbed_topk, fullgraph=True, backend="aot_eager")
    for n in (6, 9):
        leaf, mask = make_scores(2, n).requires_grad_(), make_mask(2, n)
        results = []
        for function in (perturbed_topk, compiled):
            torch.manual_seed(3)
            soft = function(leaf, 3, mask=mask, **OPTIONS)
            results.append((soft, *torch.autograd.grad(soft.square().sum(), leaf)))
        torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.manual_seed(3)
        assert torch.equal(compiled(leaf, 3, mask=mask, **OPTIONS), results[0][0])


@pytest.mark.parametrize("grad", [True, False], ids=["grad mode", "no_grad"])
def test_an_exported_program_takes_any_batch_and_backpropagates(grad: bool) -> None:
    class Module(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return perturbed_topk(scores, 3, **OPTIONS)

    with torch.set_grad_enabled(grad):
        program = export(Module(), (make_scores(3, 8),), dynamic_shapes={"scores": {0: Dim("batch", min=2)}}).module()
    leaf, results = make_scores(5, 8).requires_grad_(), []
    for function in (program, Module()):
        torch.manual_seed(3)
        soft = function(leaf)
        results.append((soft, *torch.autograd.grad(soft.square().sum(), leaf)))
    torch.testing.assert_close(*results)


# torch.func


def on_fixed_noise(scores: Tensor) -> Tensor:
    return perturbed_topk(scores, 2, sigma=0.3, samples=500, generator=generator())


def test_jacobians_of_torch_func_equal_autograds() -> None:
    scores = make_scores(2, 5)
    expected = torch.autograd.functional.jacobian(on_fixed_noise, scores)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(torch.func.jacrev(on_fixed_noise)(scores), expected)
    torch.testing.assert_close(torch.func.jacfwd(on_fixed_noise, randomness="same")(scores), expected)
    tangent = torch.arange(10.0, dtype=torch.float64).reshape(2, 5)
    found = torch.func.jvp(on_fixed_noise, (scores,), (tangent,))[1]
    torch.testing.assert_close(found, (expected.flatten(-2) * tangent.flatten()).sum(-1))


def test_second_derivatives_are_refused_or_right() -> None:
    """N = 2, K = 1: the second derivative of Phi(gap / (sigma sqrt 2)), within four standard errors of 60 estimates."""
    leaf = make_scores(2, 5).requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph must be False, because perturbed_topk"):
        torch.autograd.grad(perturbed_topk(leaf, 2, **OPTIONS).sum(), leaf, create_graph=True)
    gap, sigma = 0.2, 0.3

    def first(scores: Tensor, seed: int) -> Tensor:
        return perturbed_topk(scores, 1, sigma=sigma, samples=4000, generator=generator(seed))[0, 0, 0]

    point = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    second = torch.func.jacrev(torch.func.grad(first))
    found = torch.stack([second(point, seed)[0, :, 0] for seed in range(60)])
    u = gap / (sigma * math.sqrt(2))
    curvature = -u * math.exp(-u * u / 2) / math.sqrt(2 * math.pi) / (2 * sigma * sigma)
    expected = curvature * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    error = found.std(0) / math.sqrt(60)
    assert ((found.mean(0) - expected).abs() <= 4 * error).all()
    assert float(error.max()) < 0.2 * abs(curvature)


def test_vmap_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"scores must not be batched by torch.func.vmap: .*\[B, N\]"):
        torch.func.vmap(lambda scores: perturbed_topk(scores, 2, **OPTIONS))(torch.rand(2, 3, 5))
    scores, mask = torch.rand(3, 5), torch.zeros(2, 3, 5, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="mask must not be batched"):
        torch.func.vmap(lambda mask: perturbed_topk(scores, 2, mask=mask, **OPTIONS))(mask)


def test_a_mode_that_watches_sees_the_op() -> None:
    seen: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        perturbed_topk(make_scores(2, 5), 2, **OPTIONS)
    assert any("perturbed_topk_forward" in name for name in seen)


def test_autocast_changes_nothing() -> None:
    scores = make_scores(3, 17, torch.float32)
    expected = [run(function, scores, 4, **OPTIONS) for function in (perturbed_topk, ref.perturbed_topk)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [run(function, scores, 4, **OPTIONS) for function in (perturbed_topk, ref.perturbed_topk)]
    assert all(torch.equal(a, b) for f, e in zip(found, expected, strict=True) for a, b in zip(f, e, strict=True))


def test_status_names_both_devices() -> None:
    assert [(row.op, row.device) for row in status()] == [("perturbed_topk", "cpu"), ("perturbed_topk", "cuda")]
    assert all(row.implementation for row in status())


# The noise


def test_the_noise_is_one_draw_in_float32_for_every_dtype() -> None:
    scores = make_scores(2, 6)
    noise = torch.randn(2, 40, 6, generator=generator(5))
    for dtype in (torch.float64, torch.float32):
        for function in (perturbed_topk, ref.perturbed_topk):
            found = function(scores.to(dtype), 2, generator=generator(5), **OPTIONS)
            assert torch.equal(found, soft_topk(scores.to(dtype), noise, 2, 0.1))


def test_without_a_generator_the_noise_is_torchs_own() -> None:
    scores = make_scores(2, 6)
    torch.manual_seed(11)
    first, second = (perturbed_topk(scores, 2, **OPTIONS) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(11)
    assert torch.equal(perturbed_topk(scores, 2, **OPTIONS), first)
    assert torch.equal(perturbed_topk(scores, 2, generator=generator(11), **OPTIONS), first)


# Edges


def test_empty() -> None:
    for b, n in ((0, 5), (2, 0), (0, 0)):
        for function in (perturbed_topk, ref.perturbed_topk):
            soft, gradient = run(function, make_scores(b, n), 3, **OPTIONS)
            assert soft.shape == (b, 3, n) and gradient.shape == (b, n)


def test_masked_positions_and_scores_of_minus_infinity_are_exactly_zero() -> None:
    scores, mask = make_scores(3, 11), make_mask(3, 11)
    soft, gradient = run(perturbed_topk, scores, 4, mask=mask, **OPTIONS)
    assert not soft.movedim(1, 2)[mask].any() and not gradient[mask].any() and gradient[~mask].any()
    by_score = run(perturbed_topk, scores.masked_fill(mask, -math.inf), 4, **OPTIONS)
    garbage = scores.masked_fill(mask, math.nan)
    by_mask = run(perturbed_topk, garbage, 4, mask=mask, **OPTIONS)
    for got, same, want in zip(by_score, by_mask, (soft, gradient), strict=True):
        assert torch.equal(got, want) and torch.equal(same, want)
    one_row = run(perturbed_topk, scores, 4, mask=mask[0], **OPTIONS)
    expanded = run(perturbed_topk, scores, 4, mask=mask[:1].expand(3, 11), **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(one_row, expanded, strict=True))


def test_more_than_there_are_leaves_rows_of_zeros() -> None:
    """A text of three words and K = 5: rows 0 to 2 are the words, rows 3 and 4 are zero."""
    mask = torch.tensor([[False, True, False, False, True, True], [True] * 6, [False] * 6])
    soft, gradient = run(perturbed_topk, make_scores(3, 6), 5, mask=mask, **OPTIONS)
    expected = torch.zeros(5, 6, dtype=torch.float64)
    expected[[0, 1, 2], [0, 2, 3]] = 1
    assert torch.equal(soft[0], expected) and not soft[1].any()
    assert not gradient[:2].any() and gradient[2].any()
    torch.testing.assert_close(soft[2].sum(1), torch.ones(5, dtype=torch.float64))
    longer, gradient = run(perturbed_topk, make_scores(3, 6), 8, **OPTIONS)
    assert torch.equal(longer, torch.eye(8, 6, dtype=torch.float64).expand(3, 8, 6)) and not gradient.any()


def test_equal_scores_choose_the_first() -> None:
    """Noise that is smaller than the last digit leaves ties."""
    for dtype in (torch.float64, torch.float32):
        soft, gradient = run(perturbed_topk, torch.full((2, 40), 5.0, dtype=dtype), 7, sigma=1e-20, samples=9)
        assert torch.equal(soft, torch.eye(7, 40, dtype=dtype).expand(2, 7, 40)) and not gradient.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_invalid_item_affects_only_itself(poison: float) -> None:
    scores = make_scores(3, 13)
    expected = [run(function, scores, 4, **OPTIONS) for function in (perturbed_topk, ref.perturbed_topk)]
    scores[1, 5] = poison
    for function, clean in zip((perturbed_topk, ref.perturbed_topk), expected, strict=True):
        soft, gradient = run(function, scores, 4, **OPTIONS)
        assert soft[1].isnan().all() and not gradient[1].any()
        for got, want in ((soft, clean[0]), (gradient, clean[1])):
            assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_a_gradient_that_is_nan_stays_in_its_item() -> None:
    leaf = make_scores(2, 9).requires_grad_()
    dsoft = torch.ones(2, 3, 9, dtype=torch.float64)
    dsoft[0] = math.nan
    (found,) = torch.autograd.grad(perturbed_topk(leaf, 3, **OPTIONS), leaf, dsoft)
    assert found[0].isnan().all() and found[1].isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_extreme_scores(size: float) -> None:
    scores = torch.tensor([[1.0, -1.0, 0.5, -0.25, 0.0]]) * size
    for sigma in (1e-30, 1.0, 1e30, 3e38):
        for mask in (None, torch.tensor([False, False, True, False, False])):
            options = {"sigma": sigma, "samples": 30, "mask": mask}
            found, truth = (run(function, scores, 2, **options) for function in (perturbed_topk, ref.perturbed_topk))
            assert torch.equal(found[0], truth[0])
            assert found[0].sum() == pytest.approx(2, abs=1e-5)


def test_strides() -> None:
    scores, mask = make_scores(3, 10), make_mask(3, 10)
    expected = run(perturbed_topk, scores, 4, mask=mask, **OPTIONS)
    layouts = torch.stack([scores, scores], 2)[..., 0], torch.stack([mask, ~mask], 0)[0].T.contiguous().T
    for got, want in zip(run(perturbed_topk, layouts[0], 4, mask=layouts[1], **OPTIONS), expected, strict=True):
        assert torch.equal(got, want)
    leaf = scores.clone().requires_grad_()
    soft = perturbed_topk(leaf, 4, **OPTIONS)
    (found,) = torch.autograd.grad(soft.sum(), leaf)  # an upstream gradient without memory of its own
    assert not found.any()


def test_poisoned_buffers() -> None:
    """Uninitialised memory is filled with NaN: every element that is read was written."""
    expected = run(perturbed_topk, make_scores(3, 13), 4, mask=make_mask(3, 13), **OPTIONS)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    try:
        actual = run(perturbed_topk, make_scores(3, 13), 4, mask=make_mask(3, 13), **OPTIONS)
    finally:
        torch.use_deterministic_algorithms(False)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)


# Bad input


CASE: dict[str, Any] = {"scores": torch.rand(3, 6), "k": 2, "sigma": 0.1, "samples": 5}
BAD_INPUTS = [
    ({"scores": [[1.0]]}, TypeError, "scores must be a Tensor, got list"),
    (
        {"scores": torch.ones(3, 6, dtype=torch.int64)},
        TypeError,
        "scores must be float16, bfloat16, float32 or float64",
    ),
    ({"scores": torch.rand(6)}, ValueError, r"scores must have shape \[B, N\], got \[6\]"),
    ({"scores": torch.rand(3, 6).to_sparse()}, TypeError, "scores must be a dense tensor, got .*to_dense"),
    ({"k": 2.0}, TypeError, "k must be an int, got float"),
    ({"k": True}, TypeError, "k must be an int, got bool"),
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"samples": "5"}, TypeError, "samples must be an int, got str"),
    ({"samples": 1}, ValueError, "samples must be at least 2, got 1"),
    ({"sigma": "0.1"}, TypeError, "sigma must be a number, got str"),
    ({"sigma": 0.0}, ValueError, "sigma must be positive and finite, got 0.0"),
    ({"sigma": math.inf}, ValueError, "sigma must be positive and finite, got inf"),
    ({"sigma": math.nan}, ValueError, "sigma must be positive and finite, got nan"),
    ({"generator": 0}, TypeError, "generator must be a torch.Generator or None, got int"),
    ({"mask": [True]}, TypeError, "mask must be a Tensor or None, got list"),
    ({"mask": torch.ones(3, 6)}, TypeError, r"mask must have dtype torch.bool \(True forbids\), got torch.float32"),
    (
        {"mask": torch.ones(3, 5, dtype=torch.bool)},
        ValueError,
        r"mask must have a shape that broadcasts .*\[3, 6\], got",
    ),
    ({"mask": torch.ones(1, 3, 6, dtype=torch.bool)}, ValueError, r"mask must have a shape that .*got \[1, 3, 6\]"),
    ({"mask": torch.ones(3, 6, dtype=torch.bool, device="meta")}, ValueError, "mask must be on the device of scores"),
    (
        {"scores": torch.rand(3, 6, device="meta"), "generator": torch.Generator()},
        ValueError,
        "generator must be on the",
    ),
]


@pytest.mark.parametrize("function", [perturbed_topk, ref.perturbed_topk], ids=["op", "reference"])
@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS, ids=[message[:40] for *_, message in BAD_INPUTS])
def test_bad_input(function: Callable[..., Tensor], change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        function(**CASE | change)
